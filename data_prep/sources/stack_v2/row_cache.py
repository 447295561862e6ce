"""Decoded row groups that were read last, within a bound of bytes: repositories of a task lie in several row groups."""

import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

CACHE_BYTES = 1 << 28
"""256 MiB; a single row group above half of it is streamed row by row and never kept."""


@dataclass
class RowCache:
    """Values by key, the least recently used thrown out first."""

    capacity_bytes: int
    held_bytes: int = 0
    values: "OrderedDict[Hashable, tuple[Any, int]]" = field(default_factory=OrderedDict)

    def get(self, key: Hashable, load: Callable[[], tuple[Any, int]]) -> Any:
        """The value of `key`, loaded (with its size in bytes) when it is not held; larger than the cache is not held."""
        if key in self.values:
            self.values.move_to_end(key)
            return self.values[key][0]
        value, size = load()
        self.values[key] = (value, size)
        self.held_bytes += size
        while self.held_bytes > self.capacity_bytes and self.values:
            _, (_, old) = self.values.popitem(last=False)
            self.held_bytes -= old
        return value


@functools.lru_cache(maxsize=1)
def process_cache() -> RowCache:
    """The cache that all sources of this process share."""
    return RowCache(CACHE_BYTES)

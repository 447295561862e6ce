"""An LRU cache of decoded row groups, bounded in bytes.

Reading one row decodes its row group, but repositories are read one by one in order of their names, which is not the order of
the rows: without the cache, a row group would be decoded once per repository.
"""

import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

CACHE_BYTES = 1 << 28
"""256 MiB; a row group above half of it is streamed in batches and not cached."""


@dataclass
class RowCache:
    """Values by key; evicts the least recently used first."""

    capacity_bytes: int
    held_bytes: int = 0
    values: "OrderedDict[Hashable, tuple[Any, int]]" = field(default_factory=OrderedDict)

    def get(self, key: Hashable, load: Callable[[], tuple[Any, int]]) -> Any:
        """The cached value of `key`, or that of `load` (value and size in bytes); a value above the capacity is not cached."""
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

"""Counters of a run of `fetch`: each wanted blob has one outcome; and their display while the run goes on."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from data_prep.console import show_progress


@dataclass
class FetchCounts:
    """Counters of one run; `wanted` = `known` + `repeated` + `stored` + `given_up`, summed over their reasons."""

    wanted: int = 0
    """Blobs named by the inputs, each counted once per row group."""
    known: "Counter[str]" = field(default_factory=Counter)
    """Not asked for, because the store knows them: by status."""
    repeated: int = 0
    """Named again while a request for them was in flight."""
    stored: "Counter[str]" = field(default_factory=Counter)
    """Newly in the store: by status, `body` for those that were fetched."""
    given_up: "Counter[str]" = field(default_factory=Counter)
    """Not in the store, asked for again by the next run: by the last failure."""
    retries: "Counter[str]" = field(default_factory=Counter)
    """Requests made once more: by the failure before."""
    requests: int = 0
    bytes_received: int = 0
    """Of bodies, as they were stored."""
    bytes_decoded: int = 0
    seconds: float = 0.0

    def accounted(self) -> int:
        """Wanted blobs that have an outcome."""
        return sum(self.known.values()) + self.repeated + sum(self.stored.values()) + sum(self.given_up.values())

    def to_plain(self) -> dict[str, Any]:
        """The counts as nested dictionaries, for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        # `dataclasses.asdict` would make counters of pairs out of counters.
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in values.items()}

    def rates(self) -> str:
        """Blobs and megabytes per second so far, retries, and outcomes other than a body."""
        seconds = max(self.seconds, 1e-9)
        rest = {**self.stored, **self.given_up}
        shown = "".join(f", {number:,} {name}" for name, number in sorted(rest.items()) if name != "body" and number)
        speed = f"{self.stored['body'] / seconds:,.0f} blobs/s, {self.bytes_received / seconds / 1e6:,.2f} MB/s"
        return f"{speed}, {sum(self.retries.values()):,} retries{shown}"


@contextlib.contextmanager
def show_counts(counts: FetchCounts, total: int) -> Iterator[Callable[[], None]]:
    """Show progress over `total` files, some of which share a blob; yields the function to call after each outcome."""
    began = time.monotonic()
    shown = 0
    with show_progress("fetch", total, "blobs", counts.rates) as advance:

        def update() -> None:
            nonlocal shown
            counts.seconds = time.monotonic() - began
            done = counts.accounted()
            advance(done - shown)
            shown = done

        yield update
        counts.seconds = time.monotonic() - began

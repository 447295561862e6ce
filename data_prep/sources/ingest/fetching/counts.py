"""Counts the outcomes of a run of `fetch`, one outcome per wanted blob, and shows them during the run."""

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
    """Not requested, because the store has a record of them: by status."""
    repeated: int = 0
    """Named again while a request for them was in flight."""
    stored: "Counter[str]" = field(default_factory=Counter)
    """Added to the store: by status, `body` for fetched bodies."""
    given_up: "Counter[str]" = field(default_factory=Counter)
    """Not in the store, requested again by the next run: by the last failure."""
    retries: "Counter[str]" = field(default_factory=Counter)
    """Repeated requests: by the preceding failure."""
    requests: int = 0
    bytes_received: int = 0
    """Size of the bodies as received (gzip)."""
    bytes_decoded: int = 0
    seconds: float = 0.0

    def accounted(self) -> int:
        """Wanted blobs that have an outcome."""
        return sum(self.known.values()) + self.repeated + sum(self.stored.values()) + sum(self.given_up.values())

    def to_plain(self) -> dict[str, Any]:
        """The counts as nested dictionaries, for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        # `dataclasses.asdict` would rebuild a Counter from its pairs, and so count the pairs.
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
    """Show progress out of `total` files (some share a blob); yields the function to call after each outcome."""
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

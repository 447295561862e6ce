"""Which rank keeps the others waiting: each rank publishes its mark in the process group's store, so that a hang is explained.

A thread publishes the mark every few seconds and, on rank 0, writes the heartbeat; a step only assigns an attribute. Why a
store and not a collective: the question comes up when a collective hangs, and another one would queue behind it on the same
stream, or wait for the very rank that is missing. The store is a TCP server beside rank 0 or the launcher: each rank reads and
writes it alone, from any thread, while the device hangs and whether the back end is gloo or NCCL. What a silent rank
published last stays readable.
"""

import contextlib
import datetime
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch import distributed as dist

from pretrain.parallel.stage import Mark
from pretrain.parallel.topology import place_of

_KEY = "stage-of-rank-"
# A live store answers in microseconds; if it is gone, report that soon.
_STORE_SECONDS = 10
MOST_SECONDS_BETWEEN_REPORTS = 5.0
_NAMED_RANKS = 8
# How a rank ended whose collective failed: it is a victim, and other ranks must not take it for the cause.
GAVE_UP = "gave up waiting"


@dataclass(frozen=True)
class Report:
    """What a rank last published: its mark, seconds since it set the mark, how it ended (empty: it has not), a running number."""

    rank: int
    mark: Mark
    seconds: float
    ended: str
    number: int

    @classmethod
    def parse(cls, rank: int, text: bytes) -> "Report":
        """Parse a report as it lies in the store."""
        values = json.loads(text)
        return cls(rank, Mark.from_plain(values), float(values["seconds"]), str(values["ended"]), int(values["number"]))


def explain(
    reports: Sequence[Report], silent: Sequence[int], missing: Sequence[int], tensor_ranks: int, starting: bool = False
) -> str:
    """One sentence: which rank keeps the others waiting, in which stage and for how long.

    `starting` says that no step is done yet, so that all ranks may be slow together: compilation, a large checkpoint.

    Ranks that never reported (`missing`) are blamed first, then those that stopped (`silent`), then ranks that ended with an
    error of their own, then those that are furthest behind: a dead rank explains why others wait, and not the reverse.
    """
    if missing:
        return f"{_named(missing, tensor_ranks)} never reported: not started, or dead before the first step"
    by_rank = {report.rank: report for report in reports}
    ended = [report.rank for report in reports if report.ended not in ("", GAVE_UP)]
    if silent or ended:
        guilty = list(silent) or ended
        first = by_rank[guilty[0]]
        ahead = max((report.mark for report in reports if report.rank not in guilty), default=first.mark, key=lambda m: m.place)
        if silent and first.mark.was_left(ahead):
            # Marks are published every few seconds, so a rank that died was seen last in a stage that it had already left.
            seen = (
                f"stopped reporting; last seen in {first.mark.stage!r} of step {first.mark.step + 1}, which all ranks have left"
            )
            return f"step {ahead.step + 1}: {_named(guilty, tensor_ranks)} {seen}: others are in {ahead.stage!r}"
        how = "stopped reporting" if silent else f"ended ({first.ended})"
        return f"step {first.mark.step + 1}: {_named(guilty, tensor_ranks)} {how} in {first.mark.stage!r}"
    going = [report for report in reports if not report.ended] or reports
    last = min(report.mark.place for report in going)
    guilty = [report.rank for report in going if report.mark.place == last]
    first = by_rank[guilty[0]]
    where = f"in {first.mark.stage!r} for {max(by_rank[rank].seconds for rank in guilty):.0f} s"
    if len(guilty) == len(reports):
        cause = "a slow start (data, a checkpoint, compilation), or a" if starting or last[1] == 0 else "a"
        return f"step {first.mark.step + 1}: all ranks are {where}, none is behind: {cause} device or the network hangs"
    waiting = _listed([report.rank for report in reports if report.rank not in guilty])
    return f"step {first.mark.step + 1}: {_named(guilty, tensor_ranks)} has been {where}; waiting: {waiting}"


def _named(ranks: Sequence[int], tensor_ranks: int) -> str:
    place = place_of(ranks[0], tensor_ranks)
    first = f"rank {place.rank} (data rank {place.data_rank}, tensor rank {place.tensor_rank})"
    return first if len(ranks) == 1 else f"{first} and ranks {_listed(ranks[1:])}"


def _listed(ranks: Sequence[int]) -> str:
    more = len(ranks) - _NAMED_RANKS
    return ", ".join(map(str, ranks[:_NAMED_RANKS])) + (f" and {more} more" if more > 0 else "")


class Watchdog:
    """This rank's mark, the thread that publishes it, and the explanation when a collective fails; a context manager."""

    def __init__(
        self,
        rank: int,
        world_size: int,
        tensor_ranks: int,
        timeout_seconds: float,
        beat: Callable[[Mark, float], None] | None = None,
        beat_seconds: float = 30.0,
    ):
        """`beat` (on rank 0) is called with the mark and the seconds spent in it: every `beat_seconds`, at start and end."""
        self.rank, self.world_size, self.tensor_ranks = rank, world_size, tensor_ranks
        self.timeout_seconds = timeout_seconds
        self._interval = min(MOST_SECONDS_BETWEEN_REPORTS, timeout_seconds / 8)
        self._beat, self._beat_seconds, self._last_beat = beat, beat_seconds, 0.0
        self._now = (Mark(), time.monotonic())
        self._ended, self._number, self._warned = "", 0, False
        self._first_step: int | None = None
        self._leave = threading.Event()
        self._publishing = threading.Lock()
        self._store = _own_store() if world_size > 1 else None
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def enter(self, stage: str, micro_batches_left: int = 0, step: int | None = None) -> None:
        """Set this rank's mark to a stage, of the same step unless another is given; takes a microsecond or two."""
        self._now = (self._now[0].moved(stage, micro_batches_left, step), time.monotonic())
        if self._first_step is None:
            self._first_step = step

    @property
    def mark(self) -> Mark:
        """Where this rank is."""
        return self._now[0]

    def __enter__(self) -> "Watchdog":
        self._publish()
        self._write_beat()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and not self._ended:
            self._end(error)
        self._leave.set()
        self._thread.join(_STORE_SECONDS)
        self._write_beat()

    def _end(self, error: BaseException) -> None:
        words = " ".join(str(error).split())
        self._ended = f"{type(error).__name__}: {words[:200]}"
        self._publish()

    def explain_failure(self) -> str:
        """Find in the store which rank kept the others waiting; takes a few seconds, to see which ranks still report."""
        self._ended = GAVE_UP
        self._publish()
        try:
            before, _ = self._reports()
            time.sleep(3 * self._interval)
            reports, missing = self._reports()
        except (RuntimeError, ValueError):
            place = "where the ranks met (rank 0, or the launcher on its host) no longer answers"
            return f"step {self.mark.step + 1}: {place}; this was rank {self.rank} in {self.mark.stage!r}"
        numbers = {report.rank: report.number for report in before}
        silent = [report.rank for report in reports if not report.ended and numbers.get(report.rank) == report.number]
        return explain(reports, silent, missing, self.tensor_ranks, self._is_starting)

    @property
    def _is_starting(self) -> bool:
        return self._first_step is None or self.mark.step == self._first_step

    def _reports(self) -> tuple[list[Report], list[int]]:
        """The last report of each rank, and the ranks that never reported."""
        assert self._store is not None
        keys = [f"{_KEY}{rank}" for rank in range(self.world_size)]
        if self._store.check(keys):
            # One request: rank 0's store answers all ranks, and all of them may ask at the moment at which it is busiest.
            return [Report.parse(rank, text) for rank, text in enumerate(self._store.multi_get(keys))], []
        there = [rank for rank, key in enumerate(keys) if self._store.check([key])]
        reports = [Report.parse(rank, self._store.get(keys[rank])) for rank in there]
        return reports, sorted(set(range(self.world_size)) - set(there))

    def _publish(self) -> None:
        if self._store is None:
            return
        with self._publishing, contextlib.suppress(RuntimeError):
            self._number += 1
            mark, since = self._now
            values = {"step": mark.step, "stage": mark.stage, "micro_batches_left": mark.micro_batches_left}
            more = {"seconds": time.monotonic() - since, "ended": self._ended, "number": self._number}
            self._store.set(f"{_KEY}{self.rank}", json.dumps(values | more))

    def _write_beat(self) -> None:
        if self._beat is not None:
            mark, since = self._now
            self._last_beat = time.monotonic()
            # A full disk is reported by the next write that matters.
            with contextlib.suppress(OSError):
                self._beat(mark, self._last_beat - since)

    def _watch(self) -> None:
        """The thread. NCCL ends the process when a collective times out, so the warning comes shortly before that."""
        while not self._leave.wait(self._interval):
            self._publish()
            if time.monotonic() - self._last_beat >= self._beat_seconds:
                self._write_beat()
            waited = time.monotonic() - self._now[1]
            if self._store is not None and not self._warned and waited > self.timeout_seconds - 5 * self._interval:
                self._warned = True
                self._warn()

    def _warn(self) -> None:
        """Print one line on standard error, from the first of the waiting ranks only."""
        with contextlib.suppress(RuntimeError, ValueError):
            reports, missing = self._reports()
            last = min((report.mark.place for report in reports), default=self.mark.place)
            ahead = [report.rank for report in reports if report.mark.place != last] or [report.rank for report in reports]
            if ahead and ahead[0] == self.rank:
                sentence = explain(reports, (), missing, self.tensor_ranks, self._is_starting)
                print(f"warning: {sentence} (limit: {self.timeout_seconds:g} s)", file=sys.stderr, flush=True)


def _own_store() -> Any:
    """A separate connection to the process group's store: calls on the group's own connection block one another."""
    group_store: Any = dist.distributed_c10d._get_default_store()
    store = group_store.clone()
    store.set_timeout(datetime.timedelta(seconds=_STORE_SECONDS))
    return store


def is_collective_failure(error: BaseException) -> bool:
    """Whether an exception means that another rank failed to join a collective, rather than a fault of this rank."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and ("gloo" in str(error) or "Connection closed by peer" in str(error))

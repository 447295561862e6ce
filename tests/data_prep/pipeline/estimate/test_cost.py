"""CPU of a run from that of its sample: what is scaled by what, with a clock that the test moves."""

from collections.abc import Iterator

import pytest

from data_prep.pipeline.estimate import cost
from data_prep.pipeline.estimate.cost import PassCost, RunCost
from data_prep.pipeline.estimate.sample import size_bin
from data_prep.sources.file_kinds import found_file
from data_prep.sources.repositories import RepositoryRef, SourceFile
from data_prep.sources.stack_v2.rows import KIND as ROWS_KIND

SIZES = (100, 100, 1000)
OPENING, PER_BYTE, JUDGING, CLOSING = 7.0, 0.01, 0.5, 0.25


class Clock:
    """CPU seconds of this process and of those that have ended."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.own = self.ended = 0.0
        patch.setattr(cost, "cpu_seconds", lambda: self.own + self.ended)
        patch.setattr(cost, "_ended_processes", lambda: self.ended)
        patch.setattr(cost.time, "process_time", lambda: self.own)


def files(clock: Clock) -> Iterator[SourceFile]:
    clock.own += OPENING
    for number, size in enumerate(SIZES):
        clock.own += PER_BYTE * size
        yield found_file("r", f"{number}.py", b"x" * size)
    clock.ended += CLOSING


def measured(clock: Clock, kind: str, unopened: float = 0.0) -> PassCost:
    """A pass over one repository whose files are all read, beside others of which none is."""
    passed = PassCost()
    passed.listed(2.0, is_opened=True)
    passed.listed(unopened, is_opened=False)
    for _ in passed.timed(RepositoryRef("r", kind, "place"), files(clock)):
        clock.own += JUDGING
    passed.end()
    return passed


def test_opening_a_repository_is_not_scaled_and_files_are_by_the_scale_of_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = measured(Clock(monkeypatch), "directory")
    small, large = (size_bin(size) for size in (100, 1000))
    reading = 4.0 * PER_BYTE * 200 + 2.0 * PER_BYTE * 1000
    found = passed.whole_reading({small: 4.0, large: 2.0}, 3.0)
    assert found == pytest.approx(OPENING + reading + 3.0 * CLOSING)
    with_judging = passed.whole_reading({small: 4.0, large: 2.0}, 3.0, with_judging=True)
    assert with_judging == pytest.approx(found + JUDGING * (2 * 4.0 + 2.0))
    assert passed.reading == pytest.approx(OPENING + PER_BYTE * sum(SIZES) + CLOSING)
    assert passed.total == pytest.approx(passed.reading + passed.judging)


def test_repositories_without_a_file_in_the_sample_are_opened_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    scales = {size_bin(size): 1.0 for size in SIZES}
    alone, among_others = measured(clock, "directory"), measured(clock, "directory", unopened=1.0)
    assert among_others.whole_reading(scales, 1.0) == pytest.approx(alone.whole_reading(scales, 1.0) + OPENING / 2)
    assert among_others.opening_as_in(alone) == pytest.approx(OPENING + PER_BYTE * SIZES[0])


def test_the_listing_of_parquet_rows_has_decoded_them(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = measured(Clock(monkeypatch), ROWS_KIND)
    found = passed.whole_reading({size_bin(size): 1.0 for size in SIZES}, 1.0)
    assert found == pytest.approx(PER_BYTE * sum(SIZES) + CLOSING)


def test_a_run_is_the_sum_of_its_phases() -> None:
    assert RunCost(start=1, once=2, tasks=4, searching=8, reading=16, packing=32).total == 63

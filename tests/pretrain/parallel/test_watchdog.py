"""Covers who is named when ranks wait for one another: late, silent, ended, never started, or none; and where ranks stand."""

from hypothesis import given
from hypothesis import strategies as st

from pretrain.parallel.stage import BACKWARD, CHECKPOINT, COUNT, FORWARD, LOAD_ROWS, LOG, UPDATE, Mark
from pretrain.parallel.watchdog import GAVE_UP, Report, Watchdog, explain, is_collective_failure


def report(rank: int, mark: Mark, seconds: float = 1.0, ended: str = "") -> Report:
    return Report(rank, mark, seconds, ended, number=1)


def test_the_rank_that_is_furthest_behind_is_named() -> None:
    reports = [report(rank, Mark(811, COUNT), 1790) for rank in range(4)]
    reports[3] = report(3, Mark(811, LOAD_ROWS), 1800)
    expected = "step 812: rank 3 (data rank 1, tensor rank 1) has been in 'load rows' for 1800 s; waiting: 0, 1, 2"
    assert explain(reports, (), (), tensor_ranks=2) == expected


def test_a_rank_that_is_still_in_the_step_before_is_behind_whatever_its_stage() -> None:
    reports = [report(0, Mark(811, LOAD_ROWS)), report(1, Mark(810, CHECKPOINT), 60)]
    assert explain(reports, (), (), 1).startswith(
        "step 811: rank 1 (data rank 1, tensor rank 0) has been in 'checkpoint' for 60 s"
    )


def test_many_ranks_are_counted() -> None:
    reports = [report(rank, Mark(0, COUNT if rank else LOAD_ROWS)) for rank in range(512)]
    assert explain(reports, (), (), 1).endswith("waiting: 1, 2, 3, 4, 5, 6, 7, 8 and 503 more")


def test_silent_and_ended_ranks_are_named_first() -> None:
    reports = [report(rank, Mark(4, BACKWARD)) for rank in range(3)]
    silent = explain(reports, (2,), (), 1)
    assert silent == "step 5: rank 2 (data rank 2, tensor rank 0) stopped reporting in 'backward'"
    reports[1] = report(1, Mark(4, FORWARD), ended="OutOfMemoryError: no memory")
    ended = explain(reports, (), (), 1)
    assert ended == "step 5: rank 1 (data rank 1, tensor rank 0) ended (OutOfMemoryError: no memory) in 'forward'"
    assert "never reported" in explain(reports[:2], (), (2,), 1)


def test_ranks_that_gave_up_waiting_are_not_blamed() -> None:
    reports = [report(0, Mark(4, COUNT)), report(1, Mark(4, COUNT), ended=GAVE_UP), report(2, Mark(4, LOAD_ROWS), 9)]
    expected = "step 5: rank 2 (data rank 2, tensor rank 0) has been in 'load rows' for 9 s; waiting: 0, 1"
    assert explain(reports, (), (), 1) == expected
    stuck = [report(rank, Mark(4, BACKWARD), ended=GAVE_UP if rank else "") for rank in range(3)]
    assert explain(stuck, (), (), 1).endswith("waiting: 1, 2")


def test_where_none_is_behind_it_says_so() -> None:
    reports = [report(rank, Mark(4, BACKWARD), 30.0 + rank) for rank in range(2)]
    expected = "step 5: all ranks are in 'backward' for 31 s, none is behind: a device or the network hangs"
    assert explain(reports, (), (), 1) == expected


@given(st.integers(1, 5), st.integers(1, 5))
def test_places_follow_the_course_of_a_step_and_meet_at_its_end(first: int, second: int) -> None:
    def course(micro_batches: int) -> list[Mark]:
        marks = [Mark(7, LOAD_ROWS), Mark(7, COUNT)]
        for left in reversed(range(micro_batches)):
            marks += [Mark(7, stage, left) for stage in (FORWARD, BACKWARD, UPDATE)]
        return [*marks, Mark(7, LOG), Mark(7, CHECKPOINT), Mark(8, LOAD_ROWS)]

    for micro_batches in (first, second):
        places = [mark.place for mark in course(micro_batches)]
        assert places == sorted(places) and len(set(places)) == len(places)
    # A rank that waits in its last backward is ahead of whoever has one to go, whatever their numbers.
    waiting = Mark(7, BACKWARD, 0).place
    assert all(mark.place < waiting for mark in course(second)[2:] if mark.stage == FORWARD)


def test_a_rank_alone_beats_and_needs_no_store() -> None:
    beats: list[tuple[Mark, float]] = []
    with Watchdog(0, 1, 1, 1800.0, lambda mark, seconds: beats.append((mark, seconds))) as watchdog:
        watchdog.enter(COUNT, step=3)
        assert watchdog.mark == Mark(3, COUNT)
    assert [mark.stage for mark, _ in beats] == ["start", "count"]
    assert all(seconds >= 0 for _, seconds in beats)


def test_only_what_another_rank_did_counts_as_a_failed_collective() -> None:
    gloo = "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:88] Timed out waiting 2000ms for recv operation"
    assert is_collective_failure(RuntimeError(gloo))
    assert not is_collective_failure(RuntimeError("shape mismatch"))
    assert not is_collective_failure(ValueError(gloo))


def test_a_silent_rank_is_not_blamed_for_a_stage_that_every_rank_left() -> None:
    """It published its mark seconds before it died, and the others would not be where they are if it had stayed."""
    reports = [report(0, Mark(6, COUNT)), report(1, Mark(4, CHECKPOINT))]
    found = explain(reports, (1,), (), 1)
    assert found.startswith("step 7: rank 1 (data rank 1, tensor rank 0) stopped reporting; last seen in 'checkpoint' of step 5")
    assert found.endswith("which all ranks have left: others are in 'count'")
    still_there = [report(0, Mark(4, CHECKPOINT)), report(1, Mark(4, CHECKPOINT))]
    assert explain(still_there, (1,), (), 1).endswith("stopped reporting in 'checkpoint'")


def test_ranks_meet_in_counts_the_last_backward_and_saves() -> None:
    assert Mark(4, LOAD_ROWS).was_left(Mark(4, FORWARD, 3))
    assert not Mark(4, LOAD_ROWS).was_left(Mark(4, COUNT))
    assert not Mark(4, FORWARD, 2).was_left(Mark(4, UPDATE))
    assert Mark(4, FORWARD, 2).was_left(Mark(4, LOG))
    assert not Mark(4, LOG).was_left(Mark(5, COUNT))
    assert Mark(4, LOG).was_left(Mark(5, BACKWARD))
    assert not Mark(4, CHECKPOINT).was_left(Mark(4, CHECKPOINT))
    assert Mark(4, CHECKPOINT).was_left(Mark(5, LOAD_ROWS))


def test_a_slow_start_is_not_called_a_hang() -> None:
    start = [report(rank, Mark(), 900.0) for rank in range(2)]
    hint = "none is behind: a slow start (data, a checkpoint, compilation), or a device or the network hangs"
    assert explain(start, (), (), 1).endswith(hint)
    first_step = [report(rank, Mark(40, FORWARD), 900.0) for rank in range(2)]
    assert "a slow start" in explain(first_step, (), (), 1, starting=True)
    assert "a slow start" not in explain(first_step, (), (), 1)

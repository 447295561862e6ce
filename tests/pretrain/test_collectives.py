"""The sequence of collectives of ranks 0, 1, 4 and 511 of 512: equal within each group, and few bytes and groups.

A rank that issues another collective than the others of its group hangs all of them, which no test with few ranks may show.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pretrain.collective_cells import RANKS, Call, Grid, Trace, trace_rank
from tests.pretrain.forked import call_forked

SOME_RANKS = (0, 1, 4, 511)
LAYERS = 4


def traced(rank: int, grid: Grid, dataset: Path, before: Callable[[], None] | None = None) -> Trace:
    found = call_forked(trace_rank, rank, grid, dataset, before)
    assert isinstance(found, Trace)
    return found


GRIDS = {"data-parallel": Grid(), "tensor-parallel": Grid(4), "partitioned": Grid(1, 4)}


@pytest.fixture(scope="module", params=GRIDS.values(), ids=GRIDS.keys())
def traces(request: pytest.FixtureRequest, dataset: Path) -> tuple[Grid, dict[int, Trace]]:
    return request.param, {rank: traced(rank, request.param, dataset) for rank in SOME_RANKS}


def of_group(calls: list[Call], group: tuple[int, int, int]) -> list[Call]:
    return [call for call in calls if call.group == group]


def first_difference(one: list[Call], other: list[Call]) -> tuple[int, Call | None, Call | None] | None:
    """Place and calls at which two ranks of a group part; None where they never do."""
    for place in range(max(len(one), len(other))):
        mine, others = (calls[place] if place < len(calls) else None for calls in (one, other))
        if mine != others:
            return place, mine, others
    return None


def test_ranks_of_a_group_issue_the_same_collectives(traces: tuple[Grid, dict[int, Trace]]) -> None:
    _, by_rank = traces
    for part in ("start", "step"):
        calls = {rank: getattr(trace, part) for rank, trace in by_rank.items()}
        groups = {call.group for of_rank in calls.values() for call in of_rank}
        for group in groups:
            # A group is named by its first and last rank and its size, so these are its members.
            spacing = (group[1] - group[0]) // max(group[2] - 1, 1) or 1
            members = [rank for rank in SOME_RANKS if rank in range(group[0], group[1] + 1, spacing)]
            for rank in members[1:]:
                assert first_difference(of_group(calls[members[0]], group), of_group(calls[rank], group)) is None, (part, group)


def test_every_rank_issues_as_many_of_each_kind(traces: tuple[Grid, dict[int, Trace]]) -> None:
    _, by_rank = traces
    kinds = {rank: sorted(call.operation for call in trace.start) for rank, trace in by_rank.items()}
    assert all(of_rank == kinds[0] for of_rank in kinds.values())


def test_the_start_makes_few_groups(traces: tuple[Grid, dict[int, Trace]]) -> None:
    _, by_rank = traces
    for trace in by_rank.values():
        assert sum(call.operation == "new_group" for call in trace.start) <= 4
        assert sum(call.operation == "new_group" for call in trace.step) == 0


def test_bytes_of_a_step_stay_within_the_budget(traces: tuple[Grid, dict[int, Trace]]) -> None:
    """Per parameter a float32 gradient to its owner and a bf16 weight from it; the rest are counts, losses and the norm."""
    _, by_rank = traces
    for trace in by_rank.values():
        across = [call for call in trace.step if call.group[2] in (RANKS, RANKS // 4)]
        assert sum(call.num_bytes for call in across) <= 6.5 * trace.parameters + 4096


def test_weights_are_gathered_inside_a_partition(traces: tuple[Grid, dict[int, Trace]]) -> None:
    """Across nodes goes the gradient alone, so nothing is left that no computation covers."""
    grid, by_rank = traces
    if not grid.partition_ranks:
        pytest.skip("weights are gathered over all data ranks")
    for rank, trace in by_rank.items():
        inside = [call for call in trace.step if call.group[2] == grid.partition_ranks]
        gathered = [call for call in inside if call.operation.startswith("all_gather")]
        assert sum(call.num_bytes for call in gathered) >= 2 * trace.parameters
        assert {call.group[0] for call in inside} == {rank - rank % 4}
        across = [call for call in trace.step if call.group[2] == RANKS]
        assert sum(call.num_bytes for call in across) <= 4.2 * trace.parameters + 4096


def test_a_layer_reduces_four_hidden_states(traces: tuple[Grid, dict[int, Trace]]) -> None:
    """Two outputs forward, and backward the input gradients of attention and of the feed-forward layer; the embedding is one."""
    grid, by_rank = traces
    tensor_ranks = grid.tensor_ranks
    if tensor_ranks == 1:
        pytest.skip("one rank per layer reduces none")
    for trace in by_rank.values():
        sizes = [call.num_values for call in trace.step if call.group[2] == tensor_ranks and call.operation == "all_reduce"]
        for values in set(trace.token_values):
            assert sizes.count(values) == (4 * LAYERS + 1) * trace.token_values.count(values)


def _other_counts_on_some_ranks() -> None:
    """The planted fault: rank 1 waits for the others at a place where they do not come."""
    from pretrain import step

    original = step.count_globally

    def faulty(batches, context, wants_stop=False):  # type: ignore[no-untyped-def]
        if context.rank == 1:
            context.barrier()
        return original(batches, context, wants_stop)

    step.count_globally = faulty


def test_a_rank_that_asks_for_one_more_is_seen(traces: tuple[Grid, dict[int, Trace]], dataset: Path) -> None:
    grid, by_rank = traces
    if grid != Grid():
        pytest.skip("planted once")
    everyone = (0, RANKS - 1, RANKS)
    faulty = traced(1, Grid(), dataset, _other_counts_on_some_ranks)
    parted = first_difference(of_group(by_rank[0].step, everyone), of_group(faulty.step, everyone))
    assert parted is not None
    assert parted[2] is not None and parted[2].operation == "barrier"

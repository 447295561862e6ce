"""The plan's memory against the tensors that a rank holds, in a small layout of each kind."""

import dataclasses

import pytest

from benchmarks.memory_plan import MODEL, PARTS, Cell, config_of, planned, run_cell
from tests.pretrain.forked import call_forked

SMALL = dataclasses.replace(MODEL, width=128, feed_forward_width=1536, num_layers=4, exit_layers=(2, 4), vocabulary_size=4096)


@pytest.mark.parametrize("cell", [Cell(1), Cell(2, tensor_ranks=2, micro_batches=2)], ids=["ZeRO 1", "ZeRO 2, TP 2"])
def test_the_plan_is_within_ten_percent_of_what_a_rank_holds(cell: Cell) -> None:
    measured, plan = call_forked(run_cell, cell, SMALL), planned(config_of(cell, SMALL))
    for part in PARTS:
        assert plan[part] == pytest.approx(measured[part], rel=0.1), (part, plan, measured)

"""ZeRO partitions inside a node: their checkpoints, resumes in and from other layouts, and what the config refuses.

Losses, gradients and norms against a plain loop are cells of tests/pretrain/test_layouts.py.
"""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mose.errors import MoseError
from pretrain.config.run import BatchConfig, Layout, ParallelConfig, PretrainConfig
from pretrain.parallel.topology import partition_of
from tests.distributed import RankPools
from tests.pretrain.elastic_cells import largest_difference, resume_cell, save_cell
from tests.pretrain.layout_cells import Cell

NODES_OF_TWO = Cell(4, micro_batch_rows=1, zero_partition_ranks=2)
# A sum over ranks is added in another order: the bar of the design.
TOLERANCE = 1e-6


def test_one_copy_is_saved_and_any_layout_goes_on_from_it(dataset: Path, pools: RankPools, tmp_path: Path) -> None:
    undisturbed = pools.of(4).run(save_cell, NODES_OF_TWO.config(dataset), tmp_path)[0]
    parts = sorted(path.name for path in tmp_path.rglob("*_optim_states.pt"))
    assert parts == [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)]
    same = pools.of(4).run(resume_cell, NODES_OF_TWO.config(dataset), tmp_path)
    assert [outcome["losses"] for outcome in same] == [undisturbed] * 4
    assert not same[0]["converted"]
    for cell in (Cell(4, micro_batch_rows=1), Cell(1)):
        found = pools.of(cell.ranks).run(resume_cell, cell.config(dataset), tmp_path)[0]
        assert found["converted"]
        assert largest_difference(found["losses"], undisturbed) <= TOLERANCE


def test_a_run_over_all_ranks_goes_on_in_partitions(dataset: Path, pools: RankPools, tmp_path: Path) -> None:
    undisturbed = pools.of(2).run(save_cell, Cell(2).config(dataset), tmp_path)[0]
    found = pools.of(4).run(resume_cell, NODES_OF_TWO.config(dataset), tmp_path)
    assert all(outcome["converted"] for outcome in found)
    assert largest_difference(found[3]["losses"], undisturbed) <= TOLERANCE


def test_neighbours_share_a_partition() -> None:
    assert [list(partition_of(rank, 4)) for rank in (0, 3, 4, 511)] == [
        [0, 1, 2, 3],
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [508, 509, 510, 511],
    ]


@pytest.mark.parametrize(
    ("parallel", "line"),
    [
        ({"zero_partition_ranks": -1}, "parallel.zero_partition_ranks: -1, expected 0 or more"),
        (
            {"zero_partition_ranks": 4, "zero_stage": 2},
            "4, expected 0, or parallel.zero_stage 1 and parallel.tensor_parallel_size 1",
        ),
        ({"zero_partition_ranks": 4, "tensor_parallel_size": 2}, "parallel.tensor_parallel_size 1"),
    ],
)
def test_layouts_without_such_partitions_are_refused(parallel: dict[str, Any], line: str) -> None:
    with pytest.raises(MoseError, match=line):
        ParallelConfig(**parallel)


@pytest.mark.parametrize("name", ["reduce_scatter", "use_multi_rank_bucket_allreduce", "contiguous_gradients"])
def test_other_ways_to_reduce_are_refused(name: str) -> None:
    parallel = ParallelConfig(zero_partition_ranks=4)
    with pytest.raises(
        MoseError, match=f"deepspeed.zero_optimization.{name}: False with parallel.zero_partition_ranks, expected true"
    ):
        PretrainConfig(parallel=parallel, deepspeed={"zero_optimization": {name: False}})


def test_partitions_divide_the_ranks() -> None:
    config = PretrainConfig(parallel=ParallelConfig(zero_partition_ranks=4), batch=BatchConfig(64, 1))
    assert (Layout.of(config, 8).zero_ranks, Layout.of(config, 8).parts) == (4, 4)
    with pytest.raises(MoseError, match="parallel.zero_partition_ranks: 4 does not divide the 6 data ranks that were launched"):
        Layout.of(config, 6)
    flat = dataclasses.replace(config, parallel=ParallelConfig())
    assert (Layout.of(flat, 6).zero_ranks, Layout.of(flat, 6).parts) == (6, 6)

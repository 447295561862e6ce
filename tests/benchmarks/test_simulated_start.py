"""What one of 512 ranks does at its start, as the simulation counts it: groups, opens, stats and requests stay few."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import simulated_start
from benchmarks.simulated_start import RANKS, all_ranks, part_of, start_rank
from pretrain.storage.local_rows import SplitTable
from pretrain.storage.node_labels import NodeLabels
from tests.pretrain.forked import call_forked
from tests.pretrain.simulated import simulated

SHARDS = 200


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    dataset = simulated(tmp_path / "data", SHARDS, 60_000, 0, simulated_start.GLOBAL_ROWS)
    checkpoint = tmp_path / "step-000001"
    (checkpoint / "state").mkdir(parents=True)
    for rank in range(RANKS):
        (checkpoint / part_of(rank)).write_bytes(b"states")
    return dataset, checkpoint


@pytest.fixture
def memory(folders: tuple[Path, Path], tmp_path: Path) -> Iterator[Path]:
    """A memory file system in which another rank of the node has written the labels."""
    folder = tmp_path / "memory"
    folder.mkdir()
    labels = NodeLabels(SplitTable(folders[0], "train"), folder / f"mose-{os.getuid()}")
    yield folder
    labels.close()


def test_a_rank_of_512_asks_for_little(folders: tuple[Path, Path], memory: Path) -> None:
    phases = call_forked(start_rank, 1, 4, 0, *folders, memory)
    assert phases["join and make groups"]["new_groups"] == 2
    assert phases["labels of the node"]["opens"] <= 5
    # 16 rows: a shard and an index each at most, and none for the 2,048 labels.
    assert phases["rows of the first step"]["opens"] <= 2 * 16
    assert (phases["report a save"]["listings"], phases["report a save"]["stats"]) == (0, 1)
    assert phases["explain a hang"]["store_requests"] == 3


def test_all_ranks_are_the_main_one_the_first_of_nodes_and_the_rest() -> None:
    one = {"opens": 1, "seconds": 2.0}
    by_rank = {0: {"a": {"opens": 7, "seconds": 1.0}}, 4: {"a": {"opens": 3, "seconds": 5.0}}, 1: {"a": one}, 511: {"a": one}}
    assert all_ranks(by_rank) == {"a": {"opens": 7 + 127 * 3 + 384 * 1, "seconds": 5.0}}

"""Rows on disk before their order is known: all come back, in one random order that does not depend on how they were written."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data_prep.pipeline import row_shuffle as row_shuffle_module
from data_prep.pipeline.row_shuffle import RowBlock, RowShuffle, spread
from mose.dataset.shard_format import RowLabels

LENGTH = 16
DTYPE = np.dtype(np.uint16)


def write_rows(shuffle: RowShuffle, counts: list[int]) -> None:
    """Runs of so many rows; row i of all holds i in every slot and has i % 3 + 1 lines that say i."""
    for count in counts:
        numbers = np.arange(shuffle.rows, shuffle.rows + count)
        order, keys = shuffle.order(count)
        numbers = numbers[order]
        snippets = numbers % 3 + 1
        tokens = np.repeat(numbers[:, None], LENGTH, axis=1).astype(DTYPE)
        lines = pa.table({"said": np.repeat(numbers, snippets), "name": [f"row {n}" for n in np.repeat(numbers, snippets)]})
        shuffle.write(keys, RowBlock(tokens, RowLabels(numbers % 2, numbers + 5, snippets), lines))


def read_numbers(shuffle: RowShuffle) -> list[int]:
    """The rows' numbers as they come back; all that belongs to a row is checked to come with it."""
    found: list[int] = []
    for block in shuffle.blocks(LENGTH, DTYPE):
        numbers = block.tokens_RT[:, 0].astype(np.int64)
        assert (block.tokens_RT == numbers[:, None]).all()
        labels = block.labels
        assert (labels.mixed == numbers % 2).all() and (labels.num_tokens == numbers + 5).all()
        assert (labels.num_snippets == numbers % 3 + 1).all()
        said = np.repeat(numbers, labels.num_snippets).tolist()
        assert block.lines["said"].to_pylist() == said
        assert block.lines["name"].to_pylist() == [f"row {number}" for number in said]
        found += numbers.tolist()
    return found


@pytest.mark.parametrize("block_rows", [1, 7, 8192])
def test_every_row_comes_back_once_with_all_that_belongs_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_rows: int
) -> None:
    monkeypatch.setattr(row_shuffle_module, "BLOCK_ROWS", block_rows)
    with RowShuffle(tmp_path / "train" / "shard.tar", 1) as shuffle:
        write_rows(shuffle, [10, 1, 29, 60])
        assert sorted(read_numbers(shuffle)) == list(range(100))


def test_the_order_depends_on_the_key_only(tmp_path: Path) -> None:
    orders = []
    for key, counts in ((1, [100]), (1, [30, 70]), (2, [100])):
        with RowShuffle(tmp_path / "shard.tar", key) as shuffle:
            write_rows(shuffle, counts)
            orders.append(read_numbers(shuffle))
    assert orders[0] == orders[1] != orders[2]


def test_neighbours_are_no_nearer_than_chance_says(tmp_path: Path) -> None:
    with RowShuffle(tmp_path / "shard.tar", 3) as shuffle:
        write_rows(shuffle, [400] * 5)
        numbers = read_numbers(shuffle)
    same_run = np.mean([a // 400 == b // 400 for a, b in pairwise(numbers)])
    assert 0.15 < same_run < 0.25  # one of five runs; 1 if runs followed one another


def test_equal_keys_on_a_block_border_lose_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_shuffle_module, "BLOCK_ROWS", 2)
    monkeypatch.setattr(row_shuffle_module, "counter_random", lambda key, counters: counters // np.uint64(4))
    with RowShuffle(tmp_path / "shard.tar", 0) as shuffle:
        write_rows(shuffle, [10, 10])
        assert sorted(read_numbers(shuffle)) == list(range(20))


def test_the_file_has_no_name_and_is_gone_at_the_end(tmp_path: Path) -> None:
    with RowShuffle(tmp_path / "train" / "shard.tar", 0) as shuffle:
        write_rows(shuffle, [5])
        assert list((tmp_path / "train").iterdir()) == []
    assert not list((tmp_path / "train").iterdir())


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from data_prep.pipeline.row_shuffle import RowShuffle\n"
        "from tests.data_prep.pipeline.test_row_shuffle import write_rows\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "with RowShuffle(Path(sys.argv[1]), 0) as shuffle: write_rows(shuffle, [100] * 50)"
    )
    shard = tmp_path / "train" / "shard.tar"
    root = Path(__file__).parents[3]
    ended = subprocess.run([sys.executable, "-c", code, str(shard)], check=False, cwd=root, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == f"OSError: [Errno 27] File too large: '{shard}'"
    assert not list(shard.parent.iterdir())


def test_nothing_is_made_without_rows(tmp_path: Path) -> None:
    with RowShuffle(tmp_path / "train" / "shard.tar", 0) as shuffle:
        assert list(shuffle.blocks(LENGTH, DTYPE)) == []
    assert not (tmp_path / "train").exists()


def test_spread_gives_runs_of_numbers() -> None:
    assert spread(np.array([5, 0, 9]), np.array([2, 3, 1])).tolist() == [5, 6, 0, 1, 2, 9]

"""Opening a data set of any size: nothing but the manifest and one shard is looked at, labels never touch a record."""

import contextlib
import dataclasses
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mose.dataset.manifest import ShardEntry, read_manifest, write_manifest
from mose.dataset.row_index import INDEX_DTYPE, index_bytes
from mose.dataset.shard_format import ShardReader
from mose.errors import MoseError
from pretrain.data.order import rows_of_run
from pretrain.storage.local_rows import LocalRows, SplitTable, raise_descriptor_limit
from tests.pretrain.simulated import simulated


def test_row_500_million_comes_at_once(tmp_path: Path) -> None:
    """100 shards of 6 million rows (3.7 TB, all but a few rows of it holes): CPU seconds from nothing to a batch."""
    start = 500_000_000
    dataset = simulated(tmp_path / "data", 100, 6_000_000, start, 256)
    began = time.process_time()
    with contextlib.closing(LocalRows(dataset, "train")) as rows:
        numbers, _ = rows_of_run(0, start, 256, len(rows))
        labels, tokens = rows.labels(numbers), rows.tokens(numbers)
    assert time.process_time() - began < 1
    assert len(rows) == 600_000_000
    assert (labels.num_tokens == 2048).all()
    assert np.array_equal(tokens[:, 0], 7 + numbers // 6_000_000)


def test_no_shard_but_the_first_is_looked_at_on_opening(dataset: Path, tmp_path: Path) -> None:
    manifest = read_manifest(dataset)
    (tmp_path / "train").mkdir()
    write_manifest(tmp_path, manifest)
    first = manifest.splits["train"][0]
    for name in (first.path, first.index_path):
        (tmp_path / name).write_bytes((dataset / name).read_bytes())
    with contextlib.closing(LocalRows(tmp_path, "train")) as rows:
        assert rows.tokens(np.arange(24)).shape == (24, 48)
        with pytest.raises(MoseError, match=r"shard-000003\.tar: no such shard"):
            rows.labels(np.array([80]))


def test_labels_come_from_the_index_alone(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dealing looks at every row of the global batch: it may not pull their records from the disk."""
    monkeypatch.setattr(ShardReader, "tokens", None)
    monkeypatch.setattr(ShardReader, "labels", None)
    with contextlib.closing(LocalRows(dataset, "train")) as rows:
        labels = rows.labels(np.array([3, 0, 99]))
    assert labels.num_tokens[0] == 0
    assert (labels.num_tokens[1:] > 0).all()


def test_a_shard_without_rows_is_passed_over(dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "train").mkdir(parents=True)
    manifest = read_manifest(dataset)
    layout = manifest.layout()
    (folder / "train" / "empty.tar").write_bytes(bytes(layout.file_size(0)))
    (folder / "train" / "empty.npy").write_bytes(index_bytes(np.zeros(0, INDEX_DTYPE)))
    empty = ShardEntry("train/empty.tar", 0, 0, layout.file_size(0), "0", "train/empty.npy", "0", "", "")
    first = manifest.splits["train"][0]
    for name in (first.path, first.index_path):
        (folder / name).write_bytes((dataset / name).read_bytes())
    write_manifest(folder, dataclasses.replace(manifest, splits={"train": (empty, first, empty)}))
    reader = ShardReader(folder / "train" / "empty.tar", layout, 0)
    nothing = np.zeros(0, dtype=np.int64)
    assert reader.labels(nothing).mixed.size == reader.tokens(nothing).size == 0
    reader.close()
    with contextlib.closing(LocalRows(folder, "train")) as rows:
        assert len(rows) == first.rows
        assert rows.labels(np.arange(first.rows)).num_tokens.sum() == first.tokens


def test_by_shard_takes_every_row_once_to_its_place(dataset: Path) -> None:
    table = SplitTable(dataset, "train")
    asked = np.random.default_rng(0).integers(0, 100, 300)
    found = np.full(300, -1)
    for shard, places, inside in table.by_shard(asked):
        found[places] = table.first_rows[shard] + inside
        assert inside.max() < table.shards[shard].rows
    assert np.array_equal(found, asked)
    assert list(table.by_shard(np.zeros(0, dtype=np.int64))) == []


def test_the_soft_limit_of_descriptors_is_raised_to_the_hard_one() -> None:
    program = (
        "import resource; from pretrain.storage.local_rows import raise_descriptor_limit\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 256))\n"
        "print(raise_descriptor_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    shown = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert shown.split() == ["256", "256", "256"]
    assert raise_descriptor_limit() <= resource.getrlimit(resource.RLIMIT_NOFILE)[1]

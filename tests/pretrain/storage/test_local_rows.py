"""Opening a data set of any size looks at one shard, labels never touch a record, and what changes is noticed."""

import contextlib
import dataclasses
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mose.dataset.manifest import ShardEntry, read_manifest, write_manifest
from mose.dataset.row_index import INDEX_DTYPE, INDEX_OFFSET, index_bytes
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
            rows.tokens(np.array([80]))
        with pytest.raises(MoseError, match=r"index-000003\.npy: no such index, but the manifest lists it"):
            rows.labels(np.array([80]))


def test_labels_come_from_the_index_alone(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dealing looks at every row of the global batch: it may not pull their records from the disk."""
    monkeypatch.setattr(ShardReader, "tokens", None)
    monkeypatch.setattr(ShardReader, "labels", None)
    with contextlib.closing(LocalRows(dataset, "train")) as rows:
        # The first shard is open since the start, to refuse a wrong folder early.
        monkeypatch.setattr(ShardReader, "__init__", None)
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


@pytest.fixture
def copied(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "copied"))


def change(path: Path, offset: int, flip: int = 1) -> None:
    """Flip a bit of a file in place."""
    with path.open("r+b") as file:
        file.seek(offset)
        (value,) = file.read(1)
        file.seek(offset)
        file.write(bytes([value ^ flip]))


@pytest.mark.parametrize("opened_first", [True, False])
def test_a_changed_token_is_named_by_file_and_row(copied: Path, opened_first: bool) -> None:
    table = SplitTable(copied, "train")
    path, layout = copied / table.shards[1].path, table.layout
    with contextlib.closing(LocalRows(copied, "train")) as rows:
        if opened_first:
            rows.tokens(np.arange(48))
        # The lowest bit of a token: still an id of the vocabulary, so nothing but the checksum shows it.
        change(path, 5 * layout.stride + layout.token_offset + 2 * 40)
        assert rows.tokens(np.array([24, 28, 30])).shape == (3, layout.sequence_length)
        with pytest.raises(MoseError, match=r"shard-000001\.tar: row 5: CRC-32 of its tokens is not that in its index"):
            rows.tokens(np.array([24, 29, 30]))


@pytest.mark.parametrize("field", ["num_tokens", "num_snippets", "mixed", "crc32"])
def test_an_index_entry_that_contradicts_its_shard_is_named(copied: Path, field: str) -> None:
    entry = read_manifest(copied).splits["train"][0]
    offset = INDEX_OFFSET + 7 * INDEX_DTYPE.itemsize + (INDEX_DTYPE.fields or {})[field][1]
    change(copied / entry.index_path, offset)
    with contextlib.closing(LocalRows(copied, "train")) as rows:
        rows.tokens(np.arange(7))
        with pytest.raises(MoseError, match=r"train/shard-000000\.tar: row 7: (its \.json member is .* as in its index|CRC-32)"):
            rows.tokens(np.arange(10))


@pytest.mark.parametrize("name", ["path", "index_path"])
@pytest.mark.parametrize("left", [0, 1, 100, 5000])
def test_a_file_truncated_while_it_is_mapped_is_one_line(copied: Path, name: str, left: int) -> None:
    """In a process of its own, because the fault that it stands for, SIGBUS, would end this one."""
    path = copied / getattr(read_manifest(copied).splits["train"][0], name)
    program = (
        "import os, sys, numpy as np; from pathlib import Path; from pretrain.storage.local_rows import LocalRows\n"
        "from mose.errors import MoseError\n"
        "rows = LocalRows(Path(sys.argv[1]), 'train'); rows.labels(np.arange(24)); rows.tokens(np.arange(24))\n"
        "os.truncate(sys.argv[2], min(os.path.getsize(sys.argv[2]) - 1, int(sys.argv[3])))\n"
        "try:\n    rows.labels(np.arange(24)); rows.tokens(np.arange(24))\nexcept MoseError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, copied, path, str(left)], check=True, capture_output=True, text=True)
    assert done.stdout.startswith(f"{path}: ")
    assert "truncated" in done.stdout
    assert done.stdout.count("\n") == 1


def test_a_shard_replaced_while_it_is_read(copied: Path, dataset: Path) -> None:
    entry, other = read_manifest(copied).splits["train"][:2]
    with contextlib.closing(LocalRows(copied, "train")) as rows:
        before = rows.tokens(np.arange(24))
        # The same bytes again, as a copy of the folder leaves them: nothing has changed.
        shutil.copy(dataset / entry.path, copied / "again")
        (copied / "again").replace(copied / entry.path)
        assert np.array_equal(rows.tokens(np.arange(24)), before)
        # Another shard of the same size.
        shutil.copy(dataset / other.path, copied / "again")
        (copied / "again").replace(copied / entry.path)
        with pytest.raises(MoseError, match=r"shard-000000\.tar: row 0: CRC-32 of its tokens is not that in its index"):
            rows.tokens(np.arange(24))
        # With its index: consistent, and not what the manifest said when the run began.
        shutil.copy(dataset / other.index_path, copied / entry.index_path)
        os.utime(copied / entry.path, ns=(0, 0))
        with pytest.raises(MoseError, match=r"shard-000000\.tar: replaced while it is read, with another index than"):
            rows.tokens(np.arange(24))


def test_a_shard_deleted_while_it_is_read_is_one_line(copied: Path) -> None:
    entry = read_manifest(copied).splits["train"][0]
    with contextlib.closing(LocalRows(copied, "train")) as rows:
        (copied / entry.path).unlink()
        with pytest.raises(MoseError, match=r"shard-000000\.tar: deleted while it is read"):
            rows.tokens(np.arange(3))


def test_a_data_set_that_changes_under_a_run_is_one_line(copied: Path) -> None:
    manifest = read_manifest(copied)
    first, *others = manifest.splits["train"]
    with contextlib.closing(LocalRows(copied, "train")) as rows:
        write_manifest(copied, manifest)
        assert len(rows.labels(np.arange(3)).mixed) == 3
        changed = dataclasses.replace(manifest, splits={"train": (dataclasses.replace(first, sha256="other"), *others)})
        write_manifest(copied, dataclasses.replace(changed, generations=(manifest.content_root, changed.content_root)))
        with pytest.raises(MoseError, match=r"json: the data set changed while it is read \(generation 2, was 1\); resume"):
            rows.labels(np.arange(3))

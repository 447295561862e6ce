"""verify: an untouched data set passes, and each kind of damage is told with the file and the row it is in."""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.execution.pack import pack_dataset
from data_prep.packing.config import PackingConfig
from data_prep.shards.lineage import LINEAGE_SCHEMA
from data_prep.tools.verify import COMMAND, verify
from mose.command import run_command
from mose.dataset.manifest import ShardEntry, read_manifest, write_manifest
from mose.dataset.packing_modes import PackingMode
from mose.dataset.shard_format import RecordLayout
from mose.errors import MoseError
from mose.files.atomic_file import file_sha256
from mose.files.storage import storage_path
from mose.tokenizer import load_tokenizer
from tests.data_prep.repositories import SEQUENCE_LENGTH, make_config
from tests.datasets import make_tokenizer

SHARD = "train/shard-000000.tar"
LINEAGE = "train/lineage-000000.parquet"
INDEX = "train/index-000000.npy"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    pack_dataset(make_config(folder))
    return folder / "dataset"


@pytest.fixture
def dataset(packed: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(packed, tmp_path / "dataset"))


def renew_checksums(dataset: Path) -> None:
    """Let the manifest agree with changed files, so that only the rows themselves are wrong."""
    manifest = read_manifest(dataset)
    splits = {split: tuple(_renewed(dataset, entry) for entry in entries) for split, entries in manifest.splits.items()}
    write_manifest(dataset, replace(manifest, splits=splits))


def _renewed(dataset: Path, entry: ShardEntry) -> ShardEntry:
    sums = [file_sha256(dataset / path) for path in (entry.path, entry.index_path, entry.lineage_path)]
    return replace(entry, sha256=sums[0], index_sha256=sums[1], lineage_sha256=sums[2])


def change_tokens(dataset: Path, row: int, change: Callable[[np.ndarray, Any], None]) -> None:
    """Change the tokens [T] of one row of the first training shard in place."""
    manifest = read_manifest(dataset)
    layout: RecordLayout = manifest.layout()
    with (dataset / SHARD).open("r+b") as file:
        at = row * layout.stride + layout.token_offset
        file.seek(at)
        tokens = np.frombuffer(file.read(SEQUENCE_LENGTH * layout.dtype.itemsize), layout.dtype).copy()
        change(tokens, load_tokenizer(dataset).special)
        file.seek(at)
        file.write(tokens.tobytes())
    renew_checksums(dataset)


def change_lineage(dataset: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    lines = pq.read_table(dataset / LINEAGE).to_pylist()
    change(lines)
    pq.write_table(pa.Table.from_pylist(lines, schema=LINEAGE_SCHEMA), dataset / LINEAGE)
    renew_checksums(dataset)


def only_problem(dataset: Path) -> str:
    problems = verify(dataset).problems
    assert len(problems) == 1, problems
    assert "\n" not in problems[0]
    return problems[0]


def test_an_untouched_data_set_passes(packed: Path) -> None:
    assert verify(packed).problems == []


@pytest.mark.parametrize("mode", ["faithful", "nsp"])
def test_the_other_modes_pass(tmp_path: Path, mode: str) -> None:
    packing = PackingConfig(mode=PackingMode(mode), sequence_length=512)
    pack_dataset(make_config(tmp_path, packing=packing))
    assert verify(tmp_path / "dataset").problems == []


def test_renewed_checksums_of_an_untouched_data_set_pass(dataset: Path) -> None:
    change_lineage(dataset, lambda lines: None)
    change_tokens(dataset, 0, lambda tokens, special: None)
    assert verify(dataset).problems == []


def test_a_missing_shard(dataset: Path) -> None:
    (dataset / SHARD).unlink()
    assert only_problem(dataset) == f"{dataset / SHARD}: no such shard, but the manifest lists it"


def test_a_missing_lineage_table(dataset: Path) -> None:
    (dataset / LINEAGE).unlink()
    assert only_problem(dataset) == f"{dataset / LINEAGE}: no such file, but manifest.json lists it"


def test_a_truncated_shard(dataset: Path) -> None:
    size = (dataset / SHARD).stat().st_size
    os.truncate(dataset / SHARD, size - 512)
    assert only_problem(dataset).startswith(f"{dataset / SHARD}: {size - 512} bytes, its manifest says {size}")


def change_index(dataset: Path, change: Callable[[np.ndarray], None]) -> None:
    index = np.load(dataset / INDEX)
    change(index)
    np.save(dataset / INDEX, index)
    renew_checksums(dataset)


def test_a_missing_index(dataset: Path) -> None:
    (dataset / INDEX).unlink()
    assert only_problem(dataset) == f"{dataset / INDEX}: no such file, but manifest.json lists it"


def test_an_index_with_a_flipped_bit(dataset: Path) -> None:
    content = bytearray((dataset / INDEX).read_bytes())
    content[-3] ^= 1
    (dataset / INDEX).write_bytes(content)
    assert only_problem(dataset).startswith(f"{dataset / INDEX}: SHA-256 is")


def test_an_index_of_another_shard(dataset: Path) -> None:
    np.save(dataset / INDEX, np.load(dataset / INDEX)[:-1])
    renew_checksums(dataset)
    assert f"{dataset / INDEX}: holds " in only_problem(dataset)
    (dataset / INDEX).write_bytes(b"not an array")
    renew_checksums(dataset)
    assert f"{dataset / INDEX}: not a readable index of rows" in only_problem(dataset)


def test_an_index_whose_label_is_not_that_of_the_shard(dataset: Path) -> None:
    def turn(index: np.ndarray) -> None:
        index["mixed"][2] ^= 1

    old = int(np.load(dataset / INDEX)["mixed"][2])
    change_index(dataset, turn)
    problem = only_problem(dataset)
    assert problem.startswith(f'{dataset / SHARD}: row 2: its .json member is {{"mixed": {old}')
    assert f"its index says mixed {1 - old}" in problem


def test_an_index_whose_checksum_is_not_that_of_the_tokens(dataset: Path) -> None:
    def damage(index: np.ndarray) -> None:
        index["crc32"][3] += 1

    change_index(dataset, damage)
    assert only_problem(dataset) == f"{dataset / SHARD}: row 3: CRC-32 of its tokens is not the one that {INDEX} says"


def test_a_damaged_tar_header(dataset: Path) -> None:
    stride = read_manifest(dataset).layout().stride
    with (dataset / SHARD).open("r+b") as file:
        file.seek(stride * 4 + 300)
        file.write(b"x")
    assert "row 4: its record differs from what packing writes" in only_problem(dataset)
    assert "SHA-256" in only_problem(dataset)
    renew_checksums(dataset)
    assert only_problem(dataset).startswith(f"{dataset / SHARD}: row 4: its record differs from what packing writes")


def test_a_sample_reads_some_shards_and_looks_at_the_size_of_all(dataset: Path) -> None:
    shards = sum(map(len, read_manifest(dataset).splits.values()))
    whole, some = verify(dataset), verify(dataset, 0.4)
    assert (whole.shards, some.shards) == (shards, round(0.4 * shards))
    assert (
        0
        < some.num_bytes
        < whole.num_bytes
        == sum(path.stat().st_size for split in ("train", "held_out") for path in (dataset / split).iterdir())
    )
    content = bytearray((dataset / SHARD).read_bytes())
    content[5000] ^= 1
    (dataset / SHARD).write_bytes(content)
    found = [bool(verify(dataset, 0.4, seed).problems) for seed in range(12)]
    assert any(found)
    assert not all(found)
    os.truncate(dataset / SHARD, 512)
    assert all(len(verify(dataset, 0.4, seed).problems) == 1 for seed in range(4))
    for share in (0.0, 1.5):
        with pytest.raises(MoseError, match="expected a share above 0 and up to 1"):
            verify(dataset, share)


def test_a_data_set_on_an_object_store(dataset: Path) -> None:
    remote = storage_path("memory://verified/dataset")
    for path in dataset.rglob("*"):
        if path.is_file():
            (remote / path.relative_to(dataset).as_posix()).write_bytes(path.read_bytes())
    assert verify(remote).problems == []
    content = bytearray((dataset / SHARD).read_bytes())
    content[5000] ^= 1
    (remote / SHARD).write_bytes(bytes(content))
    assert f"{remote / SHARD}: SHA-256 is" in only_problem(remote)
    (remote / INDEX).unlink()
    assert f"{remote / INDEX}: no such file" in only_problem(remote)


def test_the_command_says_how_much_it_read_and_how_fast(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("mose-data", "", {"verify": COMMAND}, ["verify", str(dataset)]) == 0
    assert re.fullmatch(r"ok: [\d,]+ rows of \d+ shards \([\d,]+ MB in [\d.]+ s, [\d,]+ MB/s\)\n", capsys.readouterr().out)
    (dataset / INDEX).unlink()
    assert run_command("mose-data", "", {"verify": COMMAND}, ["verify", str(dataset)]) == 2
    assert capsys.readouterr().err == f"mose-data: error: {dataset / INDEX}: no such file, but manifest.json lists it\n"


def test_a_flipped_bit(dataset: Path) -> None:
    content = bytearray((dataset / SHARD).read_bytes())
    content[5000] ^= 1
    (dataset / SHARD).write_bytes(content)
    assert only_problem(dataset).startswith(f"{dataset / SHARD}: SHA-256 is")


def test_every_damaged_shard_is_told(dataset: Path) -> None:
    for path in (dataset / SHARD, dataset / "held_out" / "shard-000000.tar"):
        os.truncate(path, 512)
    assert len(verify(dataset).problems) == 2


def test_another_tokenizer(dataset: Path, tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "other", 620)
    shutil.copy(tmp_path / "other" / "tokenizer.model", dataset)
    assert "not the tokenizer of these shards" in only_problem(dataset)


def _set(slot: int, value: Callable[[Any], int]) -> Callable[[np.ndarray, Any], None]:
    def change(tokens: np.ndarray, special: Any) -> None:
        tokens[slot] = value(special)

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_set(-1, lambda special: 300), "row 2: last slot is 300, expected <cls>"),
        (_set(-2, lambda special: special.sep), r"row 2: \d+ snippets, num_snippets says \d+"),
        (_set(-2, lambda special: special.mask), "row 2: a <pad>, <cls> or <mask> stands among the text"),
        (_set(-2, lambda special: special.cls), "row 2: a <pad>, <cls> or <mask> stands among the text"),
        (_set(-2, lambda special: special.pad), "row 2: a <pad>, <cls> or <mask> stands among the text"),
        (_set(-2, lambda special: 600), "row 2: token 600, the vocabulary has 600"),
        (lambda tokens, special: tokens.fill(special.cls), "row 2: slots before|row 2: slot 0 is"),
    ],
)
def test_a_damaged_row(dataset: Path, change: Callable[[np.ndarray, Any], None], expected: str) -> None:
    change_tokens(dataset, 2, change)
    problem = only_problem(dataset)
    assert problem.startswith(f"{dataset / SHARD}: ")
    assert re.search(expected, problem), problem


def first_row(dataset: Path, *, mixed: bool, snippets: int) -> int:
    """A row with at least so many snippets, of one or two repositories."""
    rows: dict[int, list[str]] = {}
    for line in pq.read_table(dataset / LINEAGE).to_pylist():
        rows.setdefault(line["row"], []).append(line["repository"])
    return next(row for row, names in rows.items() if len(names) >= snippets and (len(set(names)) == 2) == mixed)


def rename(row: int, snippet: int, name: str) -> Callable[[list[dict[str, Any]]], None]:
    def change(lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if (line["row"], line["snippet"]) == (row, snippet):
                line["repository"] = name

    return change


def test_an_unmixed_row_of_two_repositories(dataset: Path) -> None:
    row = first_row(dataset, mixed=False, snippets=2)
    change_lineage(dataset, rename(row, 1, "elsewhere"))
    assert only_problem(dataset) == f"{dataset / LINEAGE}: row {row} has a label `mixed` that contradicts its repositories"


def test_a_mixed_row_of_three_repositories(dataset: Path) -> None:
    row = first_row(dataset, mixed=True, snippets=3)
    change_lineage(dataset, rename(row, 2, "elsewhere"))
    assert only_problem(dataset) == f"{dataset / LINEAGE}: row {row} holds more than two repositories"


def test_a_mixed_row_that_does_not_alternate(dataset: Path) -> None:
    row = first_row(dataset, mixed=True, snippets=3)
    lines = [line for line in pq.read_table(dataset / LINEAGE).to_pylist() if line["row"] == row]
    change_lineage(dataset, rename(row, 2, lines[1]["repository"]))
    assert only_problem(dataset) == f"{dataset / LINEAGE}: row {row} does not alternate its two repositories"


def test_a_snippet_of_another_length(dataset: Path) -> None:
    def shorten(lines: list[dict[str, Any]]) -> None:
        lines[4]["num_tokens"] -= 1

    row = pq.read_table(dataset / LINEAGE).to_pylist()[4]["row"]
    change_lineage(dataset, shorten)
    assert only_problem(dataset) == f"{dataset / LINEAGE}: row {row} has a snippet of another length than its shard"


def test_a_row_without_its_line(dataset: Path) -> None:
    row = pq.read_table(dataset / LINEAGE).to_pylist()[4]["row"]
    change_lineage(dataset, lambda lines: lines.pop(4) and None)
    assert only_problem(dataset) == f"{dataset / LINEAGE}: row {row} has another number of snippets than its shard says"


def test_a_repository_in_both_splits(dataset: Path) -> None:
    name = pq.read_table(dataset / "held_out" / "lineage-000000.parquet").to_pylist()[0]["repository"]
    old = pq.read_table(dataset / LINEAGE).to_pylist()[0]["repository"]

    def move(lines: list[dict[str, Any]]) -> None:
        for line in lines:
            line["repository"] = name if line["repository"] == old else line["repository"]

    change_lineage(dataset, move)
    assert only_problem(dataset) == f"{dataset}: repository {name} is in held_out and in train; expected one split only"


def test_a_lineage_table_that_is_another_table(dataset: Path) -> None:
    pq.write_table(pa.table({"row": [0]}), dataset / LINEAGE)
    renew_checksums(dataset)
    assert f"{dataset / LINEAGE}: columns are ['row'], expected" in only_problem(dataset)
    (dataset / LINEAGE).write_bytes(b"PAR1")
    renew_checksums(dataset)
    assert f"{dataset / LINEAGE}: not a readable parquet file" in only_problem(dataset)


def test_counts_that_do_not_add_up(dataset: Path) -> None:
    manifest = read_manifest(dataset)
    entry = manifest.shards("train")[0]
    wrong = (replace(entry, tokens=entry.tokens + 1), *manifest.shards("train")[1:])
    write_manifest(dataset, replace(manifest, splits={**manifest.splits, "train": wrong}))
    problems = verify(dataset).problems
    assert problems[0] == f"{dataset / SHARD}: holds {entry.tokens} tokens, manifest.json says {entry.tokens + 1}"
    assert "statistics.splits.train.tokens" in problems[1]


def test_the_manifest_of_another_sequence_length(dataset: Path) -> None:
    write_manifest(dataset, replace(read_manifest(dataset), sequence_length=64))
    assert len(verify(dataset).problems) == sum(map(len, read_manifest(dataset).splits.values()))


def test_no_manifest_and_no_tokenizer(dataset: Path) -> None:
    (dataset / "tokenizer.model").unlink()
    with pytest.raises(MoseError, match="holds neither tokenizer.model nor tokenizer.json"):
        verify(dataset)
    (dataset / "manifest.json").unlink()
    with pytest.raises(MoseError, match=r"manifest.json: no such file; expected a data set that `mose-data pack` has finished"):
        verify(dataset)

"""remove: only what is listed goes, every row keeps its number, and a kill at any moment is completed by the same command."""

import contextlib
import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep.execution.finish import finish
from data_prep.execution.pack import pack_dataset
from data_prep.packing.config import PackingConfig
from data_prep.pipeline.task_marker import marker_path, read_marker
from data_prep.shards.lineage import LineageTable
from data_prep.shards.rows import read_index
from data_prep.tools.inspect_row import read_shown_row
from data_prep.tools.removal.command import COMMAND, remove
from data_prep.tools.removal.journal import read_removed, read_unfinished
from data_prep.tools.removal.removal_list import RemovalList, read_removal_list
from data_prep.tools.removal.rewrite import read_lines, row_counts
from data_prep.tools.verify import verify
from mose.command import run_command
from mose.dataset.manifest import read_manifest
from mose.dataset.packed_sequence import check_row, snippet_bounds
from mose.dataset.packing_modes import PackingMode
from mose.dataset.row_index import RowIndex
from mose.dataset.shard_format import ShardReader
from mose.errors import MoseError
from mose.tokenizer import load_tokenizer
from tests.data_prep.repositories import checksums, make_config

WITHOUT = ("config.yaml", "removed.jsonl", "removal.json")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    pack_dataset(make_config(folder, 40))
    return folder / "dataset"


@pytest.fixture
def dataset(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "dataset"))


def rows_of(dataset: Path, split: str = "train") -> list[list[tuple[str, str, str, bytes]]]:
    """Each row as (repository, path, blob id, token bytes) of its snippets, checked against labels and index."""
    manifest, special = read_manifest(dataset), load_tokenizer(dataset).special
    rows = []
    for entry in manifest.shards(split):
        reader = ShardReader(dataset / entry.path, manifest.layout(), entry.rows)
        numbers = np.arange(entry.rows)
        tokens_RT, labels = reader.tokens(numbers), reader.labels(numbers)
        lines: list[list[dict[str, Any]]] = [[] for _ in range(entry.rows)]
        for line in pq.read_table(dataset / entry.lineage_path).to_pylist():
            lines[line["row"]].append(line)
        for row in range(entry.rows):
            num_tokens, num_snippets = int(labels.num_tokens[row]), int(labels.num_snippets[row])
            assert check_row(tokens_RT[row], num_tokens, num_snippets, special) is None
            assert [line["snippet"] for line in lines[row]] == list(range(num_snippets))
            assert labels.mixed[row] == (len({line["repository"] for line in lines[row]}) == 2)
            bounds = snippet_bounds(tokens_RT[row], num_tokens, special) if num_tokens else []
            texts = [tokens_RT[row][start:end].tobytes() for start, end in bounds]
            names = [(line["repository"], line["path"], line["blob_id"]) for line in lines[row]]
            rows.append([(*name, text) for name, text in zip(names, texts, strict=True)])
        reader.close()
    return rows


def blobs_of_row(dataset: Path, row: int) -> list[str]:
    return [line["blob_id"] for line in read_shown_row(dataset, "train", row, load_tokenizer(dataset)).lines]


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = run_command("mose-data", "", {"remove": COMMAND}, ["remove", *map(str, words)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def some_blobs(dataset: Path) -> RemovalList:
    """All of row 0, and the most widely spread file of another training shard."""
    shards = read_manifest(dataset).shards("train")
    other = pq.read_table(dataset / shards[1].lineage_path).to_pylist()
    spread = Counter(line["blob_id"] for line in other).most_common(1)[0][0]
    return RemovalList(tuple(sorted({*blobs_of_row(dataset, 0), spread})))


def test_only_listed_files_go_and_every_row_keeps_its_number(dataset: Path) -> None:
    before, held_out = rows_of(dataset), rows_of(dataset, "held_out")
    removal = some_blobs(dataset)
    done = remove(dataset, removal)
    after = rows_of(dataset)
    assert after == [[snippet for snippet in row if snippet[2] not in removal.blobs] for row in before]
    assert after[0] == []
    assert rows_of(dataset, "held_out") == held_out
    assert done is not None
    assert done.snippets == sum(map(len, before)) - sum(map(len, after))
    assert done.emptied_rows == sum(bool(old) and not new for old, new in zip(before, after, strict=True))
    assert done.rows == sum(old != new for old, new in zip(before, after, strict=True))
    assert verify(dataset).problems == []


def test_only_shards_that_hold_them_are_rewritten(packed: Path, dataset: Path) -> None:
    old = checksums(dataset)
    lines = pq.read_table(dataset / "train" / "lineage-000001.parquet").to_pylist()
    elsewhere = pq.read_table(dataset / "train" / "lineage-000000.parquet").to_pylist()
    elsewhere += pq.read_table(dataset / "train" / "lineage-000002.parquet").to_pylist()
    blob = next(line["blob_id"] for line in lines if line["blob_id"] not in {other["blob_id"] for other in elsewhere})
    inode = (dataset / "train" / "shard-000000.tar").stat().st_ino
    remove(dataset, RemovalList((blob,)))
    new = checksums(dataset)
    changed = {name for name, digest in new.items() if old.get(name) != digest}
    files = {f"train/{name}" for name in ("shard-000001.tar", "index-000001.npy", "lineage-000001.parquet")}
    assert changed == files | {"tasks/task-000001.json", "manifest.json", "removed.jsonl"}
    assert (dataset / "train" / "shard-000000.tar").stat().st_ino == inode


def test_a_repository_goes_whole_from_both_splits(dataset: Path) -> None:
    names = (rows_of(dataset)[5][0][0], rows_of(dataset, "held_out")[0][0][0])
    before = {split: rows_of(dataset, split) for split in ("train", "held_out")}
    done = remove(dataset, RemovalList((), tuple(sorted(names))))
    for split, rows in before.items():
        assert rows_of(dataset, split) == [[snippet for snippet in row if snippet[0] not in names] for row in rows]
    assert done is not None
    assert done.repositories == tuple(sorted(names))
    assert verify(dataset).problems == []


def test_labels_index_marker_and_manifest_tell_what_is_left(dataset: Path) -> None:
    remove(dataset, RemovalList((), (rows_of(dataset)[5][0][0],)))
    manifest, rows = read_manifest(dataset), rows_of(dataset)
    counts = manifest.statistics["splits"]["train"]
    assert counts["rows"] == len(rows)
    assert counts["snippets"] == sum(map(len, rows))
    assert counts["mixed_rows"] == sum(len({snippet[0] for snippet in row}) == 2 for row in rows)
    assert counts["single_snippet_rows"] == sum(len(row) == 1 for row in rows)
    assert counts["single_file_rows"] == sum(len({snippet[:2] for snippet in row}) == 1 for row in rows)
    text_tokens = sum(len(snippet[3]) // 2 for row in rows for snippet in row)
    assert counts["text_tokens"] - counts["dropped_tokens"] == text_tokens
    assert counts["tokens"] == text_tokens + sum(len(row) + 1 for row in rows if row)
    for entry in manifest.shards("train"):
        index = RowIndex(dataset / entry.index_path, entry.rows)
        assert int(index.labels(np.arange(entry.rows)).num_tokens.sum()) == entry.tokens
        number = int(entry.path[-10:-4])
        result = read_marker(marker_path(dataset, number))
        assert result is not None
        assert result.shards["train"] == entry
    assert finish(dataset) == manifest


@pytest.mark.parametrize("mode", ["dense", "faithful", "nsp"])
def test_rows_are_counted_as_packing_counts_them(tmp_path: Path, mode: str) -> None:
    packing = PackingConfig(mode=PackingMode(mode), sequence_length=128, pool_tokens=4000)
    pack_dataset(make_config(tmp_path, packing=packing))
    checked = 0
    for task in range(3):
        result = read_marker(marker_path(tmp_path / "dataset", task))
        assert result is not None
        for split, entry in result.shards.items():
            with LineageTable(tmp_path / "dataset" / entry.lineage_path) as table:
                counts = row_counts(read_index(tmp_path / "dataset" / entry.index_path, entry.rows), read_lines(table))
            written = result.rows[split]
            assert counts.pop("kept_text_tokens") == written["text_tokens"] - written["dropped_tokens"]
            assert counts == {name: written[name] for name in counts}
            checked += 1
    assert checked >= 2


def test_a_second_removal_and_one_of_what_is_gone(dataset: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    first, second = RemovalList((blobs_of_row(dataset, 0)[0],)), RemovalList((blobs_of_row(dataset, 9)[0],))
    assert remove(dataset, first) is not None
    assert remove(dataset, second) is not None
    assert [entry.list_sha256 for entry in read_removed(dataset)] == [first.sha256, second.sha256]
    sums = checksums(dataset)
    (tmp_path / "blobs.txt").write_text(first.blobs[0] + "\n")
    code, printed, _ = run(capsys, dataset, "--blobs", tmp_path / "blobs.txt")
    assert (code, printed.splitlines()[0]) == (1, "nothing removed")
    assert f"1 of 1 blob ids are not in the data set: {first.blobs[0]}" in printed
    assert checksums(dataset) == sums
    assert verify(dataset).problems == []


def test_a_row_that_no_longer_alternates_passes(tmp_path: Path) -> None:
    packing = PackingConfig(sequence_length=128, pool_tokens=4000, piece_tokens=20)
    pack_dataset(make_config(tmp_path, packing=packing))
    for row in rows_of(tmp_path / "dataset"):
        left = [snippet[0] for snippet in row if snippet[2] != row[1][2]]
        if len(set(left)) == 2 and any(a == b for a, b in itertools.pairwise(left)):
            break
    remove(tmp_path / "dataset", RemovalList((row[1][2],)))
    assert left in [[snippet[0] for snippet in row] for row in rows_of(tmp_path / "dataset")]
    assert verify(tmp_path / "dataset").problems == []


def test_a_run_that_has_the_old_files_mapped_goes_on(dataset: Path) -> None:
    manifest = read_manifest(dataset)
    entry = manifest.shards("train")[0]
    reader = ShardReader(dataset / entry.path, manifest.layout(), entry.rows)
    before = reader.tokens(np.arange(entry.rows))
    remove(dataset, RemovalList(tuple(sorted(set(blobs_of_row(dataset, 0))))))
    assert np.array_equal(reader.tokens(np.arange(entry.rows)), before)
    reader.close()


def test_training_reads_the_rows_that_are_left(dataset: Path) -> None:
    pytest.importorskip("torch")
    from pretrain.data.loader import BatchPlan, validation_batches
    from pretrain.storage.local_rows import LocalRows

    remove(dataset, RemovalList(tuple(sorted(set(blobs_of_row(dataset, 0))))))
    tokenizer = load_tokenizer(dataset)
    plan = BatchPlan(0, 8, 4, tokenizer.special, tokenizer.ordinary_ids())
    rows = LocalRows(dataset, "train", tokenizer.fingerprint())
    seen: list[int] = []
    for batch in validation_batches(rows, plan):
        seen += batch.row_numbers_B.tolist()
    emptied = {number for number, row in enumerate(rows_of(dataset)) if not row}
    assert 0 in emptied
    assert sorted(seen) == [number for number in range(len(rows)) if number not in emptied]


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, moment: int, *, after: bool) -> Callable[[], int]:
    """Stop the process at the `moment`-th rename or removal of a file, before or after it, and clean nothing up."""
    calls = 0
    originals = {name: getattr(Path, name) for name in ("replace", "unlink")}

    def patched(name: str) -> Callable[..., Any]:
        def act(self: Path, *words: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > moment:
                raise Killed
            if calls == moment and not after:
                raise Killed
            result = originals[name](self, *words, **options)
            if calls == moment:
                raise Killed
            return result

        return act

    for name in originals:
        monkeypatch.setattr(Path, name, patched(name))
    return lambda: calls


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_moment_is_completed_by_the_same_command(packed: Path, tmp_path: Path, *, after: bool) -> None:
    whole = Path(shutil.copytree(packed, tmp_path / "whole"))
    removal = some_blobs(whole)
    remove(whole, removal)
    expected = checksums(whole, WITHOUT)
    moment, unfinished = 0, 0
    while True:
        moment += 1
        dataset = Path(shutil.copytree(packed, tmp_path / f"killed-{moment}"))
        with pytest.MonkeyPatch.context() as monkeypatch:
            calls = kill_at(monkeypatch, moment, after=after)
            with contextlib.suppress(Killed):
                remove(dataset, removal)
            was_killed = calls() >= moment
        if not was_killed:
            break
        begun = read_unfinished(dataset)
        if begun is not None:
            unfinished += 1
            problems = verify(dataset).problems
            assert len(problems) == 1
            assert problems[0].startswith(
                f"{dataset / 'removal.json'}: the removal begun {begun.date} (list {removal.sha256[:16]}"
            )
            with pytest.raises(MoseError, match="is unfinished; expected `mose-data remove` to be run again with the same list"):
                remove(dataset, RemovalList(("0" * 40,)))
        remove(dataset, removal)
        assert checksums(dataset, WITHOUT) == expected, moment
        assert len(read_removed(dataset)) == 1
        assert read_removed(dataset)[0].snippets == read_removed(whole)[0].snippets
        assert verify(dataset).problems == []
        assert not list(dataset.rglob("*.partial"))
        shutil.rmtree(dataset)
    # Journal, four files of each of two shards, manifest, record, and the journal's end.
    assert unfinished >= 10


def test_a_real_kill(packed: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(packed, tmp_path / "whole"))
    removal = RemovalList((), tuple(sorted({row[0][0] for row in rows_of(whole)})[:20]))
    (tmp_path / "names.txt").write_text("\n".join(removal.repositories))
    remove(whole, removal)
    dataset = Path(shutil.copytree(packed, tmp_path / "killed"))
    line = [sys.executable, "-m", "data_prep.cli", "remove", str(dataset), "--repositories", str(tmp_path / "names.txt")]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (dataset / "removal.json").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert subprocess.run(line, check=False, capture_output=True).returncode == 0
    assert checksums(dataset, WITHOUT) == checksums(whole, WITHOUT)


def test_a_dry_run_tells_and_changes_nothing(dataset: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    removal = some_blobs(dataset)
    (tmp_path / "blobs.txt").write_text("\n".join([*removal.blobs, "1" * 40]))
    sums = checksums(dataset)
    code, printed, _ = run(capsys, dataset, "--blobs", tmp_path / "blobs.txt", "--dry-run")
    assert code == 1
    assert checksums(dataset) == sums
    told = printed.splitlines()
    code, printed, _ = run(capsys, dataset, "--blobs", tmp_path / "blobs.txt")
    assert code == 1
    assert printed.splitlines() == [f"removed: {told[-2]}", told[-1]]
    assert told[-1] == f"1 of {len(removal.blobs) + 1} blob ids are not in the data set: {'1' * 40}"
    assert "shard-000001.tar" in "".join(told)


def test_the_record_says_what_went(dataset: Path) -> None:
    removal = some_blobs(dataset)
    remove(dataset, RemovalList((*removal.blobs, "f" * 40)))
    line = json.loads((dataset / "removed.jsonl").read_text())
    assert (line["listed_blobs"], line["blobs"]) == (len(removal.blobs) + 1, list(removal.blobs))
    assert line["date"].endswith("+00:00")
    assert line["shards"] == ["train/shard-000000.tar", "train/shard-000001.tar"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1234\n", "blobs.txt: line 1: '1234' is not a blob id, expected 40 hexadecimal digits"),
        ("# c\n" + "a" * 40 + "\n" + "g" * 40, "blobs.txt: line 3: '" + "g" * 40 + "' is not a blob id"),
        ("# nothing\n", "blobs.txt: no entry, expected one blob id or repository name per line"),
        (b"\xff\xfe", "blobs.txt: not a readable text file"),
    ],
)
def test_bad_lists(dataset: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str | bytes, expected: str) -> None:
    (tmp_path / "blobs.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    sums = checksums(dataset)
    code, printed, error = run(capsys, dataset, "--blobs", tmp_path / "blobs.txt")
    assert (code, printed, error.count("\n")) == (2, "", 1)
    assert expected in error
    assert checksums(dataset) == sums


def test_missing_files_and_options(dataset: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "blobs: not given" in run(capsys, dataset)[2]
    assert "nowhere.txt: cannot be read" in run(capsys, dataset, "--blobs", "nowhere.txt")[2]
    (tmp_path / "blobs.txt").write_text("0" * 40)
    assert "is on an object store" in run(capsys, "memory://a/dataset", "--blobs", tmp_path / "blobs.txt")[2]
    assert "manifest.json: no such file" in run(capsys, tmp_path, "--blobs", tmp_path / "blobs.txt")[2]
    (tmp_path / "blobs.txt").write_text(blobs_of_row(dataset, 0)[0])
    (dataset / "tasks" / "task-000000.json").unlink()
    code, _, error = run(capsys, dataset, "--blobs", tmp_path / "blobs.txt")
    assert (code, error.count("\n")) == (2, 1)
    assert "tasks: 1 of 3 have not finished" in error
    assert not (dataset / "removal.json").exists()


def test_a_shard_that_is_not_what_its_lineage_says_is_left_alone(dataset: Path) -> None:
    manifest, special = read_manifest(dataset), load_tokenizer(dataset).special
    shard, layout = dataset / "train" / "shard-000000.tar", manifest.layout()
    blob = blobs_of_row(dataset, 0)[0]
    content = bytearray(shard.read_bytes())
    at = layout.token_offset + (layout.sequence_length - 2) * layout.dtype.itemsize
    content[at : at + 2] = np.array([special.sep], layout.dtype).tobytes()
    shard.write_bytes(content)
    with pytest.raises(MoseError, match="row 0 does not match its lineage"):
        remove(dataset, RemovalList((blob,)))
    assert shard.read_bytes() == content


def test_lists_are_read_in_any_order_and_spelling(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("B" * 40 + "\n" + "a" * 40 + " # why\n\n")
    (tmp_path / "b.txt").write_text("a" * 40 + "\n" + "b" * 40 + "\n" + "b" * 40)
    first, second = (read_removal_list(tmp_path / name, None) for name in ("a.txt", "b.txt"))
    assert first == second == RemovalList(("a" * 40, "b" * 40))
    assert first.sha256 != RemovalList(("a" * 40,), ("b" * 40,)).sha256


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def lead_outside(path: Path, entry_of: Callable[[Any], dict[str, str]]) -> None:
    """Let an entry of a JSON file name the files of the data set beside its own."""
    values = json.loads(path.read_text("utf-8"))
    entry = entry_of(values)
    for name in ("path", "index_path", "lineage_path"):
        entry[name] = "../dataset/" + entry[name]
    path.write_text(json.dumps(values), "utf-8")


@pytest.mark.parametrize("how", ["manifest", "marker", "both", "linked split", "linked tasks", "linked file"])
def test_another_data_set_is_never_changed(dataset: Path, tmp_path: Path, how: str) -> None:
    """`shared/cases/reliability/remove_outside.sh`: a data set that names, or links to, files of its neighbour."""
    hostile = tmp_path / "hostile"
    shutil.copytree(dataset, hostile)
    if how in ("manifest", "both"):
        lead_outside(hostile / "manifest.json", lambda values: values["splits"]["train"][0])
    if how in ("marker", "both"):
        lead_outside(hostile / "tasks" / "task-000000.json", lambda values: values["shards"]["train"])
    link = {"linked split": "train", "linked tasks": "tasks", "linked file": "train/lineage-000000.parquet"}.get(how)
    if link:
        shutil.rmtree(hostile / link) if (hostile / link).is_dir() else (hostile / link).unlink()
        (hostile / link).symlink_to(dataset / link)
    before, own = files_of(dataset), files_of(hostile)
    repository = rows_of(dataset)[0][0][0]
    with pytest.raises(MoseError, match=r"expected a (relative )?path"):
        remove(hostile, RemovalList((), (repository,)))
    assert files_of(dataset) == before
    assert files_of(hostile) == own


def test_each_removal_makes_a_generation(dataset: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    first = read_manifest(dataset)
    assert first.generations == (first.content_root,)
    names = sorted({row[0][0] for row in rows_of(dataset)})[:2]
    for number, name in enumerate(names, start=2):
        (tmp_path / "list").write_text(f"{name}\n", "utf-8")
        command = ["remove", str(dataset), "--repositories", str(tmp_path / "list")]
        assert run_command("mose-data", "", {"remove": COMMAND}, command) == 0
        assert f"generation {number} of the data set" in capsys.readouterr().err
        manifest = read_manifest(dataset)
        assert manifest.generations == (*first.generations, manifest.content_root)
        assert manifest.content_root != first.content_root
        first = manifest
    # To finish again, or to remove what is gone, makes none.
    assert finish(dataset).generations == first.generations
    assert remove(dataset, RemovalList((), tuple(names))) is None
    assert read_manifest(dataset).generations == first.generations


def test_lists_follow_the_rules_of_every_list(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = sorted({name for row in rows_of(packed) for name, *_ in row})
    kept, gone = names[0], names[1]
    for number, text in enumerate((f"{gone.upper()}\n", f"\ufeff{gone}\r\n", f'# why\n"{gone}" # asked\n', f"?{gone[1:-1]}*\n")):
        dataset = tmp_path / f"copy-{number}"
        shutil.copytree(packed, dataset)
        (tmp_path / "names.txt").write_text(text, "utf-8")
        code, printed, _ = run(capsys, dataset, "--repositories", tmp_path / "names.txt", "--dry-run")
        assert code == 0
        assert f"  {gone} /file_0.py: " in printed
        assert run(capsys, dataset, "--repositories", tmp_path / "names.txt")[0] == 0
        left = {name for row in rows_of(dataset) for name, *_ in row}
        assert (gone in left, kept in left or number == 3) == (False, True)


def test_a_name_that_matches_nothing_is_told_with_near_ones(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sums = checksums(dataset)
    (tmp_path / "names.txt").write_text("repository-99\nrepository-01#2\n")
    code, printed, _ = run(capsys, dataset, "--repositories", tmp_path / "names.txt")
    assert code == 1
    assert printed.startswith(
        "nothing removed\n2 of 2 repositories are not in the data set: repository-01#2 (near: repository-01,"
    )
    assert checksums(dataset) == sums

"""lineage: rows to files and files to rows agree with the whole table read at once, on a terminal, in a pipe and as JSON."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.execution.pack import pack_dataset
from data_prep.filters.config import FiltersConfig
from data_prep.pipeline.split_writer import lineage_path
from data_prep.shards.lineage import LINEAGE_SCHEMA, REPLACED_COLUMN, LineageTable
from data_prep.shards.rows import key_of
from data_prep.tools.lineage import COLUMNS, COMMAND, Search, find_lines
from data_prep.tools.removal.command import remove
from data_prep.tools.removal.removal_list import RemovalList
from data_prep.tools.verify import verify
from mose.command import run_command
from mose.dataset.manifest import read_manifest
from mose.errors import MoseError
from mose.files.storage import storage_path
from tests.data_prep.repositories import made_text, make_config


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    pack_dataset(make_config(folder, 40))
    return folder / "dataset"


def everything(dataset: Path) -> list[dict[str, Any]]:
    """All lines of all tables, as the command should give them."""
    manifest, lines = read_manifest(dataset), []
    for split in ("train", "held_out"):
        first = 0
        for entry in manifest.shards(split):
            for line in pq.read_table(dataset / entry.lineage_path).to_pylist():
                place = line["row"]
                lines.append({**line, "split": split, "row": first + place, "key": key_of(entry, place)})
            first += entry.rows
    return lines


def lineage(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = run_command("mose-data", "", {"lineage": COMMAND}, ["lineage", *map(str, words)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def as_json(capsys: pytest.CaptureFixture[str], *words: object) -> list[dict[str, Any]]:
    code, printed, _ = lineage(capsys, *words, "--json")
    assert code == 0
    return [json.loads(line) for line in printed.splitlines()]


def test_a_row_gives_its_files(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = read_manifest(dataset).shards("train")[0].rows + 2
    wanted = [line for line in everything(dataset) if (line["split"], line["row"]) == ("train", row)]
    assert wanted
    assert as_json(capsys, dataset, "--row", row) == wanted
    assert as_json(capsys, dataset, "--key", wanted[0]["key"]) == wanted
    held_out = [line for line in everything(dataset) if (line["split"], line["row"]) == ("held_out", 1)]
    assert as_json(capsys, dataset, "--row", 1, "--split", "held_out") == held_out


def test_a_list_of_rows_and_keys(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = read_manifest(dataset)
    shards = manifest.shards("train")
    rows = {0, 5, shards[0].rows, shards[0].rows + 7}
    (tmp_path / "rows.txt").write_text(f"5\n0 # the first\n\n{key_of(shards[1], 0)}\n{shards[0].rows + 7}\n5\n")
    wanted = [line for line in everything(dataset) if line["split"] == "train" and line["row"] in rows]
    assert as_json(capsys, dataset, "--rows", tmp_path / "rows.txt") == wanted


def test_blobs_and_a_repository_give_their_rows(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = everything(dataset)
    blobs = {lines[0]["blob_id"], lines[-1]["blob_id"]}
    assert {line["split"] for line in lines if line["blob_id"] in blobs} == {"train", "held_out"}
    found = as_json(capsys, dataset, "--blob", *(blob.upper() for blob in blobs))
    assert found == [line for line in lines if line["blob_id"] in blobs]
    name = lines[0]["repository"]
    assert as_json(capsys, dataset, "--repository", name) == [line for line in lines if line["repository"] == name]


def test_nothing_found_is_exit_code_1(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lineage(capsys, dataset, "--blob", "0" * 40) == (1, "", f"nothing found: {'0' * 40} in {dataset}\n")
    assert lineage(capsys, dataset, "--repository", "nobody/nothing")[0] == 1
    train_only = everything(dataset)[0]["repository"]
    assert lineage(capsys, dataset, "--repository", train_only, "--split", "held_out")[0] == 1


def test_a_pipe_gets_tab_separated_lines(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed, _ = lineage(capsys, dataset, "--row", 3)
    header, *rows = [line.split("\t") for line in printed.splitlines()]
    assert (code, tuple(header)) == (0, COLUMNS)
    wanted = [line for line in everything(dataset) if (line["split"], line["row"]) == ("train", 3)]
    assert rows == [[str(line[name]) for name in COLUMNS] for line in wanted]
    assert len(lineage(capsys, dataset, "--repository", wanted[0]["repository"], "--limit", 2)[1].splitlines()) == 3


def test_names_with_tabs_and_control_characters_stay_in_their_cell(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = read_manifest(dataset).shards("train")[0]
    copy = tmp_path / "dataset"
    (copy / "train").mkdir(parents=True)
    (copy / "manifest.json").write_bytes((dataset / "manifest.json").read_bytes())
    lines = pq.read_table(dataset / entry.lineage_path).to_pylist()
    lines[0]["path"] = "/a\tb\nc\x1b[31m.py"
    pq.write_table(pa.Table.from_pylist(lines, schema=LINEAGE_SCHEMA), copy / entry.lineage_path)
    printed = lineage(capsys, copy, "--row", lines[0]["row"])[1]
    assert "\t/a\\tb\\nc\\x1b[31m.py\t" in printed


def test_a_progress_bar_on_a_terminal_leaves_the_pipe_alone(dataset: Path) -> None:
    master, slave = pty.openpty()
    name = everything(dataset)[0]["repository"]
    line = [sys.executable, "-m", "data_prep.cli", "lineage", str(dataset), "--repository", name]
    environment = {**os.environ, "TERM": "xterm"}
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=slave, check=False, text=True, env=environment, timeout=120)
    os.close(slave)
    os.close(master)
    wanted = [line for line in everything(dataset) if line["repository"] == name]
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == len(wanted) + 1


def test_a_terminal_gets_a_table(dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "220")
    line = everything(dataset)[0]
    printed = lineage(capsys, dataset, "--row", line["row"])[1]
    for text in (line["repository"], line["path"], line["key"], line["blob_id"][:12], "Python", "no_license"):
        assert text in printed
    code, printed, error = lineage(capsys, dataset, "--repository", line["repository"], "--limit", 1)
    assert (code, error) == (0, "the first 1 snippets; more with --limit, all when piped\n")
    assert printed.count(line["repository"]) == 1


def test_a_data_set_on_an_object_store(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remote = storage_path("memory://traced/dataset")
    for path in dataset.rglob("*"):
        if path.suffix in (".json", ".parquet"):
            (remote / path.relative_to(dataset).as_posix()).write_bytes(path.read_bytes())
    name = everything(dataset)[0]["repository"]
    assert as_json(capsys, "memory://traced/dataset", "--repository", name) == as_json(capsys, dataset, "--repository", name)


def test_only_row_groups_that_may_hold_the_row_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [{**dict.fromkeys(LINEAGE_SCHEMA.names, 0), "row": row, "snippet": 0} for row in range(100)]
    for line in lines:
        line.update(dict.fromkeys(("repository", "path", "blob_id", "licence", "language"), f"r{line['row']}"))
    pq.write_table(pa.Table.from_pylist(lines, schema=LINEAGE_SCHEMA), tmp_path / "lineage.parquet", row_group_size=10)
    read: list[int] = []
    original = pq.ParquetFile.read_row_group

    def counted(self: Any, group: int, **options: Any) -> Any:
        read.append(group)
        return original(self, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    with LineageTable(tmp_path / "lineage.parquet") as table:
        found = [line["row"] for part in table.of_rows(np.array([7, 42, 49])) for line in part.to_pylist()]
        assert (found, read) == ([7, 42, 49], [0, 4])
        read.clear()
        hits = [line["row"] for part in table.of_values("repository", pa.array(["r55"])) for line in part.to_pylist()]
        # Each group's names once, and the whole of the one with a hit.
        assert (hits, read) == ([55], [*range(6), 5, *range(6, 10)])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "lineage: nothing given, expected one of row, key, rows, blob, repository"),
        (["--row=1", "--repository=a"], "lineage: row and repository given, expected one of"),
        (["--row=100000"], "row: is 100000, expected 0 to "),
        (["--row=-1"], "row: is -1, expected 0 to "),
        (["--rows=nowhere.txt"], "nowhere.txt: cannot be read"),
        (["--split=test", "--row=1"], "split 'test' has no rows"),
        (["--row=1", "--limit=0"], "limit: is 0, expected 1 or more"),
    ],
)
def test_bad_input_is_one_line(dataset: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str) -> None:
    code, printed, error = lineage(capsys, dataset, *words)
    assert (code, printed, error.count("\n")) == (2, "", 1)
    assert expected in error


def test_a_bad_line_of_a_list_is_named(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.txt").write_text("1\nsecond\n")
    assert (
        "rows.txt: line 2: key: is 'second', expected shard and row"
        in lineage(capsys, dataset, "--rows", tmp_path / "rows.txt")[2]
    )
    (tmp_path / "rows.txt").write_text("# nothing\n")
    assert "rows.txt: holds no row" in lineage(capsys, dataset, "--rows", tmp_path / "rows.txt")[2]


def test_a_damaged_table_is_named(dataset: Path, tmp_path: Path) -> None:
    entry = read_manifest(dataset).shards("train")[0]
    (tmp_path / "train").mkdir()
    path = tmp_path / entry.lineage_path
    search = Search(column="repository", values=("a",), splits=("train",))
    with pytest.raises(MoseError, match="no such lineage table"):
        list(find_lines(tmp_path, read_manifest(dataset), search))
    path.write_bytes((dataset / entry.lineage_path).read_bytes()[:-100])
    with pytest.raises(MoseError, match="not a readable parquet file"):
        list(find_lines(tmp_path, read_manifest(dataset), search))
    pq.write_table(pa.table({"row": [1]}), path)
    with pytest.raises(MoseError, match=r"columns are \['row'\], expected"):
        list(find_lines(tmp_path, read_manifest(dataset), search))


def test_files_in_which_something_was_replaced_are_marked(tmp_path: Path) -> None:
    config = make_config(tmp_path, 4, held_out_fraction=0.0, num_tasks=1)
    marked = tmp_path / "repositories" / "repository-01" / "secret.py"
    marked.write_text("# ada@analytical.org, 93.184.215.14, ada@analytical.org\n" + made_text(30, "secret"), "utf-8")
    pack_dataset(config)
    dataset = tmp_path / "dataset"

    def marks() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {"": set()}
        for line in pq.read_table(dataset / lineage_path("train", 0)).to_pylist():
            found.setdefault(line[REPLACED_COLUMN], set()).add(line["path"])
        return found

    assert {kinds: paths for kinds, paths in marks().items() if kinds} == {"email 2, ip_address 1": {"/secret.py"}}
    assert "/secret.py" not in marks()[""] and len(marks()[""]) > 1
    remove(dataset, RemovalList((), ("repository-02",)))
    assert {kinds: paths for kinds, paths in marks().items() if kinds} == {"email 2, ip_address 1": {"/secret.py"}}
    verify(dataset)


def test_where_nothing_is_replaced_the_table_is_that_of_the_first_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack_dataset(make_config(tmp_path, 4, num_tasks=1, filters=FiltersConfig(secrets="keep", personal_data="drop")))
    assert pq.read_schema(tmp_path / "dataset" / lineage_path("train", 0)).names == LINEAGE_SCHEMA.names
    assert as_json(capsys, tmp_path / "dataset", "--row", 0)[0][REPLACED_COLUMN] == ""

"""Grouping by repository: equal to a plain grouping in Python, in any memory, after any kill, and what is refused or left out."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.sources.ingest.grouping import parts, run
from data_prep.sources.ingest.grouping.bucket_file import BucketWriter
from data_prep.sources.ingest.grouping.columns import KEY, FlatInput, InputCounts, layout_of, repository_keys
from data_prep.sources.ingest.grouping.command import COMMAND
from data_prep.sources.ingest.grouping.config import GroupConfig
from data_prep.sources.ingest.grouping.run import group
from data_prep.sources.ingest.grouping.sorting import sorted_tables
from data_prep.sources.registry import (
    SourcesConfig,
    grouped_parts,
    list_repositories,
    read_part,
    read_repository,
    source_fingerprint,
)
from mose.command import run_command
from mose.errors import MoseError
from mose.seeding import derive_key
from tests.data_prep.stack_rows import Row, stack_file, write_files, write_repositories

ROOT = Path(__file__).parents[5]
Read = list[tuple[str, list[tuple[str, str]]]]


def made_rows(count: int, seed: int = 0) -> list[Row]:
    shuffled = random.Random(seed)
    rows = []
    for i in range(count):
        files = [stack_file(f"/{j % 3}/{j}.py", f"{i} {j} " * shuffled.randrange(30)) for j in range(shuffled.randrange(1, 12))]
        shuffled.shuffle(files)
        rows.append((f"owner/{i:03d}", files))
    shuffled.shuffle(rows)
    return rows


def a_config(tmp_path: Path, *inputs: Path, **changes: Any) -> GroupConfig:
    fields = {"inputs": tuple(map(str, inputs)), "output": str(tmp_path / "grouped"), "num_parts": 5}
    return GroupConfig(**{**fields, **changes})  # type: ignore[arg-type]


def read_all(output: str) -> Read:
    config = SourcesConfig(stack_v2=(output,))
    return [
        (ref.name, [(file.path, file.content.decode()) for file in files])
        for part in grouped_parts(config)
        for ref, files in read_part(part, config)
    ]


def expected(rows: list[Row], seed: int = 0) -> Read:
    """What grouping means: dictionaries and sorts, no files."""
    repositories: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, files in rows:
        repositories[name] += [(file["path"], file["content"]) for file in files]
    names = sorted(repositories, key=lambda name: derive_key(seed, "group", name))
    return [(name, sorted(repositories[name], key=lambda file: file[0])) for name in names if repositories[name]]


def small_budget(monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    monkeypatch.setattr(run.Grouping, "budget_bytes", property(lambda grouping: budget))


@pytest.mark.parametrize("write", [write_repositories, write_files])
@pytest.mark.parametrize("budget", [30_000, 1 << 26])
def test_every_form_and_any_memory_give_the_same_repositories_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any, budget: int
) -> None:
    rows = made_rows(45)
    small_budget(monkeypatch, budget)
    inputs = [write(tmp_path / f"{i}.parquet", rows[i * 15 : (i + 1) * 15], with_content=True) for i in range(3)]
    config = a_config(tmp_path, *inputs)
    folder = group(config)
    assert read_all(config.output) == expected(rows)
    assert (folder.repositories, folder.files) == (45, sum(len(files) for _, files in rows))
    assert folder.bytes == sum(file["length_bytes"] for _, files in rows for file in files)
    assert not (tmp_path / "grouped" / ".grouping").exists() and not list(tmp_path.rglob("*.partial"))


def test_rows_of_one_repository_in_several_files_become_one(tmp_path: Path) -> None:
    rows = [(f"o/{i % 4}", [stack_file(f"/{i:02d}.py", str(i))]) for i in range(12)]
    inputs = [write_repositories(tmp_path / "a.parquet", rows[:6], True), write_files(tmp_path / "b.parquet", rows[6:], True)]
    config = a_config(tmp_path, *inputs)
    assert group(config).repositories == 4
    assert read_all(config.output) == expected(rows)


def test_the_seed_decides_parts_and_order_and_parts_share_out_the_input(tmp_path: Path) -> None:
    rows = [(f"o/{i}", [stack_file("/a", str(i))]) for i in range(300)]
    source = write_repositories(tmp_path / "in.parquet", rows, True)
    outputs = [str(tmp_path / f"seed-{seed}") for seed in range(2)]
    folders = [group(a_config(tmp_path, source, output=output, seed=seed)) for seed, output in enumerate(outputs)]
    assert [read_all(output) for output in outputs] == [expected(rows, seed) for seed in range(2)]
    assert folders[0].fingerprint != folders[1].fingerprint
    assert all(35 < entry.repositories < 85 for folder in folders for entry in folder.parts)


def test_columns_keep_their_values_and_absent_ones_are_null(tmp_path: Path) -> None:
    bare = pa.table({"repo_name": ["o/r"], "blob_id": ["0" * 40], "path": ["src/a.py"], "length_bytes": [7], "github_id": [5]})
    pq.write_table(bare, tmp_path / "in.parquet")
    config = a_config(tmp_path, tmp_path / "in.parquet", num_parts=1, repository_columns=("github_id", "gha_language"))
    group(config)
    (row,) = pq.read_table(tmp_path / "grouped" / "part-00000.parquet").to_pylist()
    (file,) = row.pop("files")
    assert row == {"repo_name": "o/r", "github_id": 5, "gha_language": None, "num_files": 1}
    assert (file["path"], file["length_bytes"], file["language"], file["is_vendor"]) == ("/src/a.py", 7, None, None)
    assert "content" not in file


def test_a_repository_above_the_row_size_is_several_rows_and_one_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "ROW_BYTES", 3000)
    monkeypatch.setattr(parts, "ROW_GROUP_BYTES", 6000)
    small_budget(monkeypatch, 20_000)
    rows = [("o/giant", [stack_file(f"/{i:03d}.py", "x" * 500) for i in range(90)]), *made_rows(10)]
    config = a_config(tmp_path, write_files(tmp_path / "in.parquet", rows, True), num_parts=2)
    folder = group(config)
    assert read_all(config.output) == expected(rows)
    assert folder.repositories == 11 and sum(entry.rows for entry in folder.parts) > 40
    sources = SourcesConfig(stack_v2=(config.output,))
    refs = list_repositories(sources)
    listed = {ref.name: [file.path for file in read_repository(ref, sources)] for ref in refs}
    assert listed == {name: [path for path, _ in files] for name, files in expected(rows)}


def test_repositories_without_files_are_counted(tmp_path: Path) -> None:
    config = a_config(tmp_path, write_repositories(tmp_path / "in.parquet", [("o/none", []), ("o/one", [stack_file("/a", "1")])]))
    folder = group(config)
    assert (folder.repositories, folder.empty_repositories) == (1, 1)


def test_a_row_that_memory_cannot_hold_keeps_everything_but_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        ("o/small", [stack_file("/a", "small")]),
        ("o/huge", [stack_file(f"/{i}", f"{i}" * (70 << 20)) for i in range(2)]),
    ]
    source = write_repositories(tmp_path / "in.parquet", rows, True)
    # A quarter of the memory, 128 MiB, is for one row.
    words = ["group", f"--inputs=['{source}']", f"--output={tmp_path / 'grouped'}", "--num_parts=1", f"--memory_bytes={1 << 29}"]
    assert run_command("mose-data", "", {"group": COMMAND}, words) == 0
    assert "contents of 1 repositories omitted, too large for memory_bytes: o/huge" in capsys.readouterr().err
    sources = SourcesConfig(stack_v2=(str(tmp_path / "grouped"),))
    found = {ref.name: [file.problem for file in read_repository(ref, sources)] for ref in list_repositories(sources)}
    assert found == {"o/small": [""], "o/huge": ["no_content"] * 2}


def test_a_second_run_does_nothing_and_other_settings_are_refused(tmp_path: Path) -> None:
    source = write_repositories(tmp_path / "in.parquet", made_rows(5), True)
    config = a_config(tmp_path, source)
    folder = group(config)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "grouped").iterdir()}
    assert group(config) == folder
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "grouped").iterdir()} == times
    with pytest.raises(MoseError, match="output: holds a grouping of other inputs or settings"):
        group(a_config(tmp_path, source, seed=1))
    write_repositories(source, made_rows(6), True)
    with pytest.raises(MoseError, match="output: holds a grouping of other inputs or settings"):
        group(config)


def test_a_run_goes_on_where_a_failure_stopped_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [write_repositories(tmp_path / f"{i}.parquet", made_rows(10, i), True) for i in range(3)]
    config = a_config(tmp_path, *inputs)
    done: list[int] = []

    def failing(grouping: run.Grouping, bucket: int) -> None:
        if len(done) == 2:
            raise OSError(28, "No space left on device")
        done.append(bucket)
        write(grouping, bucket)

    write = run.write_bucket
    monkeypatch.setattr(run, "write_bucket", failing)
    with pytest.raises(OSError, match="No space"):
        group(config)
    with pytest.raises(MoseError, match="holds an unfinished grouping of other inputs or settings"):
        group(a_config(tmp_path, *inputs, seed=3))
    partitioned: list[int] = []
    monkeypatch.setattr(run, "partition_input", lambda grouping, number: partitioned.append(number))
    again: list[int] = []

    def counted(grouping: run.Grouping, bucket: int) -> None:
        again.append(bucket)
        write(grouping, bucket)

    monkeypatch.setattr(run, "write_bucket", counted)
    group(config)
    assert (partitioned, done, again) == ([], [0, 1], [2, 3, 4])
    assert read_all(config.output) == expected([row for i in range(3) for row in made_rows(10, i)])


def test_workers_killed_at_any_moment_leave_a_run_that_completes(tmp_path: Path) -> None:
    rows = made_rows(300)
    inputs = [write_files(tmp_path / f"{i}.parquet", rows[i * 50 : (i + 1) * 50], True, 64) for i in range(6)]
    script = "import sys; from data_prep.sources.ingest.grouping.config import GroupConfig\n"
    script += "from data_prep.sources.ingest.grouping.run import group\n"
    script += "if __name__ == '__main__': group(GroupConfig(inputs=(sys.argv[1],), output=sys.argv[2], num_parts=5))"
    for wait in (0.05, 0.3):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "*.parquet"), str(tmp_path / "grouped")], cwd=ROOT
        )
        deadline = time.monotonic() + 60
        while not (tmp_path / "grouped" / ".grouping").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
    config = a_config(tmp_path, *inputs)
    group(config)
    assert read_all(config.output) == expected(rows)
    group(a_config(tmp_path, *inputs, output=str(tmp_path / "other"), num_workers=2))
    assert read_all(str(tmp_path / "other")) == expected(rows)
    same = [(tmp_path / name / "part-00003.parquet").read_bytes() for name in ("grouped", "other")]
    assert same[0] == same[1]


def test_two_runs_at_once_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = a_config(tmp_path, write_repositories(tmp_path / "in.parquet", made_rows(3), True))
    refused: list[str] = []

    def again(grouping: run.Grouping, bucket: int) -> None:
        with pytest.raises(MoseError, match="another process works in this folder") as told:
            group(config)
        refused.append(str(told.value))
        write(grouping, bucket)

    write = run.write_bucket
    monkeypatch.setattr(run, "write_bucket", again)
    group(config)
    assert len(refused) == 5


def test_parts_on_an_object_store(tmp_path: Path) -> None:
    rows = made_rows(12)
    config = a_config(
        tmp_path,
        write_repositories(tmp_path / "in.parquet", rows, True),
        output="memory://grouping-test",
        scratch=str(tmp_path / "s"),
    )
    group(config)
    assert read_all(config.output) == expected(rows) and list(tmp_path.iterdir()) == [tmp_path / "in.parquet"]


def test_a_part_that_was_replaced_is_refused(tmp_path: Path) -> None:
    config = a_config(tmp_path, write_repositories(tmp_path / "in.parquet", made_rows(12), True), num_parts=2)
    group(config)
    first, second = sorted((tmp_path / "grouped").glob("part-*"))
    first.write_bytes(second.read_bytes())
    with pytest.raises(MoseError, match=r"part-00000\.parquet: is not the file that grouped\.json describes"):
        read_all(config.output)


def test_a_part_outside_of_the_folder_is_refused(tmp_path: Path) -> None:
    config = a_config(tmp_path, write_repositories(tmp_path / "in.parquet", made_rows(12), True), num_parts=2)
    group(config)
    path = tmp_path / "grouped" / "grouped.json"
    description = json.loads(path.read_text())
    outside = tmp_path / "outside.parquet"
    first = tmp_path / "grouped" / description["parts"][0]["name"]
    first.rename(outside)
    first.symlink_to(outside)
    with pytest.raises(MoseError, match=r"grouped\.json: parts: name: .* is a link to .*outside\.parquet"):
        read_all(config.output)
    description["parts"][0]["name"] = "../outside.parquet"
    path.write_text(json.dumps(description))
    with pytest.raises(MoseError, match=r"grouped\.json: parts: name: '\.\./outside\.parquet', expected a relative path"):
        read_all(config.output)


def test_the_fingerprint_is_of_what_was_grouped(tmp_path: Path) -> None:
    outputs = []
    for i, rows in enumerate((made_rows(9), made_rows(9), made_rows(9, 1))):
        source = write_repositories(tmp_path / f"{i}.parquet", rows, True)
        outputs.append(a_config(tmp_path, source, output=str(tmp_path / f"out-{i}")).output)
        group(a_config(tmp_path, source, output=outputs[-1]))
    first, same, other = (source_fingerprint(SourcesConfig(stack_v2=(output,))) for output in outputs)
    assert first == same != other


@pytest.mark.parametrize(("column", "told"), [("repo_name", "repo_name"), ("path", "files"), ("blob_id", "blob_id")])
def test_a_missing_column_is_named(tmp_path: Path, column: str, told: str) -> None:
    source = write_files(tmp_path / "in.parquet", made_rows(3))
    dropped = [column, "blob_id"] if column == "path" else [column]
    pq.write_table(pq.read_table(source).drop_columns(dropped), source)
    with pytest.raises(MoseError, match=rf"in\.parquet: {told}: no such column"):
        group(a_config(tmp_path, source))
    assert not (tmp_path / "grouped").exists()


def test_a_column_of_another_type_and_a_row_without_name_are_told(tmp_path: Path) -> None:
    wrong = pa.table({"repo_name": ["o/r"], "blob_id": ["0" * 40], "path": ["/a"], "length_bytes": ["many"]})
    pq.write_table(wrong, tmp_path / "wrong.parquet")
    with pytest.raises(MoseError, match=r"wrong\.parquet: length_bytes: is string, expected int64"):
        group(a_config(tmp_path, tmp_path / "wrong.parquet"))
    nameless = pa.table({"repo_name": ["o/r", None], "blob_id": ["0" * 40] * 2, "path": ["/a"] * 2})
    pq.write_table(nameless, tmp_path / "nameless.parquet")
    with pytest.raises(MoseError, match=r"nameless\.parquet: repo_name: row 1 is empty"):
        group(a_config(tmp_path, tmp_path / "nameless.parquet", output=str(tmp_path / "other")))


def test_a_truncated_input_is_named(tmp_path: Path) -> None:
    source = write_files(tmp_path / "in.parquet", made_rows(30), True)
    os.truncate(source, source.stat().st_size // 2)
    with pytest.raises(MoseError, match=r"in\.parquet: not a complete parquet file"):
        group(a_config(tmp_path, source))


def test_values_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    for name, value in {
        "inputs": (),
        "output": "",
        "num_parts": 0,
        "memory_bytes": 1 << 20,
        "num_workers": 0,
        "file_columns": ("x",),
        "repository_columns": ("files",),
    }.items():
        with pytest.raises(MoseError, match=name):
            GroupConfig(**{"inputs": ("a",), "output": str(tmp_path), name: value})  # type: ignore[arg-type]
    with pytest.raises(MoseError, match="scratch"):
        GroupConfig(inputs=("a",), output="s3://bucket/folder")


@settings(max_examples=25, deadline=None)
@given(
    names=st.lists(st.integers(0, 6), min_size=1, max_size=60),
    sizes=st.randoms(use_true_random=False),
    budget=st.integers(900, 9000),
)
def test_sorted_tables_follow_each_other_within_the_budget(
    tmp_path_factory: pytest.TempPathFactory, names: list[int], sizes: random.Random, budget: int
) -> None:
    folder = tmp_path_factory.mktemp("sorted")
    rows = [(f"o/{name}", [stack_file(f"/{sizes.randrange(9)}.py", "x" * sizes.randrange(400))]) for name in names]
    source = write_files(folder / "in.parquet", rows, True)
    layout = layout_of([str(source)], ("repo_name",), ("content", "path"))
    with BucketWriter(
        folder / "spill.arrow",
        layout.flat_schema,
        lambda table: repository_keys(table["repo_name"].combine_chunks(), 0).astype("int64") % 3,
        2000,
    ) as writer:
        for table in FlatInput(str(source), 0, layout, 0, 1 << 20).tables(1000, InputCounts()):
            writer.add(table)
        batches = writer.close()
    tables = list(sorted_tables(batches, layout.flat_schema, budget, folder / "scratch"))
    found = [
        row
        for table in tables
        for row in zip(*(table[name].to_pylist() for name in (KEY, "repo_name", "path", "order")), strict=True)
    ]
    assert found == sorted(found) and len(found) == len(rows)
    assert all(table.nbytes <= budget or table.num_rows == 1 or len(set(table["repo_name"].to_pylist())) == 1 for table in tables)
    assert not list((folder / "scratch").rglob("*.arrow"))


def a_schema(table: pa.Table) -> pa.Schema:
    return table.schema.append(pa.field("repo_name", pa.string())).append(pa.field("path", pa.string()))


def test_the_memory_of_a_process_stays_within_its_bound(tmp_path: Path) -> None:
    """Nearly three times the bound, a third of it in one repository; it compresses well, so that the disk is not measured."""
    for i in range(4):
        texts = [f"{i} {j} " * 30_000 for j in range(200)]
        blobs = [f"{i:020x}{j:020x}" for j in range(200)]
        table = pa.table({"blob_id": blobs, "length_bytes": [len(text) for text in texts], "content": texts})
        with pq.ParquetWriter(tmp_path / f"{i}.parquet", a_schema(table), use_dictionary=False) as writer:
            for g in range(12):
                names = ["o/giant" if j % 3 == 0 else f"o/{(g * 200 + j) % 700}" for j in range(200)]
                paths = [f"/{g}/{j}.py" for j in range(200)]
                writer.write_table(table.append_column("repo_name", [names]).append_column("path", [paths]))
    bound = 1 << 29
    script = (
        "import re, sys; from pathlib import Path\n"
        "from data_prep.sources.ingest.grouping.config import GroupConfig\n"
        "from data_prep.sources.ingest.grouping.run import group\n"
        "folder = group(GroupConfig(inputs=(sys.argv[1],), output=sys.argv[2], num_parts=3, memory_bytes=int(sys.argv[3])))\n"
        "print(folder.bytes, int(re.search('VmHWM:\\\\s+(\\\\d+)', Path('/proc/self/status').read_text())[1]) * 1024)\n"
    )
    words = [str(tmp_path / "*.parquet"), str(tmp_path / "grouped"), str(bound)]
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    num_bytes, peak = map(int, done.stdout.split())
    assert num_bytes > 2.8 * bound and peak < bound
    description = json.loads((tmp_path / "grouped" / "grouped.json").read_text())
    assert description["repositories"] == 701 and description["contents_left_out"] == {}


def test_an_input_without_any_file_gives_empty_parts(tmp_path: Path) -> None:
    source = write_repositories(tmp_path / "a.parquet", [("o/a", []), ("o/b", [])])
    done = group(a_config(tmp_path, source))
    assert (done.repositories, done.files, done.empty_repositories) == (0, 0, 2)


def test_raw_blob_ids_and_flags_of_pandas_are_grouped_as_they_are_read(tmp_path: Path) -> None:
    file = stack_file("/a.py", "a = 1\n")
    row = {"repo_name": "o/a", **file, "blob_id": bytes.fromhex(file["blob_id"]), "is_vendor": float("nan")}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    output = group(a_config(tmp_path, tmp_path / "a.parquet", num_parts=1)) and str(tmp_path / "grouped")
    ((_, files),) = [(ref, list(files)) for part in grouped_parts(SourcesConfig(stack_v2=(output,)))
                     for ref, files in read_part(part, SourcesConfig(stack_v2=(output,)))]  # fmt: skip
    assert [(f.blob_id, f.is_vendored) for f in files] == [(file["blob_id"], False)]

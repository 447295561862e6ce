"""Rows without content: bodies from a blob store or the reason why not; rows too large to decode; inputs on S3; odd inputs."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.filters.config import FiltersConfig
from data_prep.filters.filters import FilterCounts, filter_repository
from data_prep.sources.blobs.pack import GZIP, RAW
from data_prep.sources.blobs.store import BODY, MISSING
from data_prep.sources.ingest.blob_writer import BlobWriter
from data_prep.sources.ingest.grouping.config import GroupConfig
from data_prep.sources.ingest.grouping.run import group
from data_prep.sources.registry import (
    SourcesConfig,
    grouped_parts,
    list_repositories,
    read_part,
    read_repository,
    source_fingerprint,
)
from data_prep.sources.stack_v2 import row_batches
from data_prep.sources.stack_v2 import rows as stack_v2
from data_prep.sources.stack_v2.row_cache import RowCache
from mose.errors import MoseError
from tests.data_prep.faulty_s3 import BUCKET, allow_local_http, client, s3_server
from tests.data_prep.stack_rows import FILE_TYPES, Row, stack_file, write_files, write_repositories

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


def fill(store: Path, bodies: list[bytes]) -> str:
    with BlobWriter(store, 0) as writer:
        for body in bodies:
            writer.add(hashlib.sha1(body).digest(), BODY, RAW, len(body), body)
    return str(store)


def problems(config: SourcesConfig) -> dict[str, list[tuple[str, str]]]:
    return {
        ref.name: [(file.path, file.problem or file.content.decode()) for file in read_repository(ref, config)]
        for ref in list_repositories(config)
    }


def test_bodies_come_from_the_store_and_what_it_lacks_has_its_reason(tmp_path: Path) -> None:
    files = [stack_file(f"/{name}.py", name) for name in ("have", "gone", "never")]
    files.append(stack_file("/odd.py", "x", blob_id="not a sum"))
    source = write_repositories(tmp_path / "a.parquet", [("o/r", files)])
    store = fill(tmp_path / "store", [b"have"])
    with BlobWriter(tmp_path / "store", 1) as writer:
        writer.add(hashlib.sha1(b"gone").digest(), MISSING, GZIP, 0)
    found = problems(SourcesConfig(stack_v2=(str(source),), blob_store=store))
    assert dict(found["o/r"]) == {
        "/have.py": "have",
        "/gone.py": "missing",
        "/never.py": "not_fetched",
        "/odd.py": "invalid_blob_id",
    }


def test_content_of_the_row_is_taken_before_the_store_and_null_content_has_its_reason(tmp_path: Path) -> None:
    files = [stack_file("/own.py", "own"), stack_file("/null.py", "in the store", content=None)]
    source = write_repositories(tmp_path / "a.parquet", [("o/r", files)], with_content=True)
    store = fill(tmp_path / "store", [b"in the store"])
    assert problems(SourcesConfig(stack_v2=(str(source),)))["o/r"] == [("/null.py", "no_content"), ("/own.py", "own")]
    with_store = SourcesConfig(stack_v2=(str(source),), blob_store=store)
    assert problems(with_store)["o/r"] == [("/null.py", "in the store"), ("/own.py", "own")]


def test_a_body_is_decoded_by_its_encoding_and_a_wrong_one_is_counted(tmp_path: Path) -> None:
    bodies = {"ISO-8859-1": "café", "UTF-16-LE": "x = 1", "UTF-8": "漢字"}
    files = [stack_file(f"/{encoding}.py", text, encoding) for encoding, text in bodies.items()]
    files += [
        stack_file("/wrong.py", "ÿé", "ISO-8859-1") | {"src_encoding": "UTF-8"},
        stack_file("/none.py", "y") | {"src_encoding": "no-such"},
    ]
    source = write_repositories(tmp_path / "a.parquet", [("o/r", files)])
    store = fill(
        tmp_path / "store", [text.encode(encoding) for encoding, text in bodies.items()] + ["ÿé".encode("latin-1"), b"y"]
    )
    config = SourcesConfig(stack_v2=(str(source),), blob_store=store)
    counts = FilterCounts()
    texts = [
        file.text for file in filter_repository(read_repository(list_repositories(config)[0], config), FiltersConfig(), counts)
    ]
    assert sorted(texts) == sorted(bodies.values()) and counts.reasons["undecodable"].files == 2


def test_rows_without_content_need_a_store_and_a_store_needs_packs(tmp_path: Path) -> None:
    source = write_repositories(tmp_path / "a.parquet", [("o/r", [stack_file("/a", "x")])])
    with pytest.raises(MoseError, match=r"a\.parquet: files\.content: no such column; expected contents, or sources\.blob_store"):
        list_repositories(SourcesConfig(stack_v2=(str(source),)))
    config = SourcesConfig(stack_v2=(str(source),), blob_store=str(tmp_path / "gone"))
    with pytest.raises(MoseError, match="gone: blob_store: no such folder"):
        list(read_repository(list_repositories(config)[0], config))


def test_rows_of_single_files_are_refused_with_advice(tmp_path: Path) -> None:
    source = write_files(tmp_path / "a.parquet", [("o/r", [stack_file("/a", "x")])], with_content=True)
    with pytest.raises(MoseError, match="expected one row per repository: run `mose-data group`"):
        list_repositories(SourcesConfig(stack_v2=(str(source),)))


def test_odd_paths_are_only_text(tmp_path: Path) -> None:
    files = [stack_file(path, path) for path in ("../../../etc/passwd", "//etc/shadow", "C:\\x", "a\nb")]
    source = write_repositories(tmp_path / "a.parquet", [("../o", files)], with_content=True)
    before = sorted(tmp_path.parent.rglob("*"))
    found = problems(SourcesConfig(stack_v2=(str(source),)))
    assert [path for path, _ in found["../o"]] == ["/../../../etc/passwd", "/C:\\x", "/a\nb", "/etc/shadow"]
    group(GroupConfig(inputs=(str(source),), output=str(tmp_path / "grouped"), num_parts=1))
    assert problems(SourcesConfig(stack_v2=(str(tmp_path / "grouped"),))) == found
    assert {path for path in tmp_path.parent.rglob("*") if tmp_path not in path.parents} <= set(before)


@pytest.mark.parametrize("with_lengths", [True, False])
def test_a_row_above_the_limit_is_named_and_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_lengths: bool
) -> None:
    monkeypatch.setattr(row_batches, "LIMIT_BYTES", 10_000)
    monkeypatch.setattr(row_batches.row_batches, "__defaults__", (10_000,))
    monkeypatch.setattr(row_batches.plan_row_group, "__defaults__", (10_000,))
    monkeypatch.setattr(stack_v2, "CACHE_BYTES", 2_000)
    rows: list[Row] = [
        ("o/a", [stack_file("/a", "a")]),
        ("o/b", [stack_file("/b", "b" * 30_000)]),
        ("o/c", [stack_file("/c", "c")]),
    ]
    source = write_repositories(tmp_path / "a.parquet", rows, with_content=True)
    if not with_lengths:
        table = pq.read_table(source)
        kept = pa.struct([(name, kind) for name, kind in FILE_TYPES.items() if name != "length_bytes"])
        files = [
            [{key: value for key, value in file.items() if key != "length_bytes"} for file in row]
            for row in table["files"].to_pylist()
        ]
        pq.write_table(pa.table({"repo_name": table["repo_name"], "files": pa.array(files, pa.list_(kept))}), source)
    found = problems(SourcesConfig(stack_v2=(str(source),)))
    too_large = "repository_too_large"
    # The rows around it are read, although it has to be decoded to reach those behind.
    assert found == {"o/a": [("/a", "a")], "o/b": [("/b", too_large)], "o/c": [("/c", "c")]}
    store = fill(tmp_path / "store", [b"b" * 30_000])
    assert problems(SourcesConfig(stack_v2=(str(source),), blob_store=store))["o/b"] == [("/b", "b" * 30_000)]


def test_large_row_groups_are_streamed_and_equal_to_small_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(f"o/{i:02d}", [stack_file(f"/{j}.py", f"{i} {j} " * 50) for j in range(i % 4)]) for i in range(30)]
    whole = write_repositories(tmp_path / "whole.parquet", rows, True, row_group_size=30)
    cut = write_repositories(tmp_path / "cut.parquet", rows, True, row_group_size=2)
    kept = problems(SourcesConfig(stack_v2=(str(cut),)))
    monkeypatch.setattr(stack_v2, "CACHE_BYTES", 0)
    assert (
        problems(SourcesConfig(stack_v2=(str(whole),)))
        == kept
        == {name: [(f["path"], f["content"]) for f in files] for name, files in rows}
    )


def test_a_row_above_the_bound_is_passed_over_in_bounded_memory(tmp_path: Path) -> None:
    block = b"x = 1\n" * 20_000
    files = [{"path": f"/{i}.py", "length_bytes": len(block), "blob_id": f"{i:040x}", "content": block} for i in range(2500)]
    table = _row_of("o/huge", files)
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, compression="zstd")
    del table, files
    script = (
        "import re, sys; from pathlib import Path; from data_prep.sources.registry import *\n"
        "config = SourcesConfig(stack_v2=(sys.argv[1],)); (ref,) = list_repositories(config)\n"
        "assert {file.problem for file in read_repository(ref, config)} == {'repository_too_large'}\n"
        "print(re.search('VmHWM:\\\\s+(\\\\d+)', Path('/proc/self/status').read_text())[1])\n"
    )
    words = [sys.executable, "-c", script, str(tmp_path / "a.parquet")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 250 * 1024


def _row_of(name: str, files: list[dict[str, Any]]) -> pa.Table:
    types = {column: kind for column, kind in FILE_TYPES.items() if column != "content"} | {"content": pa.large_binary()}
    columns = [pa.array([file.get(column) for file in files], kind) for column, kind in types.items()]
    struct = pa.StructArray.from_arrays(columns, names=list(types))
    return pa.table({"repo_name": [name], "files": pa.LargeListArray.from_arrays([0, len(files)], struct)})


def test_parts_and_parquet_are_read_from_s3(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    allow_local_http(monkeypatch, server)
    rows = [(f"o/{i}", [stack_file(f"/{j}.py", f"{i} {j}") for j in range(3)]) for i in range(8)]
    local = write_repositories(tmp_path / "a.parquet", rows, with_content=True)
    s3 = client(server)
    for key in ("in/a.parquet", "in/deep/b.parquet"):
        s3.put_object(Bucket=BUCKET, Key=key, Body=local.read_bytes())
    plain = SourcesConfig(stack_v2=(f"s3://{BUCKET}/in/*.parquet",))
    assert problems(plain) == problems(SourcesConfig(stack_v2=(str(local),)))
    assert len(list_repositories(SourcesConfig(stack_v2=(f"s3://{BUCKET}/in/**/*.parquet",)))) == 16
    assert source_fingerprint(plain) == source_fingerprint(SourcesConfig(stack_v2=(str(local),)))
    output = f"s3://{BUCKET}/grouped"
    group(GroupConfig(inputs=(f"s3://{BUCKET}/in/a.parquet",), output=output, num_parts=3, scratch=str(tmp_path / "scratch")))
    grouped = SourcesConfig(stack_v2=(output,))
    read = [
        (ref.name, [file.content.decode() for file in files])
        for part in grouped_parts(grouped)
        for ref, files in read_part(part, grouped)
    ]
    assert dict(read) == {name: [file["content"] for file in files] for name, files in rows} and len(read) == 8
    with pytest.raises(MoseError, match="nothing.*: no such file; expected parquet files"):
        list_repositories(SourcesConfig(stack_v2=(f"s3://{BUCKET}/nothing/*.parquet",)))


def test_files_not_taken_are_passed_over_and_limits_hold_in_parts(tmp_path: Path) -> None:
    rows = [(f"o/{i}", [stack_file(f"/{j}.{'py' if j % 2 else 'c'}", "x" * 10) for j in range(6)]) for i in range(5)]
    source = write_repositories(tmp_path / "a.parquet", rows, with_content=True)
    group(GroupConfig(inputs=(str(source),), output=str(tmp_path / "grouped"), num_parts=2))
    config = SourcesConfig(stack_v2=(str(tmp_path / "grouped"),), include_suffixes=(".py",), max_repository_bytes=20)
    seen = {
        ref.name: [file.path for file in files if not file.problem] if ref.name != "o/3" else []
        for part in grouped_parts(config)
        for ref, files in read_part(part, config)
    }
    assert seen == {f"o/{i}": ["/1.py", "/3.py"] if i != 3 else [] for i in range(5)}


def test_grouped_folders_stand_alone(tmp_path: Path) -> None:
    source = write_repositories(tmp_path / "a.parquet", [("o/r", [stack_file("/a", "x")])], with_content=True)
    grouped = str(tmp_path / "grouped")
    group(GroupConfig(inputs=(str(source),), output=grouped, num_parts=1))
    assert grouped_parts(SourcesConfig(stack_v2=(str(source),))) == []
    with pytest.raises(MoseError, match="a folder of `mose-data group` beside others"):
        grouped_parts(SourcesConfig(stack_v2=(grouped, str(source))))
    with pytest.raises(MoseError, match="max_repositories: is 1, expected 0"):
        grouped_parts(SourcesConfig(stack_v2=(grouped,), max_repositories=1))
    assert [part.number for part in grouped_parts(SourcesConfig(stack_v2=(grouped, grouped)))] == [0, 1]


def test_a_damaged_description_is_named(tmp_path: Path) -> None:
    (tmp_path / "grouped.json").write_text('{"version": 1}')
    with pytest.raises(MoseError, match=r"grouped\.json: cannot be read"):
        grouped_parts(SourcesConfig(stack_v2=(str(tmp_path),)))


def test_the_fingerprint_changes_with_the_inputs_the_store_and_the_names(tmp_path: Path) -> None:
    source = write_repositories(tmp_path / "a.parquet", [("o/r", [stack_file("/a", "x")])])
    store = fill(tmp_path / "store", [b"x"])
    config = SourcesConfig(stack_v2=(str(source),))
    before = source_fingerprint(config)
    with_store = source_fingerprint(SourcesConfig(stack_v2=(str(source),), blob_store=store))
    (tmp_path / "folders" / "one").mkdir(parents=True)
    with_folder = source_fingerprint(SourcesConfig(stack_v2=(str(source),), directories=(str(tmp_path / "folders"),)))
    write_repositories(source, [("o/r", [stack_file("/a", "y")])])
    assert len({before, with_store, with_folder, source_fingerprint(config)}) == 4


def test_the_cache_holds_no_more_than_its_bytes() -> None:
    cache = RowCache(100)
    loads: list[int] = []

    def load(key: int) -> int:
        value: int = cache.get(key, lambda: (loads.append(key) or key, 40))  # type: ignore[func-returns-value]
        return value

    assert [load(key) for key in (1, 2, 1, 3, 1, 2)] == [1, 2, 1, 3, 1, 2]
    assert loads == [1, 2, 3, 2] and cache.held_bytes == 80
    assert cache.get(9, lambda: ("large", 500)) == "large" and cache.held_bytes == 0

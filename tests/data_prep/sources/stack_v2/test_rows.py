"""Parquet rows in The Stack v2 schema: rows over row groups, original bytes, missing columns, broken files."""

import base64
import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.filters.config import FiltersConfig
from data_prep.filters.filters import FilterCounts, filter_repository
from data_prep.sources.repositories import RepositoryRef, SourceFile
from data_prep.sources.stack_v2 import rows as stack_v2
from data_prep.sources.stack_v2.grouped import metadata_of_files
from mose.errors import MoseError

FILE = pa.struct(
    [
        ("blob_id", pa.string()),
        ("path", pa.string()),
        ("language", pa.string()),
        ("detected_licenses", pa.list_(pa.string())),
        ("license_type", pa.string()),
        ("src_encoding", pa.string()),
        ("is_vendor", pa.bool_()),
        ("is_generated", pa.bool_()),
        ("content", pa.string()),
    ]
)


def a_file(path: str, content: str | None, encoding: str | None = "UTF-8", **more: Any) -> dict[str, Any]:
    blob_id = hashlib.sha1((content or "").encode(encoding or "UTF-8")).hexdigest()
    return {
        "blob_id": blob_id,
        "path": path,
        "language": "Python",
        "detected_licenses": ["MIT"],
        "license_type": "permissive",
        "src_encoding": encoding,
        "is_vendor": False,
        "is_generated": False,
        "content": content,
        **more,
    }


def write(path: Path, rows: list[tuple[str | None, list[dict[str, Any]] | None]], row_group_size: int = 2) -> str:
    table = pa.table(
        {
            "repo_name": pa.array([name for name, _ in rows], pa.string()),
            "files": pa.array([files for _, files in rows], pa.list_(FILE)),
            "num_files": pa.array([len(files or ()) for _, files in rows], pa.int64()),
        }
    )
    pq.write_table(table, path, row_group_size=row_group_size)
    return str(path)


def read(ref: RepositoryRef) -> list[SourceFile]:
    return list(stack_v2.read(ref, lambda path: True))


def test_every_row_is_read_from_its_own_row_group(tmp_path: Path) -> None:
    rows = [(f"owner/r{i}", [a_file(f"/f{j}.py", f"{i} {j}") for j in range(i % 3 + 1)]) for i in range(7)]
    refs = stack_v2.list_rows(write(tmp_path / "a.parquet", list(rows)))
    assert [ref.name for ref in refs] == [name for name, _ in rows]
    for ref in reversed(refs):
        assert [file.content.decode() for file in read(ref)] == [f"{ref.index} {j}" for j in range(ref.index % 3 + 1)]


def test_what_the_stack_says_of_a_file_is_kept(tmp_path: Path) -> None:
    files = [
        a_file("b.py", "x", is_vendor=True, license_type="no_license", detected_licenses=[]),
        a_file("/a.py", "y", language=None),
    ]
    (ref,) = stack_v2.list_rows(write(tmp_path / "a.parquet", [("o/r", files)]))
    first, second = read(ref)
    assert (first.path, first.language, first.licences, first.licence_type) == ("/a.py", "Unknown", ("MIT",), "permissive")
    assert (second.path, second.is_vendored, second.licences, second.licence_type) == ("/b.py", True, (), "no_license")


def test_the_bytes_are_those_that_blob_id_is_the_sum_of(tmp_path: Path) -> None:
    files = [a_file("/latin.py", "café", "ISO-8859-1"), a_file("/utf8.py", "漢字"), a_file("/wide.py", "x = 1\n", "UTF-16-LE")]
    (ref,) = stack_v2.list_rows(write(tmp_path / "a.parquet", [("o/r", files)]))
    for file in read(ref):
        assert hashlib.sha1(file.content).hexdigest() == file.blob_id
    texts = [file.text for file in filter_repository(read(ref), FiltersConfig(), FilterCounts())]
    assert texts == ["café", "漢字", "x = 1\n"]


def test_text_that_its_declared_encoding_cannot_write_stays_utf8() -> None:
    assert stack_v2.original_bytes("漢".encode(), "ISO-8859-1") == ("漢".encode(), "UTF-8")
    assert stack_v2.original_bytes(b"x", "no-such-encoding") == (b"x", "UTF-8")


def test_nothing_where_the_row_has_nothing(tmp_path: Path) -> None:
    rows: list[Any] = [("o/null", None), ("o/empty", []), ("o/no-text", [a_file("/a.py", None)])]
    refs = stack_v2.list_rows(write(tmp_path / "a.parquet", rows))
    assert [[file.content for file in read(ref)] for ref in refs] == [[], [], [b""]]


def test_a_glob_takes_every_file_in_order(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write(tmp_path / f"{name}.parquet", [(f"o/{name}", [a_file("/a.py", "x")])])
    assert [ref.name for ref in stack_v2.list_rows(str(tmp_path / "*.parquet"))] == ["o/a", "o/b"]


@pytest.mark.parametrize("column", ["repo_name", "files"])
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    path = write(tmp_path / "a.parquet", [("o/r", [a_file("/a.py", "x")])])
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
    with pytest.raises(MoseError, match=rf"a\.parquet: {column}: no such column"):
        stack_v2.list_rows(path)


def test_files_without_content_are_refused_by_name(tmp_path: Path) -> None:
    bare = pa.struct([field for field in FILE if field.name != "content"])
    file = {key: value for key, value in a_file("/a.py", "x").items() if key != "content"}
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"repo_name": ["o/r"], "files": pa.array([[file]], pa.list_(bare))}), path)
    with pytest.raises(MoseError, match=r"a\.parquet: files\.content: no such column"):
        stack_v2.list_rows(str(path))


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [("o/r", [a_file("/a.py", "x" * 1000)])])
    os.truncate(path, Path(path).stat().st_size // 2)
    with pytest.raises(MoseError, match=r"a\.parquet: not a complete parquet file"):
        stack_v2.list_rows(path)


def test_a_file_broken_in_the_middle_is_named_when_its_row_is_read(tmp_path: Path) -> None:
    noise = [a_file(f"/{i}.py", hashlib.sha256(str(i).encode()).hexdigest() * 20) for i in range(200)]
    path = Path(write(tmp_path / "a.parquet", [("o/r", noise)]))
    content = bytearray(path.read_bytes())
    content[200 : len(content) // 2] = b"\xaa" * (len(content) // 2 - 200)
    path.write_bytes(content)
    with pytest.raises(MoseError, match=r"a\.parquet: not a complete parquet file"):
        [read(ref) for ref in stack_v2.list_rows(str(path))]


def test_a_row_without_a_name_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [("o/r", []), (None, [])])
    refs = stack_v2.list_rows(path)
    assert read(refs[0]) == []
    with pytest.raises(MoseError, match="repo_name: row 1 is empty"):
        read(refs[1])


def test_a_row_beyond_the_end_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [("o/r", [])])
    with pytest.raises(MoseError, match="has no row 5"):
        read(RepositoryRef("o/r", "stack_v2", path, 5))


@pytest.mark.skipif("MOSE_DATA" not in os.environ, reason="MOSE_DATA is not set: the folder of the Stack v2 sample")
def test_at_least_95_percent_of_the_eligible_bytes_of_the_sample_pass() -> None:
    counts = FilterCounts()
    for ref in stack_v2.list_rows(f"{os.environ['MOSE_DATA']}/stack_v2_sample-*.parquet"):
        for _ in filter_repository(read(ref), FiltersConfig(), counts):
            pass
    assert counts.to_plain()["eligible_bytes_kept_share"] >= 0.95


def test_a_column_that_a_file_has_twice_is_named(tmp_path: Path) -> None:
    names, files = pa.array(["a/b"]), pa.array([[a_file("/x.py", "x = 1\n")]], pa.list_(FILE))
    twice = pa.list_(pa.struct([*FILE, ("path", pa.string())]))
    for columns, wrong in (
        ([("repo_name", names), ("files", files), ("files", files)], "files"),
        ([("repo_name", names), ("repo_name", names), ("files", files)], "repo_name"),
        ([("repo_name", names), ("files", pa.nulls(1, twice))], "files.path"),
    ):
        table = pa.table([column for _, column in columns], names=[name for name, _ in columns])
        pq.write_table(table, tmp_path / f"{wrong}.parquet")
        with pytest.raises(MoseError, match=rf"{wrong}\.parquet: {wrong}: 2 columns of this name; expected one"):
            stack_v2.list_rows(str(tmp_path / f"{wrong}.parquet"), False)


def test_metadata_of_all_rows_is_that_of_each_row(tmp_path: Path) -> None:
    """Rows of no files, of several out of order, without a name, without facts, not wanted; in two row groups."""
    odd = a_file("z.py", "z", None, language=None, detected_licenses=None, license_type=None, is_vendor=None, is_generated=True)
    rows: list[tuple[str | None, list[dict[str, Any]] | None]] = [
        ("a", [a_file(f"{name}.py", name) for name in "cab"]),
        ("b", []),
        ("c", None),
        (None, [a_file("n.py", "n")]),
        ("d", [odd, a_file("y.py", "y", is_vendor=True, detected_licenses=["MIT", "Zlib"])]),
        ("other", [a_file("o.py", "o")]),
        ("e", [a_file("/l/m.py", "m")]),
    ]
    path = write(tmp_path / "a.parquet", rows, row_group_size=4)
    refs = [ref for ref in stack_v2.list_rows(path) if ref.name in "abcde"]
    expected = [replace(file, content=b"", size=0, problem=stack_v2.NO_CONTENT) for ref in refs for file in read(ref)]
    assert len(expected) == 6
    assert list(metadata_of_files(path, lambda name: name in "abcde")) == expected


def test_an_id_that_is_no_sha1_gives_way_to_that_of_the_content(tmp_path: Path) -> None:
    files = [a_file("/a.py", "a = 1\n", blob_id="17"), a_file("/b.py", "b = 1\n"), a_file("/c.py", None, blob_id="18")]
    path = write(tmp_path / "a.parquet", [("o/r", files)])
    ids = {file.path: file.blob_id for file in stack_v2.read(stack_v2.list_rows(path)[0], lambda path: True)}
    expected = {f"/{name}.py": hashlib.sha1(f"{name} = 1\n".encode()).hexdigest() for name in "ab"}
    assert ids == {**expected, "/c.py": "18"}
    # So that copies of held-out files are found: their ids are collected from the metadata.
    found = {file.path: file.blob_id for file in metadata_of_files(path, lambda name: True)}
    assert expected.items() <= found.items()


@pytest.mark.parametrize("has_plain_footer", [True, False])
def test_encrypted_columns_are_refused_and_end_no_process(tmp_path: Path, has_plain_footer: bool) -> None:
    encryption = pytest.importorskip("pyarrow.parquet.encryption")

    class Keys(encryption.KmsClient):  # type: ignore[misc]
        def __init__(self, connection: Any):
            super().__init__()

        def wrap_key(self, key: bytes, name: str) -> bytes:
            return base64.b64encode(key)

    table = pq.read_table(write(tmp_path / "plain.parquet", [("o/r", [a_file("/a.py", "a = 1\n")])]))
    columns = {"key": ["files.list.element.content"]}
    wanted = encryption.EncryptionConfiguration("footer", column_keys=columns, plaintext_footer=has_plain_footer)
    properties = encryption.CryptoFactory(Keys).file_encryption_properties(encryption.KmsConnectionConfig(), wanted)
    path = tmp_path / "encrypted.parquet"
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    # In a process of its own, because pyarrow ends the one that asks for the size of such a column.
    program = "import sys; from data_prep.sources.stack_v2 import rows; rows.read(rows.list_rows(sys.argv[1])[0], bool)"
    done = subprocess.run([sys.executable, "-c", f"{program}.__next__()", str(path)], capture_output=True, text=True, check=False)
    assert "encrypted" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].endswith("write it without encryption; expected The Stack v2 rows")


def test_a_column_of_other_case_is_not_overlooked(tmp_path: Path) -> None:
    table = pq.read_table(write(tmp_path / "a.parquet", [("o/r", [a_file("/a.py", "a = 1\n")])]))
    pq.write_table(table.rename_columns(["Repo_Name", "files", "num_files"]), tmp_path / "name.parquet")
    with pytest.raises(MoseError, match=r"repo_name: no such column, but one of the name Repo_Name: rename it"):
        stack_v2.list_rows(str(tmp_path / "name.parquet"))
    files = [[{name.replace("content", "Content"): value for name, value in a_file("/a.py", "a = 1\n").items()}]]
    pq.write_table(pa.table({"repo_name": ["o/r"], "files": files}), tmp_path / "content.parquet")
    with pytest.raises(MoseError, match=r"files\.content: no such column, but one of the name Content: rename it"):
        stack_v2.list_rows(str(tmp_path / "content.parquet"), has_store=True)
    pq.write_table(pa.table({"repo_name": ["o/r"], "files": ["[]"]}), tmp_path / "text.parquet")
    with pytest.raises(MoseError, match=r"files: is string, expected a list of structs"):
        stack_v2.list_rows(str(tmp_path / "text.parquet"))

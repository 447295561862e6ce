"""What `fetch` is to get: blob ids in any form, of lists of structs and structs of lists."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.sources.ingest.fetching.wanted import Wanted, wanted_blobs
from data_prep.sources.stack_v2.parquet_file import FILE_COLUMNS
from mose.errors import MoseError

SHA1 = hashlib.sha1(b"x").digest()


@pytest.mark.parametrize("blob_id", [SHA1, SHA1.hex(), SHA1.hex().upper(), f"swh:1:cnt:{SHA1.hex()}"])
@pytest.mark.parametrize("is_struct_of_lists", [False, True])
def test_each_form_of_an_id_is_wanted(tmp_path: Path, blob_id: str | bytes, is_struct_of_lists: bool) -> None:
    file = {**dict.fromkeys(FILE_COLUMNS, ""), "blob_id": blob_id, "length_bytes": 1.0}
    files = {name: [value] for name, value in file.items()} if is_struct_of_lists else [file]
    pq.write_table(pa.Table.from_pylist([{"repo_name": "o/r", "files": files}]), tmp_path / "a.parquet")
    assert list(wanted_blobs([str(tmp_path / "a.parquet")])) == [[Wanted(SHA1, 1)]]


def test_an_id_of_another_type_is_refused(tmp_path: Path) -> None:
    files = [{**dict.fromkeys(FILE_COLUMNS, ""), "blob_id": 1.5}]
    pq.write_table(pa.table({"repo_name": ["o/r"], "files": [files]}), tmp_path / "a.parquet")
    with pytest.raises(MoseError, match=r"a\.parquet: row group 0: blob_id: is double, expected text"):
        list(wanted_blobs([str(tmp_path / "a.parquet")]))

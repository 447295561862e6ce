"""Small parquet files in the two schemas of The Stack v2: shared by the tests of grouping, fetching and sources."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

FILE_TYPES = {
    "blob_id": pa.string(),
    "path": pa.string(),
    "language": pa.string(),
    "length_bytes": pa.int64(),
    "detected_licenses": pa.list_(pa.string()),
    "license_type": pa.string(),
    "src_encoding": pa.string(),
    "is_vendor": pa.bool_(),
    "is_generated": pa.bool_(),
    "content": pa.string(),
}

Row = tuple[str, list[dict[str, Any]]]


def stack_file(path: str, body: str, encoding: str = "UTF-8", **more: Any) -> dict[str, Any]:
    """What The Stack v2 says of one file, with its content."""
    raw = body.encode(encoding)
    return {
        "blob_id": hashlib.sha1(raw).hexdigest(),
        "path": path,
        "language": "Python",
        "length_bytes": len(raw),
        "detected_licenses": ["MIT"],
        "license_type": "permissive",
        "src_encoding": encoding,
        "is_vendor": False,
        "is_generated": False,
        "content": body,
        **more,
    }


def write_repositories(path: Path, rows: Sequence[Row], with_content: bool = False, row_group_size: int = 4) -> Path:
    """One row a repository, as train-full-ids."""
    types = {name: kind for name, kind in FILE_TYPES.items() if with_content or name != "content"}
    files = [[{name: file[name] for name in types} for file in files] for _, files in rows]
    table = pa.table(
        {
            "repo_name": pa.array([name for name, _ in rows], pa.string()),
            "star_events_count": pa.array(range(len(rows)), pa.int64()),
            "files": pa.array(files, pa.list_(pa.struct(list(types.items())))),
        }
    )
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def write_files(path: Path, rows: Sequence[Row], with_content: bool = False, row_group_size: int = 16) -> Path:
    """One row a file, as the-stack-v2-dedup."""
    types = {name: kind for name, kind in FILE_TYPES.items() if with_content or name != "content"}
    flat = [(name, file) for name, files in rows for file in files]
    columns = {name: pa.array([file[name] for _, file in flat], kind) for name, kind in types.items()}
    table = pa.table({"repo_name": pa.array([name for name, _ in flat], pa.string()), **columns})
    pq.write_table(table, path, row_group_size=row_group_size)
    return path

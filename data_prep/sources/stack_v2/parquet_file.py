"""Opens parquet inputs, local or on an object store: expands patterns, finds columns, fingerprints files."""

import functools
import glob
import hashlib
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from mose.errors import MoseError
from mose.files.parquet_errors import PARQUET_ERRORS
from mose.files.storage import is_local, storage_path

FILE_COLUMNS = ("blob_id", "path", "language", "detected_licenses", "license_type", "src_encoding", "is_vendor", "is_generated")
"""The columns that are read per file, besides `content` and `length_bytes`."""
LENGTH = "length_bytes"
CONTENT = "content"
_OPEN_FILES = 16
# The last eight bytes of a parquet file: the footer's length and the magic PAR1.
_TRAILER = 8


@dataclass(frozen=True)
class Columns:
    """The columns of a parquet file and the parquet leaves that store them."""

    repository: dict[str, tuple[str, ...]]
    """Columns other than `files`: name -> leaves."""
    file: dict[str, tuple[str, ...]]
    """Columns of one file: name -> leaves; inside `files`, or top-level columns if each row is one file."""
    is_nested: bool
    """Whether a row is a repository with a list `files`, not one file."""


def expand(pattern: str) -> list[str]:
    """The files that match a path, a glob or a URL with a glob, sorted.

    Raises:
        MoseError: no file matches.
    """
    if is_local(storage_path(pattern)):
        local = str(storage_path(pattern))
        found = sorted(glob.glob(local, recursive=True))  # noqa: PTH207 (the pattern may be absolute)
    else:
        remote = cast(UPath, storage_path(pattern))
        found = sorted(remote.fs.unstrip_protocol(name) for name in remote.fs.glob(remote.path))
    if not found:
        raise MoseError(f"{pattern}: no such file; expected parquet files in The Stack v2 schema")
    return found


def open_parquet(path: str) -> pq.ParquetFile:
    """An open parquet file; the last few stay open, because a caller reads the rows of one file one by one.

    Raises:
        MoseError: the file does not exist, is truncated or is not parquet.
    """
    try:
        return _opened(path, stamp(path))
    except PARQUET_ERRORS as error:
        raise corrupt(path, error) from None


def corrupt(path: str, error: Exception) -> MoseError:
    """The error for a file that pyarrow cannot read."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return MoseError(f"{path}: not a complete parquet file: {text}; expected The Stack v2 rows")


def footer_fingerprint(path: str) -> str:
    """A hash (16 hexadecimal digits) of a parquet file's size and footer.

    The footer holds the size and extremes of every column chunk, so it stands for the content without reading any row.

    Raises:
        MoseError: the file cannot be read.
    """
    try:
        size = storage_path(path).stat().st_size
        with storage_path(path).open("rb") as file:
            file.seek(max(0, size - _TRAILER))
            trailer = file.read(_TRAILER)
            length = min(int.from_bytes(trailer[:4], "little"), size)
            file.seek(max(0, size - _TRAILER - length))
            footer = file.read(length + _TRAILER)
    except OSError as error:
        raise corrupt(path, error) from None
    return hashlib.sha256(f"{size}:".encode() + footer).hexdigest()[:16]


def columns_of(path: str) -> Columns:
    """The columns of a file whose rows are repositories (a list `files`) or single files.

    Raises:
        MoseError: `repo_name` is missing, or a column of `FILE_COLUMNS`, or `blob_id` or `path` if rows are single files; the
            message names it.
    """
    try:
        return _columns(path, stamp(path))
    except OSError as error:
        raise corrupt(path, error) from None


@functools.lru_cache(maxsize=_OPEN_FILES)
def _columns(path: str, version: tuple[int, int]) -> Columns:
    file = open_parquet(path)
    schema = file.schema_arrow
    leaves = [tuple(file.schema.column(i).path.split(".")) for i in range(len(file.schema.names))]
    flat: dict[str, tuple[str, ...]] = {}
    for name in schema.names:
        flat[name] = tuple(".".join(leaf) for leaf in leaves if leaf[0] == name)
    is_nested = "files" in flat
    inside = _inside_files(schema, leaves) if is_nested else flat
    if not is_nested and not {"blob_id", "path"} & set(flat):
        raise _missing(path, "repo_name" if "repo_name" not in flat else "files")
    needed = {"repo_name": flat, **dict.fromkeys(FILE_COLUMNS if is_nested else ("blob_id", "path"), inside)}
    for name, known in needed.items():
        if name not in known:
            raise _missing(path, name if known is flat else f"files.{name}")
    return Columns({name: paths for name, paths in flat.items() if name != "files"}, inside, is_nested)


def _inside_files(schema: pa.Schema, leaves: list[tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    struct: Any = getattr(schema.field("files").type, "value_type", None)
    names = {struct.field(i).name for i in range(struct.num_fields)} if pa.types.is_struct(struct) else set()
    inside: dict[str, tuple[str, ...]] = {}
    for leaf in leaves:
        # One or two writer-dependent names come between `files` and the column: list.element, list.item or array.
        name = next((part for part in leaf[2:] if part in names), None) if leaf[0] == "files" else None
        if name is not None:
            inside[name] = (*inside.get(name, ()), ".".join(leaf))
    return inside


def _missing(path: str, name: str) -> MoseError:
    return MoseError(f"{path}: {name}: no such column; expected the schema of The Stack v2")


def stamp(path: str) -> tuple[int, int]:
    """Size and modification time, which change if a local file is replaced; constant for an object of an object store."""
    place = storage_path(path)
    if not is_local(place):
        return 0, 0
    status = place.stat()
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=_OPEN_FILES)
def _opened(path: str, stamp: tuple[int, int]) -> pq.ParquetFile:
    place = storage_path(path)
    source: Any = str(place) if is_local(place) else place.open("rb")
    # This buffer and no pre-buffering: .27 GB instead of 1.56 GB for row groups of 43 MB (measured).
    return pq.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False)

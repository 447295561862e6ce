"""Opens parquet inputs, local or on an object store: expands patterns, finds columns, fingerprints files."""

import functools
import glob
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mose.errors import MoseError, first_line
from mose.files.parquet_errors import PARQUET_ERRORS
from mose.files.storage import is_local, storage_path

if TYPE_CHECKING:
    # With asyncio it is a seventh of the start of a command; `storage_path` imports it for URLs.
    from upath import UPath

FILE_COLUMNS = ("blob_id", "path", "language", "detected_licenses", "license_type", "src_encoding", "is_vendor", "is_generated")
"""The columns that are read per file, besides `content` and `length_bytes`."""
LENGTH = "length_bytes"
CONTENT = "content"
_OPEN_FILES = 16
# The last eight bytes of a parquet file: the footer's length and the magic PAR1.
_TRAILER = 8
# A footer that is not encrypted itself, of a file with encrypted columns, is followed by a nonce and a tag of AES-GCM.
_SIGNATURE = 12 + 16


@dataclass(frozen=True)
class Columns:
    """The columns of a parquet file and the parquet leaves that store them."""

    repository: dict[str, tuple[str, ...]]
    """Columns other than `files`: name -> leaves."""
    file: dict[str, tuple[str, ...]]
    """Columns of one file: name -> leaves; inside `files`, or top-level columns if each row is one file."""
    is_nested: bool
    """Whether a row is a repository with a list `files`, not one file."""


def expand(pattern: str, expected: str = "parquet files in The Stack v2 schema") -> list[str]:
    """The parquet files that a path, a folder, a glob or a URL of one of these names, sorted.

    In folders and behind globs, names that begin with `_` or `.` are passed over, as the engines that write such files do; a
    folder gives its files whose names end in .parquet, at any depth.

    Raises:
        MoseError: no file matches.
    """
    place = storage_path(pattern)
    if is_local(place):
        names = glob.glob(str(place), recursive=True)  # noqa: PTH207 (the pattern may be absolute)
        # A name that holds [ or ? is a name first.
        names = [str(place)] if place.exists() else names
        found = [file for name in names for file in (_files_below(name) if os.path.isdir(name) else [name])]  # noqa: PTH112
    else:
        remote = cast("UPath", place)
        names = remote.fs.glob(remote.path)
        if names == [remote.path.rstrip("/")] and remote.fs.isdir(remote.path):
            names = remote.fs.glob(f"{remote.path.rstrip('/')}/**/*.parquet")
        found = [remote.fs.unstrip_protocol(name) for name in names]
    is_pattern = found != [str(place)]
    found = sorted({path for path in found if not (is_pattern and _is_hidden(path))})
    if not found:
        what = "holds no *.parquet file" if is_local(place) and place.is_dir() else "no such file"
        raise MoseError(f"{pattern}: {what}; expected {expected}")
    return found


def _files_below(folder: str) -> list[str]:
    return [str(path) for path in Path(folder).rglob("*.parquet") if not any(map(_is_hidden, path.relative_to(folder).parts))]


def _is_hidden(path: str) -> bool:
    return path.rpartition("/")[2].startswith(("_", "."))


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
    """The error for a file that pyarrow cannot read: what the file is, where its first bytes show it."""
    if isinstance(error, FileNotFoundError):
        return MoseError(f"{path}: no such file; expected The Stack v2 rows")
    what = _what_it_is(path)
    return MoseError(f"{path}: not a complete parquet file: {what or first_line(error).rstrip('.')}; expected The Stack v2 rows")


_DOWNLOADS = (".crdownload", ".part", ".partial", ".tmp", ".download", ".incomplete", ".aria2")
# The first bytes of what is found under the name of a parquet file, and what it is.
_BEGINNINGS = (
    (b"version https://git-lfs", "it is a Git LFS pointer, not the file it points to; run `git lfs pull`"),
    (b"PARE", "it is encrypted; write it without encryption"),
    (b"PK\x03\x04", "it is a zip archive; unpack it"),
    (b"\x1f\x8b", "it is compressed with gzip; unpack it"),
    (b"(\xb5/\xfd", "it is compressed with zstd; unpack it"),
    (b"ARROW1", "it is an Arrow IPC (feather) file; write it as parquet"),
    (b"crc", "it is a checksum file of Hadoop; leave it out"),
    (b"ORC", "it is an ORC file; write it as parquet"),
    (b"Obj\x01", "it is an Avro file; write it as parquet"),
    (b"SQLite format 3", "it is an SQLite database; write the table as parquet"),
)


def _what_it_is(path: str) -> str:
    """What a file is that is no parquet file; empty if that is not known."""
    try:
        with storage_path(path).open("rb") as file:
            head = file.read(512)
            file.seek(max(0, storage_path(path).stat().st_size - 4))
            is_cut = head[:4] == b"PAR1" and file.read(4) != b"PAR1"
    except OSError:
        return ""
    if path.endswith(_DOWNLOADS):
        return "it is an unfinished download; download it again, or leave it out"
    if path.endswith(".crc"):
        return "it is a checksum file of Hadoop; leave it out"
    if not head:
        return "it is empty (0 bytes); download it again"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "it is an HTML or XML page, such as the error of a web server; download it again"
    if start.startswith((b"{", b"[")):
        return "it is JSON text; write it as parquet"
    found = next((what for beginning, what in _BEGINNINGS if head.startswith(beginning)), "")
    return found or ("it has the beginning of a parquet file but not its end; download it again" if is_cut else "")


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
    _check_once(path, schema.names)
    leaves = [tuple(file.schema.column(i).path.split(".")) for i in range(len(file.schema.names))]
    flat: dict[str, tuple[str, ...]] = {}
    for name in schema.names:
        flat[name] = tuple(".".join(leaf) for leaf in leaves if leaf[0] == name)
    is_nested = "files" in flat
    if is_nested:
        if not _struct_of(schema.field("files").type):
            raise MoseError(f"{path}: files: is {schema.field('files').type!s:.80}, expected a list of structs")
        _check_once(path, [field.name for field in _struct_of(schema.field("files").type)], "files.")
    inside = _inside_files(schema, leaves) if is_nested else flat
    if not is_nested and not {"blob_id", "path"} & set(flat):
        raise _missing(path, "repo_name" if "repo_name" not in flat else "files", flat)
    needed = {"repo_name": flat, **dict.fromkeys(FILE_COLUMNS if is_nested else ("blob_id", "path"), inside)}
    for name, known in needed.items():
        if name not in known:
            raise _missing(path, name if known is flat else f"files.{name}", known)
    for name in (LENGTH, CONTENT):
        # Both may be absent, but must not be overlooked.
        if name not in inside and _other_case(name, inside):
            raise _missing(path, f"files.{name}" if is_nested else name, inside)
    return Columns({name: paths for name, paths in flat.items() if name != "files"}, inside, is_nested)


def _inside_files(schema: pa.Schema, leaves: list[tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    files = schema.field("files").type
    is_struct = pa.types.is_struct(files)
    names = {field.name for field in _struct_of(files)}
    inside: dict[str, tuple[str, ...]] = {}
    for leaf in leaves:
        # One or two writer-dependent names come between `files` and the column: list.element, list.item or array.
        name = next((part for part in leaf[1 if is_struct else 2 :] if part in names), None) if leaf[0] == "files" else None
        if name is not None:
            inside[name] = (*inside.get(name, ()), ".".join(leaf))
    return inside


def _struct_of(files: Any) -> Any:
    """The struct type inside the type of `files`; no fields if there is none."""
    # A struct of lists is how `datasets` stores a list of structs.
    struct = files if pa.types.is_struct(files) else getattr(files, "value_type", None)
    return struct if struct is not None and pa.types.is_struct(struct) else ()


def _check_once(path: str, names: list[str], prefix: str = "") -> None:
    for name in ("repo_name", "files", LENGTH, CONTENT, *FILE_COLUMNS):
        if names.count(name) > 1:
            raise MoseError(f"{path}: {prefix}{name}: {names.count(name)} columns of this name; expected one")


def _missing(path: str, name: str, known: Iterable[str]) -> MoseError:
    other = _other_case(name.removeprefix("files."), known)
    found = f", but one of the name {other}: rename it" if other else ""
    return MoseError(f"{path}: {name}: no such column{found}; expected the schema of The Stack v2")


def _other_case(name: str, known: Iterable[str]) -> str:
    """A column whose name differs from `name` in case only; empty if there is none."""
    return next((other for other in known if other != name and other.lower() == name), "")


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
    file = pq.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False)
    with place.open("rb") as trailer:
        trailer.seek(-_TRAILER, os.SEEK_END)
        signature = int.from_bytes(trailer.read(4), "little") - file.metadata.serialized_size
    if signature == _SIGNATURE:
        # The footer of encrypted columns can be read, but the sizes of these columns end the whole process.
        raise pa.ArrowInvalid("it has encrypted columns; write it without encryption")
    return file

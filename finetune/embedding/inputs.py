"""The texts that `mose-finetune embed` reads: JSON lines, parquet, or the files of a folder, in an order that never changes."""

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq

from mose.dataset.functions import LARGEST_SOURCE_BYTES
from mose.dataset.languages import BY_SUFFIX
from mose.errors import MoseError, first_line
from mose.files.json_file import JSON_LINES, json_lines
from mose.files.parquet_errors import PARQUET_ERRORS

_PARQUET_ROWS = 1024
AnyItem = TypeVar("AnyItem")


@dataclass(frozen=True)
class Columns:
    """Names of the fields; an empty name means that there is none."""

    text: str
    id: str = ""
    language: str = ""


@dataclass(frozen=True)
class Item:
    """One text with its id and the language of its code, which may be empty."""

    id: str
    text: str
    language: str = ""


@dataclass(frozen=True)
class Contents:
    """What an input holds: its number of texts, and a digest of all of them with ids and languages."""

    rows: int
    digest: str


def read_items(path: Path, columns: Columns) -> Iterator[Item]:
    """The texts of a file or folder.

    Raises:
        MoseError: the input is missing or damaged, or a row lacks a field or holds no text there.
    """
    if path.is_dir():
        yield from _files(path)
        return
    rows = json_lines(path, [columns.text]) if path.name.endswith(JSON_LINES) else _parquet_rows(path, columns)
    for number, (where, row) in enumerate(rows):
        values = {name: _value(where, row, name) for name in (columns.text, columns.id, columns.language) if name}
        yield Item(values.get(columns.id, str(number)), values[columns.text], values.get(columns.language, ""))


def scan(path: Path, columns: Columns) -> Contents:
    """Read the whole input once, before anything is embedded.

    Raises:
        MoseError: as `read_items`; there is no text, or an id is empty or occurs twice.
    """
    digest, rows, seen = hashlib.sha256(), 0, set[bytes]()
    for item in read_items(path, columns):
        if columns.id:
            key = hashlib.blake2b(item.id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            if not item.id or key in seen:
                wrong = "occurs twice" if item.id else "is empty"
                raise MoseError(
                    f"{path}: {columns.id}: the id {item.id[:100]!r} of row {rows} {wrong}, expected one for each row"
                )
            seen.add(key)
        for value in (item.id, item.text, item.language):
            content = value.encode("utf-8", "surrogatepass")
            digest.update(len(content).to_bytes(8, "little") + content)
        rows += 1
    if not rows:
        raise MoseError(f"{path}: holds no text, expected one or more")
    return Contents(rows, digest.hexdigest()[:16])


def parts(items: Iterable[AnyItem], rows: int) -> Iterator[list[AnyItem]]:
    """The items in lists of `rows`, the last one shorter."""
    iterator = iter(items)
    while part := list(itertools.islice(iterator, rows)):
        yield part


def _value(where: str, row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise MoseError(f"{where}: {name}: {str(value)[:60]!r}, expected text")
    return value


def _parquet_rows(path: Path, columns: Columns) -> Iterator[tuple[str, dict[str, Any]]]:
    names = [name for name in dict.fromkeys((columns.text, columns.id, columns.language)) if name]
    try:
        with pq.ParquetFile(path) as file:
            absent = [name for name in names if name not in file.schema_arrow.names]
            if absent:
                there = ", ".join(file.schema_arrow.names)[:200]
                raise MoseError(f"{path}: column {absent[0]} is missing, expected it beside: {there}")
            number = 0
            for batch in file.iter_batches(_PARQUET_ROWS, columns=names):
                for row in batch.to_pylist():
                    yield f"{path}: row {number}", row
                    number += 1
    except PARQUET_ERRORS as error:
        raise MoseError(f"{path}: not a readable parquet file, nor .jsonl, .jsonl.gz or a folder: {first_line(error)}") from None


def _files(folder: Path) -> Iterator[Item]:
    """Text files in path order; links, hidden ones, large ones and those that are not UTF-8 are left out."""
    paths = []
    for base, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(base) / name for name in names if not name.startswith(".")]
    for path in sorted(paths):
        try:
            if not path.is_file() or path.is_symlink() or path.stat().st_size > LARGEST_SOURCE_BYTES:
                continue
            text = path.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        language = BY_SUFFIX.get(path.suffix)
        name = os.fsencode(path.relative_to(folder)).decode("utf-8", "backslashreplace")
        yield Item(name, text, language.name if language else "")

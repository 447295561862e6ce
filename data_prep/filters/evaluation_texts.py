"""Reads the texts of evaluation files, example by example: JSON lines, JSON, parquet or plain text, on any file system."""

import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import pyarrow.parquet as pq

from mose.errors import MoseError, first_line
from mose.files.json_file import parse_json
from mose.files.parquet_errors import PARQUET_ERRORS
from mose.files.storage import storage_path

_BATCH_ROWS = 1 << 10


def read_examples(file: str, fields: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """The texts of each example of an evaluation file (path or URL; all kinds except parquet also as `.gz`).

    `.jsonl`: one example per line; `.json`: one example, or one per item of a list; `.parquet`: one per row; any other file is
    one example of plain UTF-8 text. Texts are all string values at any depth, or those inside those top-level `fields` that an
    example has.

    Raises:
        MoseError: the file cannot be read, does not have the format of its suffix, or no example has any of the `fields`.
    """
    path = storage_path(file)
    name = path.name.removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            yield from _chosen(file, _parquet_rows(path), fields)
            return
        with path.open("rb") as stored:
            content = cast(IO[bytes], gzip.GzipFile(fileobj=stored)) if path.name.endswith(".gz") else stored
            if name.endswith(".jsonl"):
                yield from _chosen(file, _json_lines(file, content), fields)
            elif name.endswith(".json"):
                document = _json(file, content.read(), "")
                yield from _chosen(file, document if isinstance(document, list) else [document], fields)
            else:
                yield [_utf8(file, content.read())]
    except (EOFError, zlib.error, *PARQUET_ERRORS) as error:
        message = getattr(error, "strerror", None) or first_line(error)
        raise MoseError(f"{file}: cannot be read: {message}; expected .jsonl, .json, .parquet or plain text") from None


def strings_of(value: Any) -> Iterator[str]:
    """Every string value in a JSON value, at any depth, without field names."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings_of(inner)


def _chosen(file: str, examples: Iterable[Any], fields: tuple[str, ...]) -> Iterator[list[str]]:
    known: set[str] = set()
    for example in examples:
        has = example if isinstance(example, dict) else {}
        known.update(has)
        yield [text for name in fields for text in strings_of(has.get(name))] if fields else list(strings_of(example))
    if fields and known.isdisjoint(fields):
        names = ", ".join(sorted(known)) or "none"
        raise MoseError(f"{file}: fields: no example has any of {', '.join(fields)}; expected at least one of: {names}")


def _parquet_rows(path: Path) -> Iterator[Any]:
    with path.open("rb") as stored:
        for batch in pq.ParquetFile(stored, buffer_size=1 << 20, pre_buffer=False).iter_batches(_BATCH_ROWS, use_threads=False):
            yield from batch.to_pylist()


def _json_lines(file: str, content: IO[bytes]) -> Iterator[Any]:
    for number, line in enumerate(content, start=1):
        if line.strip():
            yield _json(file, line, f"line {number}: ")


def _json(file: str, content: bytes, place: str) -> Any:
    try:
        return parse_json(content, half_pairs=True)
    except ValueError as error:
        raise MoseError(f"{file}: {place}not JSON: {first_line(error)}; expected an example as JSON") from None


def _utf8(file: str, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MoseError(
            f"{file}: byte {error.start} is not UTF-8; expected .jsonl, .json, .parquet or plain UTF-8 text"
        ) from None

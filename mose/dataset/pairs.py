"""The pairs file of texts and the code that matches them, written by `mose-data pairs` and read by fine-tuning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mose.errors import MoseError, first_line
from mose.files.atomic_file import atomic_write
from mose.files.parquet_errors import PARQUET_ERRORS

TRAIN = "train"
REQUIRED_COLUMNS = ("nl", "code_a", "lang_a", "code_b", "lang_b")
OPTIONAL_COLUMNS = ("repository", "path", "split")
NEVER_EMPTY = ("nl", "code_a")
# The names in the released SynthCoNL; the second function is the synthetic one.
RELEASED_COLUMNS = {
    "nl": "func_documentation_string",
    "code_a": "func1_CSN",
    "lang_a": "language1_CSN",
    "code_b": "func2",
    "lang_b": "language2",
    "repository": "repository_name",
    "path": "func_path_in_repository",
}


@dataclass(frozen=True)
class Pair:
    """A text, code that implements it, and optionally the same code in a second language."""

    nl: str
    code_a: str
    lang_a: str
    code_b: str = ""
    """Empty when the pair is text -> code only."""
    lang_b: str = ""
    repository: str = ""
    path: str = ""
    split: str = TRAIN
    """`train` or `held_out`, by repository; a file without this column is all `train`."""


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Write pairs as parquet, atomically; equal pairs give equal bytes."""
    columns = {field.name: pa.array([getattr(pair, field.name) for pair in pairs], pa.string()) for field in fields(Pair)}
    with atomic_write(path) as file:
        pq.write_table(pa.table(columns), file, compression="zstd")


def read_pairs(path: Path, split: str | None = None) -> list[Pair]:
    """The pairs of a file, in its order; only those of `split` when it is given.

    Columns have the names of `Pair`, or those of the released SynthCoNL. Others are not read; `repository`, `path` and `split`
    may be missing.

    Raises:
        MoseError: not a readable parquet file, a column is missing or not text, a text or code is empty, no pair is left.
    """
    try:
        file = pq.ParquetFile(path)
        found = file.schema_arrow.names
        released = RELEASED_COLUMNS["code_a"] in found and "code_a" not in found
        fields_read = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
        stored = {name: RELEASED_COLUMNS.get(name, name) if released else name for name in fields_read}
        _check_columns(path, file.schema_arrow, stored)
        names = [name for name in fields_read if stored[name] in found]
        read = file.read(columns=[stored[name] for name in names], use_threads=False).to_pydict()
        columns = {name: read[stored[name]] for name in names}
    except PARQUET_ERRORS as error:
        raise MoseError(f"{path}: not a readable parquet file of pairs: {first_line(error)}") from None
    for name in NEVER_EMPTY:
        empty = next((row for row, value in enumerate(columns[name]) if not value), None)
        if empty is not None:
            raise MoseError(f"{path}: {stored[name]}: row {empty} is empty, expected text")
    pairs = [
        Pair(**{name: value or "" for name, value in zip(names, row, strict=True)})
        for row in zip(*(columns[name] for name in names), strict=True)
    ]
    return _of_split(path, pairs, split)


def _check_columns(path: Path, schema: pa.Schema, stored: Mapping[str, str]) -> None:
    for name in REQUIRED_COLUMNS:
        if stored[name] not in schema.names:
            expected = ", ".join(stored[name] for name in REQUIRED_COLUMNS)
            raise MoseError(f"{path}: {stored[name]}: no such column; expected {expected}")
    for name in stored.values():
        if name in schema.names and not _is_text(schema.field(name).type):
            raise MoseError(f"{path}: {name}: column of type {schema.field(name).type}, expected string")


def _is_text(column_type: pa.DataType) -> bool:
    # A column of nulls only has the type null: an empty code_b written by another tool.
    return bool(
        pa.types.is_string(column_type)
        or pa.types.is_large_string(column_type)
        or pa.types.is_null(column_type)
        or pa.types.is_dictionary(column_type)
    )


def _of_split(path: Path, pairs: list[Pair], split: str | None) -> list[Pair]:
    chosen = [pair for pair in pairs if split is None or pair.split == split]
    if not chosen:
        found = sorted({pair.split for pair in pairs})
        raise MoseError(f"{path}: split: no pair of split {split or 'any'!r}, the file holds {found}; expected at least one")
    return chosen

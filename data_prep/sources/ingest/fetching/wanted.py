"""Lists the blobs that the inputs of `fetch` name, from two columns, one row group at a time.

F: files of a row group.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from data_prep.sources.blobs.store import parse_id
from data_prep.sources.stack_v2.file_columns import blob_ids, normal_files, read_column, whole_numbers
from data_prep.sources.stack_v2.grouped import is_grouped, parts_of
from data_prep.sources.stack_v2.parquet_file import LENGTH, Columns, columns_of, corrupt, expand, open_parquet
from mose.errors import MoseError, first_line
from mose.files.parquet_errors import PARQUET_ERRORS

_BLOB_ID = "blob_id"


@dataclass(frozen=True)
class Wanted:
    """A blob and its size according to the input."""

    blob: bytes | None
    """SHA-1, 20 bytes; None if the input's `blob_id` is not a SHA-1."""
    length: int
    """`length_bytes`; 0 if unknown."""


def input_files(inputs: Sequence[str], task: int, num_tasks: int) -> list[str]:
    """The parquet files of one task: every `num_tasks`-th of the inputs' parts and files.

    Raises:
        MoseError: an input does not exist, or lacks a column.
    """
    paths: list[str] = []
    for pattern in inputs:
        paths += [part.location for part in parts_of([pattern])] if is_grouped(pattern) else expand(pattern)
    mine = paths[task::num_tasks]
    for path in mine:
        columns_of(path)
    return mine


def count_files(paths: Sequence[str]) -> int:
    """The number of files that the parquet files list, from their footers; several files may share a blob."""
    total = 0
    for path in paths:
        leaf, metadata = columns_of(path).file[_BLOB_ID][0], open_parquet(path).metadata
        for group in range(metadata.num_row_groups):
            chunks = (metadata.row_group(group).column(i) for i in range(metadata.num_columns))
            total += sum(chunk.num_values for chunk in chunks if chunk.path_in_schema == leaf)
    return total


def wanted_blobs(paths: Sequence[str]) -> Iterator[list[Wanted]]:
    """The blobs of each row group in order, without repetitions inside a row group.

    Raises:
        MoseError: a file is truncated or corrupt.
    """
    for path in paths:
        columns = columns_of(path)
        for group in range(open_parquet(path).metadata.num_row_groups):
            yield _row_group(path, group, columns)


def _row_group(path: str, group: int, columns: Columns) -> list[Wanted]:
    names = [name for name in (_BLOB_ID, LENGTH) if name in columns.file]
    leaves = [leaf for name in names for leaf in columns.file[name]]
    try:
        table = open_parquet(path).read_row_group(group, columns=leaves, use_threads=False)
    except PARQUET_ERRORS as error:
        raise corrupt(path, error) from None
    try:
        files: Any = normal_files(table.column("files").combine_chunks()).flatten() if columns.is_nested else table
        columns_F = {name: files.field(name) if columns.is_nested else files.column(name).combine_chunks() for name in names}
        ids_F = read_column(_BLOB_ID, blob_ids, columns_F[_BLOB_ID])
        lengths_F = read_column(LENGTH, whole_numbers, columns_F[LENGTH]).tolist() if LENGTH in names else [0] * len(ids_F)
    except (ValueError, pa.ArrowException) as error:
        raise MoseError(f"{path}: row group {group}: {first_line(error)}") from None
    # A blob may occur several times and have its length in one place only.
    longest: dict[str, int] = {}
    for blob_id, length in zip(ids_F, lengths_F, strict=True):
        longest[blob_id or ""] = max(longest.get(blob_id or "", 0), length)
    return [Wanted(parse_id(blob_id), length) for blob_id, length in longest.items()]

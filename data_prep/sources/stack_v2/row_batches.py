"""Rows of a parquet row group in batches of bounded decoded size; what cannot be decoded within the bound comes without content.

Shape letters: R rows of a row group, F files of those rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.sources.stack_v2.parquet_file import CONTENT, FILE_COLUMNS, LENGTH, Columns, columns_of, corrupt, open_parquet
from mose.errors import MoseError

LIMIT_BYTES = 1 << 28
"""The most that one row may hold decoded (256 MiB), files' contents included."""
BYTES_A_FILE = 512
"""What a file's columns other than content are counted as."""
# Parquet writers look at a page's size after this many values (parquet-cpp's write_batch_size), so a page may hold as many.
_VALUES_A_PAGE = 1024
_MAX_BATCH_ROWS = 1 << 14


@dataclass(frozen=True)
class RowGroupPlan:
    """What the rows of a row group hold, known without decoding a content."""

    sizes_R: NDArray[np.int64]
    """Decoded bytes of each row."""
    readable: int
    """Rows before this one can be decoded within the limit; parquet rows are decoded from the first on."""

    @property
    def total_bytes(self) -> int:
        """Decoded bytes of the row group."""
        return int(self.sizes_R.sum())


@dataclass(frozen=True)
class RowBatch:
    """Consecutive rows of a row group."""

    first: int
    """Row number in the row group."""
    rows: pa.RecordBatch
    too_large: bool
    """Whether contents were left out because these rows cannot be decoded within the limit."""


def plan_row_group(path: str, group: int, limit_bytes: int = LIMIT_BYTES) -> RowGroupPlan:
    """Sizes of a row group's rows by their `length_bytes`, and how far its contents can be decoded within `limit_bytes`.

    Raises:
        MoseError: the file is truncated or corrupt.
    """
    columns = columns_of(path)
    metadata = open_parquet(path).metadata.row_group(group)
    files_R, lengths_F = _lengths(path, group, columns)
    if CONTENT not in columns.file:
        return RowGroupPlan(files_R * BYTES_A_FILE, len(files_R))
    chunks = _chunks(metadata, columns.file[CONTENT])
    stored = sum(chunk.total_uncompressed_size for chunk in chunks)
    if LENGTH not in columns.file:
        # Nothing says how the bytes are spread, so where they are too many, each file may be as large as all of them.
        lengths_F[:] = stored if stored > limit_bytes else stored // max(1, len(lengths_F))
    ends_R = np.cumsum(files_R)
    before_F = np.concatenate([[0], np.cumsum(np.minimum(lengths_F, limit_bytes + 1))])
    sizes_R = before_F[ends_R] - before_F[ends_R - files_R] + files_R * BYTES_A_FILE
    if stored <= limit_bytes and not any(chunk.has_dictionary_page for chunk in chunks):
        # All that there is, whatever `length_bytes` says; a dictionary could hold one content for many files.
        return RowGroupPlan(np.minimum(sizes_R, stored + files_R * BYTES_A_FILE), len(files_R))
    # A page reaches over the row's ends, so what stands around the row counts too.
    first_R, last_R = np.maximum(ends_R - files_R - _VALUES_A_PAGE, 0), np.minimum(ends_R + _VALUES_A_PAGE, len(lengths_F))
    around_R = before_F[last_R] - before_F[first_R]
    too_large_R = (sizes_R > limit_bytes) | ((around_R > 2 * limit_bytes) & (stored > limit_bytes))
    return RowGroupPlan(sizes_R, int(too_large_R.argmax()) if too_large_R.any() else len(files_R))


def row_batches(
    path: str, group: int, names: Sequence[str], max_bytes: int, repository: Sequence[str], limit_bytes: int = LIMIT_BYTES
) -> Iterator[RowBatch]:
    """The rows of one row group in order, about `max_bytes` at a time and never less than a row.

    `names` are columns of a file, `repository` columns beside `files`; those that the file lacks are left out. From the first
    row on that cannot be decoded within `limit_bytes`, rows come without content and with `too_large`.

    Raises:
        MoseError: the file is truncated or corrupt.
    """
    plan = plan_row_group(path, group, limit_bytes)
    columns = columns_of(path)
    leaves = leaves_of(columns, names, repository)
    batch_rows = _rows_a_batch(plan.sizes_R[: plan.readable], max_bytes)
    if plan.readable < len(plan.sizes_R):
        batch_rows = 1
    first = 0
    if plan.readable:
        for rows in _decode(path, group, leaves, batch_rows):
            yield RowBatch(first, rows, False)
            first += rows.num_rows
            if first >= plan.readable:
                break
    if plan.readable < len(plan.sizes_R):
        yield from _without_content(
            path, group, leaves_of(columns, [n for n in names if n != CONTENT], repository), plan.readable
        )


def leaves_of(columns: Columns, names: Sequence[str], repository: Sequence[str]) -> list[str]:
    """Parquet's names of the columns that a file has of `names` and `repository`."""
    wanted = [columns.repository.get(name, ()) for name in repository] + [columns.file.get(name, ()) for name in names]
    return list(dict.fromkeys(leaf for leaves in wanted for leaf in leaves))


def binary_content(files: Any) -> Any:
    """A list array (or chunked array) of file structs with content as bytes and 64-bit offsets."""
    # As bytes: a string column that is not UTF-8 would raise in the middle of a file list.
    struct = files.type.value_type
    fields = [struct.field(i) for i in range(struct.num_fields)]
    wide = pa.struct([field.with_type(pa.large_binary()) if field.name == CONTENT else field for field in fields])
    return files.cast(pa.large_list(wide))


def _without_content(path: str, group: int, leaves: list[str], start: int) -> Iterator[RowBatch]:
    first = 0
    for rows in _decode(path, group, leaves, 1):
        if first >= start:
            yield RowBatch(first, rows, True)
        first += rows.num_rows


def _decode(path: str, group: int, leaves: list[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
    try:
        # One thread: each of more would hold pages of its own.
        batches = open_parquet(path).iter_batches(batch_rows, row_groups=[group], columns=leaves, use_threads=False)
        yield from batches
    except (OSError, pa.ArrowException) as error:
        raise corrupt(path, error) from None


def _lengths(path: str, group: int, columns: Columns) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Files of each row, and `length_bytes` of each file (0 where it is null or there is no such column)."""
    name = LENGTH if LENGTH in columns.file else FILE_COLUMNS[0]
    try:
        table = open_parquet(path).read_row_group(group, columns=list(columns.file[name]), use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise corrupt(path, error) from None
    column = table.column(0).combine_chunks()
    files_R = np.ones(len(column), np.int64)
    if columns.is_nested:
        files_R = np.asarray(column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int64)
        column = column.flatten().field(name)
    if name != LENGTH:
        return files_R, np.zeros(len(column), np.int64)
    if not pa.types.is_integer(column.type):
        raise MoseError(f"{path}: {LENGTH}: is {column.type}, expected int64")
    lengths_F = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    return files_R, np.maximum(lengths_F, 0)


def _rows_a_batch(sizes_R: NDArray[np.int64], max_bytes: int) -> int:
    """The largest power of two such that no batch of as many rows passes `max_bytes`; at least 1."""
    rows = _MAX_BATCH_ROWS
    while rows > 1 and len(sizes_R) and np.add.reduceat(sizes_R, np.arange(0, len(sizes_R), rows)).max() > max_bytes:
        rows //= 2
    return rows


def _chunks(metadata: Any, leaves: Sequence[str]) -> list[Any]:
    """The column chunks of some leaves in a row group's metadata."""
    chunks = [metadata.column(i) for i in range(metadata.num_columns)]
    return [chunk for chunk in chunks if chunk.path_in_schema in leaves]

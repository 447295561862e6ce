"""Reads a parquet row group in batches of bounded decoded size; rows above the bound come without content.

A row group is compressed, and one repository may decode to many GB, so that the decoded size is planned from `length_bytes` and
the footer before any content is read.

Shape letters: R rows of a row group, F files of those rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.sources.stack_v2.file_columns import list_lengths, normal_files, read_column, whole_numbers
from data_prep.sources.stack_v2.parquet_file import CONTENT, FILE_COLUMNS, LENGTH, Columns, columns_of, corrupt, open_parquet
from mose.errors import MoseError, first_line
from mose.files.parquet_errors import PARQUET_ERRORS

LIMIT_BYTES = 1 << 28
"""Upper bound of the decoded size of one row (256 MiB), contents included."""
SKIP_BYTES = 1 << 29
"""Upper bound of what is decoded at once and thrown away in order to reach the rows behind a row above the limit (512 MiB)."""
BYTES_A_FILE = 512
"""Estimated size of a file's columns other than content, in bytes."""
# Parquet writers check the page size after this many values (write_batch_size of parquet-cpp), so a page may hold that many
# whatever their size, and a reader decodes a page as a whole.
_VALUES_A_PAGE = 1024
_MAX_BATCH_ROWS = 1 << 14


@dataclass(frozen=True)
class RowGroupPlan:
    """Sizes of the rows of a row group, found without decoding any content."""

    sizes_R: NDArray[np.int64]
    """Decoded bytes of each row."""
    readable: int
    """Rows before this one are decoded: all up to the last row within the limit, unless a row before it is above `SKIP_BYTES`,
    because parquet decodes a row group from its start."""
    has_large_row: bool = False
    """Whether a row before `readable` may be above the limit."""

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
    """Whether contents are omitted because these rows cannot be decoded within the limit."""


def plan_row_group(path: str, group: int, limit_bytes: int = LIMIT_BYTES) -> RowGroupPlan:
    """Sizes of a row group's rows by their `length_bytes`, and how far its contents are decoded to reach those within the limit.

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
    # No content is larger than all that is stored, whatever `length_bytes` says.
    is_certain = LENGTH in columns.file and not (lengths_F > stored).any()
    lengths_F = np.minimum(lengths_F, stored)
    if LENGTH not in columns.file:
        # Without lengths the distribution is unknown: if the total is above the limit, any single file may hold all of it.
        lengths_F[:] = stored if stored > limit_bytes else stored // max(1, len(lengths_F))
    ends_R = np.cumsum(files_R)
    before_F = np.concatenate([[0], np.cumsum(np.minimum(lengths_F, limit_bytes + 1))])
    sizes_R = before_F[ends_R] - before_F[ends_R - files_R] + files_R * BYTES_A_FILE
    if stored <= limit_bytes and not any(chunk.has_dictionary_page for chunk in chunks):
        # Without a dictionary, the decoded size is at most the stored size, whatever `length_bytes` says; with one, a stored
        # content may stand for many files.
        return RowGroupPlan(np.minimum(sizes_R, stored + files_R * BYTES_A_FILE), len(files_R))
    # Pages do not end at rows, so the neighbouring files of a row are decoded with it and count too.
    first_R, last_R = np.maximum(ends_R - files_R - _VALUES_A_PAGE, 0), np.minimum(ends_R + _VALUES_A_PAGE, len(lengths_F))
    around_R = before_F[last_R] - before_F[first_R]
    cost_R = np.maximum(sizes_R, around_R if stored > limit_bytes else 0)
    is_large_R = sizes_R > limit_bytes
    beyond_R = cost_R > max(2 * limit_bytes, SKIP_BYTES)
    reached = int(beyond_R.argmax()) if beyond_R.any() else len(files_R)
    # A row that is surely too large is only decoded where another stands behind it.
    wanted_R = np.flatnonzero(~is_large_R[:reached]) if is_certain else np.arange(reached)
    readable = int(wanted_R[-1]) + 1 if len(wanted_R) else 0
    return RowGroupPlan(sizes_R, readable, bool((is_large_R | (cost_R > 2 * limit_bytes))[:readable].any()))


def row_batches(
    path: str, group: int, names: Sequence[str], max_bytes: int, repository: Sequence[str], limit_bytes: int = LIMIT_BYTES
) -> Iterator[RowBatch]:
    """The rows of one row group in order, about `max_bytes` at a time and never less than a row.

    `names` are columns of a file, `repository` columns other than `files`; absent columns are skipped. Rows above `limit_bytes`
    come without content and with `too_large`, and so do those behind a row that is too large to be decoded at all.

    Raises:
        MoseError: the file is truncated or corrupt.
    """
    plan = plan_row_group(path, group, limit_bytes)
    columns = columns_of(path)
    leaves = leaves_of(columns, names, repository)
    batch_rows = _rows_a_batch(plan.sizes_R[: plan.readable], max_bytes)
    bare = leaves_of(columns, [n for n in names if n != CONTENT], repository)
    if plan.readable < len(plan.sizes_R) or plan.has_large_row:
        # A larger batch could reach into the rows that must not be decoded, or hold several that are large.
        batch_rows = 1
    first = 0
    # The same rows without content, for those that turn out to be too large.
    substitutes = _decode(path, group, bare, 1) if plan.has_large_row else iter(())
    if plan.readable:
        for rows in _decode(path, group, leaves, batch_rows):
            substitute = next(substitutes, None)
            number = rows.num_rows
            if is_large := substitute is not None and rows.nbytes > limit_bytes:
                rows = substitute  # noqa: PLW2901 (frees the content before the caller works on the row)
            yield RowBatch(first, rows, is_large)
            first += number
            if first >= plan.readable:
                break
    if plan.readable < len(plan.sizes_R):
        yield from _without_content(path, group, bare, plan.readable)


def leaves_of(columns: Columns, names: Sequence[str], repository: Sequence[str]) -> list[str]:
    """The parquet leaves of those columns in `repository` and `names` that the file has."""
    wanted = [columns.repository.get(name, ()) for name in repository] + [columns.file.get(name, ()) for name in names]
    return list(dict.fromkeys(leaf for leaves in wanted for leaf in leaves))


def _without_content(path: str, group: int, leaves: list[str], start: int) -> Iterator[RowBatch]:
    first = 0
    for rows in _decode(path, group, leaves, 1):
        if first >= start:
            yield RowBatch(first, rows, True)
        first += rows.num_rows


def _decode(path: str, group: int, leaves: list[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
    try:
        # One thread, because each thread holds pages of its own and memory is bounded.
        batches = open_parquet(path).iter_batches(batch_rows, row_groups=[group], columns=leaves, use_threads=False)
        yield from batches
    except PARQUET_ERRORS as error:
        raise corrupt(path, error) from None


def _lengths(path: str, group: int, columns: Columns) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Files per row [R], and `length_bytes` per file [F] (0 if it is null or there is no such column)."""
    name = LENGTH if LENGTH in columns.file else FILE_COLUMNS[0]
    try:
        table = open_parquet(path).read_row_group(group, columns=list(columns.file[name]), use_threads=False)
    except PARQUET_ERRORS as error:
        raise corrupt(path, error) from None
    try:
        column = table.column(0).combine_chunks()
        files_R = np.ones(len(column), np.int64)
        if columns.is_nested:
            files = normal_files(column)
            files_R = np.asarray(list_lengths(files).to_numpy(zero_copy_only=False), dtype=np.int64)
            column = files.flatten().field(name)
        lengths_F = read_column(name, whole_numbers, column) if name == LENGTH else np.zeros(len(column), np.int64)
    except (ValueError, pa.ArrowException) as error:
        raise MoseError(f"{path}: {first_line(error)}") from None
    return files_R, lengths_F


def _rows_a_batch(sizes_R: NDArray[np.int64], max_bytes: int) -> int:
    """The largest power of two for which no batch of that many rows exceeds `max_bytes`; at least 1."""
    rows = _MAX_BATCH_ROWS
    while rows > 1 and len(sizes_R) and np.add.reduceat(sizes_R, np.arange(0, len(sizes_R), rows)).max() > max_bytes:
        rows //= 2
    return rows


def _chunks(metadata: Any, leaves: Sequence[str]) -> list[Any]:
    """The column chunks of some leaves in a row group's metadata."""
    chunks = [metadata.column(i) for i in range(metadata.num_columns)]
    return [chunk for chunk in chunks if chunk.path_in_schema in leaves]

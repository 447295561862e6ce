"""Writes parts: turns tables of sorted files into parquet rows of one repository each.

F: files of a table, sorted by repository; R: rows made of them.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep.sources.ingest.grouping.columns import KEY, NAME, SIZE, OutputColumns, part_of
from data_prep.sources.stack_v2.grouped import PartEntry
from data_prep.sources.stack_v2.parquet_file import CONTENT, LENGTH, footer_fingerprint
from mose.files.atomic_file import atomic_write
from mose.files.storage import storage_path

ROW_BYTES = 1 << 25
"""A repository above 32 MiB is written as several rows, which bounds the memory of every reader."""
ROW_GROUP_BYTES = 1 << 25
# The writer checks the page size after this many values; with the default of 1,024, pages of contents reach hundreds of MB.
_VALUES_A_CHECK = 64


def write_parts(
    output: str, first: int, last: int, num_parts: int, tables: Iterator[pa.Table], layout: OutputColumns
) -> list[PartEntry]:
    """Write the parts `first` to `last` - 1 from sorted tables of their files, one after another, each atomically.

    Raises:
        MoseError: temporary rows are damaged.
        OSError: the disk is full.
    """
    pieces = (piece for table in tables for piece in _cut_at_parts(table, num_parts))
    by_part = itertools.groupby(pieces, key=lambda piece: piece[0])
    entries = []
    # A part without repositories is written as an empty file, so that part numbers have no gaps.
    number, found = next(by_part, (last, iter(())))
    for part in range(first, last):
        has_rows = part == number
        tables_of_part = (table for _, table in found) if has_rows else iter(())
        entries.append(_write_part(storage_path(output) / f"part-{part:05d}.parquet", tables_of_part, layout))
        if has_rows:
            number, found = next(by_part, (last, iter(())))
    return entries


def _write_part(path: Path, tables: Iterator[pa.Table], layout: OutputColumns) -> PartEntry:
    rows = repositories = files = num_bytes = 0
    last_name = None
    with atomic_write(path) as file:
        plain = [name for name in layout.schema.names if name != "files"]
        dictionary = [*plain, *(f"files.list.element.{name}" for name in layout.file if name not in (CONTENT, "blob_id"))]
        # No statistics of contents: minimum and maximum would put whole contents into the footer.
        writer = pq.ParquetWriter(
            file,
            layout.schema,
            compression="zstd",
            use_dictionary=dictionary,
            write_statistics=plain,
            write_batch_size=_VALUES_A_CHECK,
        )
        with writer:
            for table in tables:
                for group in row_groups(table, layout):
                    writer.write_table(group, row_group_size=len(group))
                    names = group.column(NAME).to_pylist()
                    rows += len(names)
                    repositories += sum(name != before for name, before in zip(names, [last_name, *names[:-1]], strict=True))
                    last_name = names[-1]
                files += len(table)
                num_bytes += _source_bytes(table)
    return PartEntry(path.name, repositories, rows, files, num_bytes, path.stat().st_size, footer_fingerprint(str(path)))


def row_groups(table: pa.Table, layout: OutputColumns) -> Iterator[pa.Table]:
    """Rows of one repository each, in tables of at most about `ROW_GROUP_BYTES`, from sorted files."""
    sizes_F = table.column(SIZE).to_numpy()
    starts_R = row_starts(table.column(NAME), sizes_F)
    before_R = np.concatenate([[0], np.cumsum(sizes_F)])[starts_R]
    first = 0
    while first < len(starts_R):
        end = max(first + 1, int(np.searchsorted(before_R, before_R[first] + ROW_GROUP_BYTES, "right")) - 1)
        end = len(starts_R) if before_R[-1] - before_R[first] + sizes_F[starts_R[-1] :].sum() <= ROW_GROUP_BYTES else end
        file_end = int(starts_R[end]) if end < len(starts_R) else len(table)
        yield _rows(table.slice(int(starts_R[first]), file_end - int(starts_R[first])), starts_R[first:end], layout)
        first = end


def row_starts(names_F: pa.ChunkedArray, sizes_F: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first file [R] of each row: a new row begins with each repository, and before `ROW_BYTES` would be exceeded."""
    codes_F = names_F.combine_chunks().dictionary_encode().indices.to_numpy()
    change_R = np.flatnonzero(np.append(True, codes_F[1:] != codes_F[:-1])) if len(codes_F) else np.array([], np.int64)
    before_F = np.concatenate([[0], np.cumsum(sizes_F)])
    starts: list[int] = []
    for start, end in zip(change_R.tolist(), [*change_R[1:].tolist(), len(codes_F)], strict=True):
        first = start
        while first < end:
            starts.append(first)
            fitting = int(np.searchsorted(before_F, before_F[first] + ROW_BYTES, "right")) - 1
            first = max(first + 1, fitting)
    return np.array(starts, np.int64)


def _rows(table: pa.Table, starts_R: NDArray[np.int64], layout: OutputColumns) -> pa.Table:
    first_R = starts_R - starts_R[0]
    offsets = pa.array(np.append(first_R, len(table)).astype(np.int32))
    element: Any = layout.schema.field("files").type.value_type
    columns = [table.column(name).combine_chunks() for name in layout.file]
    files = pa.ListArray.from_arrays(
        offsets, pa.StructArray.from_arrays(columns, fields=[element.field(i) for i in range(element.num_fields)])
    )
    heads = [table.column(name).take(pa.array(first_R)) for name in layout.repository]
    counts = pa.array(np.diff(np.append(first_R, len(table))))
    return pa.table([*heads, files.cast(layout.schema.field("files").type), counts], schema=layout.schema)


def _cut_at_parts(table: pa.Table, num_parts: int) -> Iterator[tuple[int, pa.Table]]:
    parts_F = part_of(table.column(KEY).to_numpy(), num_parts)
    parts, starts = np.unique(parts_F, return_index=True)
    for part, start, end in zip(parts.tolist(), starts.tolist(), [*starts[1:].tolist(), len(table)], strict=True):
        yield part, table.slice(start, end - start)


def _source_bytes(table: pa.Table) -> int:
    lengths: Any = table.column(LENGTH)
    if CONTENT in table.schema.names:
        lengths = pc.coalesce(lengths, pc.binary_length(table.column(CONTENT)))
    return pc.sum(lengths).as_py() or 0

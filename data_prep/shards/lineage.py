"""Reads a shard's lineage table one row group at a time: by row number, by value, or as whole columns."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep.sources.repositories import TextFile
from mose.array_types import INT64_ARRAY
from mose.errors import MoseError, first_line
from mose.files.parquet_errors import PARQUET_ERRORS

FILE_SCHEMA = pa.schema([(name, pa.string()) for name in ("repository", "path", "blob_id", "licence", "language")])
# One line per snippet. If faithful packing cut off the last token of a row, `num_tokens` excludes it and `end_byte` includes it.
LINEAGE_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("snippet", pa.int32()),
        *FILE_SCHEMA,
        ("num_tokens", pa.int32()),
        ("start_byte", pa.int64()),
        ("end_byte", pa.int64()),
    ]
)


# Tables of data sets whose filters replace secrets or addresses have one column more. Others have the columns of the first
# version, so that a data set that an earlier version began is completed with the same bytes.
REPLACED_COLUMN = "replaced"
MARKED_SCHEMA = LINEAGE_SCHEMA.append(pa.field(REPLACED_COLUMN, pa.string()))


@dataclass(frozen=True, slots=True)
class FileLineage:
    """The columns of the lineage table that describe a file."""

    repository: str
    path: str
    blob_id: str
    licence: str
    language: str
    replaced: str = ""
    """Secrets and addresses that were replaced in the file, by kind; empty if there were none."""


def lineage_of(file: TextFile) -> FileLineage:
    """Lineage of a file; several licences are joined with ` AND `, without any it is the licence type."""
    source = file.source
    licence = (" AND ".join(sorted(source.licences)) if source.licences else "") or source.licence_type
    return FileLineage(source.repository, source.path, source.blob_id, licence, source.language, file.replaced)


# Columns of repeated text, read as dictionary arrays to save memory.
_REPEATED = ("repository", "path", "licence", "language", REPLACED_COLUMN)


class LineageTable(contextlib.AbstractContextManager["LineageTable"]):
    """An open table; holds one row group in memory."""

    def __init__(self, path: Path):
        """Read the footer of `path`.

        Raises:
            MoseError: the table is missing, not a parquet file, or has other columns.
        """
        self.path = path
        self._files = contextlib.ExitStack()
        try:
            file = self._files.enter_context(path.open("rb"))
            metadata = pq.read_metadata(file)
            names = metadata.schema.to_arrow_schema().names
            self.schema = MARKED_SCHEMA if names == MARKED_SCHEMA.names else LINEAGE_SCHEMA
            if names == self.schema.names:
                repeated = [name for name in _REPEATED if name in names]
                self._parquet = pq.ParquetFile(file, metadata=metadata, read_dictionary=repeated)
        except FileNotFoundError:
            raise MoseError(f"{path}: no such lineage table, but the manifest lists it") from None
        except PARQUET_ERRORS as error:
            self._files.close()
            raise self._unreadable(error) from None
        if names != self.schema.names:
            self._files.close()
            raise MoseError(f"{path}: columns are {names}, expected {LINEAGE_SCHEMA.names}")
        self.lines: int = self._parquet.metadata.num_rows

    def __exit__(self, *error: Any) -> None:
        self._files.__exit__(*error)

    def groups(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """All row groups in order, with these columns or all.

        Raises:
            MoseError: the file is damaged.
        """
        for group in range(self._parquet.metadata.num_row_groups):
            yield self._read(group, columns)

    def values(self, column: str) -> set[str]:
        """The distinct texts of a column, one row group at a time."""
        return {text for group in self.groups([column]) for text in group[column].unique().to_pylist()}

    def columns(self, columns: Sequence[str]) -> Any:
        """These columns of the whole table, with one dictionary per column of repeated text.

        Raises:
            MoseError: the file is damaged.
        """
        groups = list(self.groups(columns))
        if not groups:
            return self.schema.empty_table().select(columns)
        return pa.concat_tables(groups).unify_dictionaries().combine_chunks()

    def of_rows(self, rows_R: NDArray[np.int64]) -> Iterator[Any]:
        """The lines of these rows (ascending), one table per row group that has any."""
        import pyarrow.compute as pc

        for group in self._groups_of(rows_R):
            table = self._read(group, None)
            found = table.filter(pc.is_in(table["row"], value_set=pa.array(rows_R)))
            if found.num_rows:
                yield found

    def of_values(self, column: str, values: Any) -> Iterator[Any]:
        """The lines whose `column` is one of `values` (an arrow array); other columns are only read in row groups with a hit."""
        import pyarrow.compute as pc

        for group in range(self._parquet.metadata.num_row_groups):
            hits = is_one_of(self._read(group, [column])[column], values)
            if pc.any(hits).as_py():
                yield self._read(group, None).filter(hits)

    def _groups_of(self, rows_R: NDArray[np.int64]) -> Iterator[int]:
        """Row groups whose range of rows includes one of these rows; also those without a recorded range."""
        place = LINEAGE_SCHEMA.get_field_index("row")
        for group in range(self._parquet.metadata.num_row_groups):
            statistics = self._parquet.metadata.row_group(group).column(place).statistics
            if statistics is None or not statistics.has_min_max:
                yield group
                continue
            first, end = np.searchsorted(rows_R, [statistics.min, statistics.max + 1])
            if first < end:
                yield group

    def _read(self, group: int, columns: Sequence[str] | None) -> Any:
        try:
            # One thread: a thread of arrow that still releases our Python file when the interpreter ends aborts the process.
            names = None if columns is None else list(columns)
            return self._parquet.read_row_group(group, columns=names, use_threads=False)
        except PARQUET_ERRORS as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> MoseError:
        return MoseError(f"{self.path}: not a readable parquet file: {first_line(error)}")


def is_one_of(column: Any, values: Any) -> Any:
    """Whether the text of each line is one of `values`; looks up each text of a dictionary column once."""
    # Imported late here and below: it builds 300 functions at import, which every command would pay.
    import pyarrow.compute as pc

    chunks = [
        pc.fill_null(pc.take(pc.is_in(chunk.dictionary, value_set=values), chunk.indices), False)
        if pa.types.is_dictionary(chunk.type)
        else pc.is_in(chunk, value_set=values)
        for chunk in column.chunks
    ]
    return pa.chunked_array(chunks, pa.bool_())


def text_marks(column: Any, holds: Callable[[str], bool]) -> Any:
    """Whether `holds` is true of the text of each line; calls it once per text of a dictionary."""
    import pyarrow.compute as pc

    chunks = []
    for chunk in column.chunks:
        encoded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
        found = pa.array([holds(text or "") for text in encoded.dictionary.to_pylist()], pa.bool_())
        chunks.append(pc.fill_null(pc.take(found, encoded.indices), False))
    return pa.chunked_array(chunks, pa.bool_())


def codes(column: Any) -> tuple[INT64_ARRAY, list[str]]:
    """A column of text as codes [S] and the texts that they index."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], array.type)
    encoded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary.to_pylist()


def is_of_one(row_S: INT64_ARRAY, value_S: INT64_ARRAY, rows: int) -> NDArray[np.bool_]:
    """Whether all lines of a row have the same value [R]; False for a row without lines."""
    smallest_R = np.full(rows, np.iinfo(np.int64).max)
    largest_R = np.full(rows, np.iinfo(np.int64).min)
    np.minimum.at(smallest_R, row_S, value_S)
    np.maximum.at(largest_R, row_S, value_S)
    is_one_R: NDArray[np.bool_] = smallest_R == largest_R
    return is_one_R

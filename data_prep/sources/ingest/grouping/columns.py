"""The columns that `group` writes, and the conversion of any input to a flat table of files with these columns.

F: files of a batch of rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.sources.stack_v2.file_columns import blob_ids, flags, normal_files, plain, read_column, texts
from data_prep.sources.stack_v2.parquet_file import CONTENT, FILE_COLUMNS, columns_of, open_parquet
from data_prep.sources.stack_v2.row_batches import BYTES_A_FILE, RowBatch, row_batches
from mose.errors import MoseError, first_line
from mose.seeding import derive_key

NAME = "repo_name"
BLOB_ID = "blob_id"
KEY = "key"
"""A seeded hash of the repository's name; parts are ranges of it."""
SIZE = "size"
"""Decoded size of a file in bytes."""
ORDER = "order"
"""Position in the input; orders files with the same path."""

_TIME = pa.timestamp("ns")
# The features of bigcode/the-stack-v2-train-full-ids, in the order of the data set.
REPOSITORY_TYPES = {
    "repo_name": pa.string(), "repo_url": pa.string(), "snapshot_id": pa.string(), "revision_id": pa.string(),
    "directory_id": pa.string(), "branch_name": pa.string(), "visit_date": _TIME, "revision_date": _TIME,
    "committer_date": _TIME, "github_id": pa.int64(), "star_events_count": pa.int64(), "fork_events_count": pa.int64(),
    "gha_license_id": pa.string(), "gha_created_at": _TIME, "gha_updated_at": _TIME, "gha_pushed_at": _TIME,
    "gha_language": pa.string(),
}  # fmt: skip
FILE_TYPES = {
    "blob_id": pa.string(), "path": pa.string(), "content_id": pa.string(), "language": pa.string(), "length_bytes": pa.int64(),
    "detected_licenses": pa.list_(pa.string()), "license_type": pa.string(), "src_encoding": pa.string(),
    "is_vendor": pa.bool_(), "is_generated": pa.bool_(), "alphanum_fraction": pa.float32(), "alpha_fraction": pa.float32(),
    "num_lines": pa.int64(), "avg_line_length": pa.float32(), "max_line_length": pa.int64(), "content": pa.large_binary(),
}  # fmt: skip
REQUIRED_FILE_COLUMNS = (*FILE_COLUMNS, "length_bytes")
_PLACES_AN_INPUT = 40


@dataclass(frozen=True)
class OutputColumns:
    """The columns of the output."""

    repository: tuple[str, ...]
    file: tuple[str, ...]

    @property
    def flat_schema(self) -> pa.Schema:
        """One row per file: key, position in the input, size, columns of the repository, columns of the file."""
        types = {KEY: pa.uint64(), ORDER: pa.int64(), SIZE: pa.int64(), **self._types()}
        return pa.schema(list(types.items()))

    @property
    def schema(self) -> pa.Schema:
        """One row per repository."""
        element = pa.struct([(name, FILE_TYPES[name]) for name in self.file])
        columns = [(name, REPOSITORY_TYPES[name]) for name in self.repository]
        return pa.schema([*columns, ("files", pa.list_(pa.field("element", element))), ("num_files", pa.int64())])

    def _types(self) -> dict[str, pa.DataType]:
        return {
            **{name: REPOSITORY_TYPES[name] for name in self.repository},
            **{name: FILE_TYPES[name] for name in self.file},
        }


@dataclass
class InputCounts:
    """Counts of one input."""

    files: int = 0
    empty_repositories: int = 0
    contents_left_out: dict[str, int] = field(default_factory=dict)
    """Number of files per repository whose content could not be decoded within the memory bound."""


@dataclass(frozen=True)
class FlatInput:
    """One parquet file as a flat table of files, each with the columns of its repository."""

    path: str
    number: int
    """Number of the file among the inputs."""
    layout: OutputColumns
    seed: int
    limit_bytes: int
    """Upper bound of the decoded size of one row."""

    def tables(self, batch_bytes: int, counts: InputCounts) -> Iterator[pa.Table]:
        """The files in input order, in tables of about `batch_bytes`; adds to `counts`.

        Raises:
            MoseError: the file is corrupt, a column has an unexpected type, or a row has no repository name.
        """
        first_row = 0
        for group in range(open_parquet(self.path).metadata.num_row_groups):
            batches = row_batches(self.path, group, self.layout.file, batch_bytes, self.layout.repository, self.limit_bytes)
            for batch in batches:
                try:
                    yield self._flatten(batch, first_row + batch.first, counts)
                except (ValueError, pa.ArrowException) as error:
                    rows = f"rows {batch.first} to {batch.first + batch.rows.num_rows - 1}"
                    raise MoseError(f"{self.path}: row group {group}: {rows}: {first_line(error)}") from None
            first_row += open_parquet(self.path).metadata.row_group(group).num_rows

    def _flatten(self, batch: RowBatch, first_row: int, counts: InputCounts) -> pa.Table:
        rows = batch.rows
        names = self._names(rows, first_row)
        if columns_of(self.path).is_nested:
            files = normal_files(rows.column("files"))
            lengths = pc.fill_null(pc.list_value_length(files), 0)
            counts.empty_repositories += pc.sum(pc.equal(lengths, 0)).as_py() or 0
            parents = pc.list_parent_indices(files)
            struct = files.flatten()
            columns = {struct.type.field(i).name: struct.field(i) for i in range(struct.type.num_fields)}
            columns |= {name: rows.column(name).take(parents) for name in rows.schema.names if name != "files"}
            names = names.take(parents)
        else:
            columns = {name: plain(rows.column(name)) for name in rows.schema.names}
        columns[NAME] = names
        if BLOB_ID in columns and columns[BLOB_ID].type not in (pa.string(), pa.large_string()):
            columns[BLOB_ID] = pa.array(read_column(BLOB_ID, blob_ids, columns[BLOB_ID]), pa.string())
        if batch.too_large:
            for name, number in zip(*_value_counts(names), strict=True):
                counts.contents_left_out[name] = counts.contents_left_out.get(name, 0) + number
        table = self._table(columns, counts.files)
        counts.files += len(table)
        return table

    def _names(self, rows: pa.RecordBatch, first_row: int) -> pa.Array:
        names = rows.column(NAME)
        if names.type != pa.string():
            names = pa.array(read_column(NAME, texts, names), pa.string())
        if names.null_count or pc.any(pc.equal(names, "")).as_py():
            row = first_row + next(i for i, name in enumerate(names.to_pylist()) if not name)
            raise MoseError(f"{self.path}: {NAME}: row {row} is empty; expected a name such as owner/project")
        return names

    def _table(self, columns: dict[str, pa.Array], first_file: int) -> pa.Table:
        schema = self.layout.flat_schema
        num_files = len(columns[NAME])
        columns[KEY] = pa.array(repository_keys(columns[NAME], self.seed))
        # Input number and position in one integer: the sort then has one order over all inputs, whichever worker read them.
        place = (self.number << _PLACES_AN_INPUT) + first_file
        contents = columns.get(CONTENT, pa.nulls(num_files, pa.large_binary())).cast(pa.large_binary())
        columns[SIZE] = pc.add(pc.fill_null(pc.binary_length(contents), 0), BYTES_A_FILE)
        columns[ORDER] = pa.array(np.arange(place, place + num_files, dtype=np.int64))
        # Paths must sort as in the reader, which adds a missing leading slash.
        bare = pc.utf8_ltrim(pc.fill_null(columns["path"].cast(pa.string()), ""), characters="/")
        columns["path"] = pc.binary_join_element_wise(pa.scalar("/"), bare, "")
        return pa.table([self._column(columns, wanted, num_files) for wanted in schema], schema=schema)

    def _column(self, columns: dict[str, pa.Array], wanted: pa.Field, num_files: int) -> pa.Array:
        if wanted.name not in columns:
            return pa.nulls(num_files, wanted.type)
        try:
            if wanted.type == pa.bool_() and columns[wanted.name].type != pa.bool_():
                return pa.array(read_column(wanted.name, flags, columns[wanted.name]), wanted.type)
            return columns[wanted.name].cast(wanted.type)
        except pa.ArrowException:
            found = columns[wanted.name].type
            raise MoseError(f"{self.path}: {wanted.name}: is {found}, expected {wanted.type}") from None


def repository_keys(names_F: pa.Array, seed: int) -> NDArray[np.uint64]:
    """The seeded hash of each repository name."""
    # Hash each distinct name once: a repository has many files.
    encoded = names_F.dictionary_encode()
    keys = np.array([derive_key(seed, "group", name) for name in encoded.dictionary.to_pylist()], dtype=np.uint64)
    keys_F: NDArray[np.uint64] = keys[encoded.indices.to_numpy()]
    return keys_F


def part_of(keys_F: NDArray[np.uint64], num_parts: int) -> NDArray[np.int64]:
    """The part of each key: equal ranges of keys, so that rows sorted by key are sorted by part too."""
    # Only the upper 32 bits of a key, so that the product with num_parts fits into 64 bits.
    return (((keys_F >> np.uint64(32)) * np.uint64(num_parts)) >> np.uint64(32)).astype(np.int64)


def layout_of(paths: Sequence[str], repository: Sequence[str], file: Sequence[str]) -> OutputColumns:
    """The output's columns: those requested, in the order of The Stack v2; content only if an input has it.

    Raises:
        MoseError: an input cannot be read or lacks a column.
    """
    # Opens every input, so that an error is reported before any work is done.
    known = [columns_of(path).file for path in paths]
    has_content = any(CONTENT in columns for columns in known)
    repository = [name for name in REPOSITORY_TYPES if name in repository or name == NAME]
    files = [name for name in FILE_TYPES if name in file or name in REQUIRED_FILE_COLUMNS]
    return OutputColumns(tuple(repository), tuple(name for name in files if name != CONTENT or has_content))


def _value_counts(names: pa.Array) -> tuple[list[str], list[int]]:
    counted: Any = pc.value_counts(names)
    return counted.field("values").to_pylist(), counted.field("counts").to_pylist()

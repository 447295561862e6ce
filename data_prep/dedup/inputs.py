"""What a deduplication reads: ranges of rows of parquet files, or repositories; and the evaluation texts beside them."""

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.dedup.config import DedupConfig, EvaluationConfig
from data_prep.filters.config import FiltersConfig
from data_prep.filters.evaluation_texts import read_examples
from data_prep.filters.filters import FilterCounts, filter_repository
from data_prep.pipeline.assignment import Assignment, TaskInputs
from data_prep.sources.registry import SourcesConfig, grouped_parts, list_repositories, source_fingerprint
from data_prep.sources.stack_v2.parquet_file import expand, footer_fingerprint
from mose.command import one_line
from mose.config import fingerprint
from mose.errors import MoseError, first_line
from mose.files.atomic_file import file_sha256
from mose.files.parquet_errors import PARQUET_ERRORS
from mose.files.storage import is_local, storage_path

BATCH_ROWS = 256
EXPECTED = "parquet files with text columns"


@dataclass(frozen=True)
class Origin:
    """Where a row comes from that has no row number in a parquet file."""

    name: str
    """Repository, or evaluation file."""
    path: str = ""
    """Path in the repository, or number of the example."""
    blob_id: str = ""


@dataclass(frozen=True)
class InputRow:
    """The texts of one row, one per column."""

    texts: tuple[str, ...]
    origin: Origin | None = None
    """None for rows of parquet files."""


@dataclass(frozen=True)
class InputFile:
    """A parquet file and the place of its rows among those of all files."""

    path: str
    first: int
    rows: int


@dataclass(frozen=True)
class RowRange:
    """Consecutive rows of the parquet files, read in batches of at most `BATCH_ROWS`."""

    files: tuple[InputFile, ...]
    first: int
    last: int
    """The row after the last one."""
    columns: tuple[str, ...]
    expected_repositories: int = 0

    def rows(self) -> Iterator[InputRow]:
        """The texts of every row; a null counts as an empty text.

        Raises:
            MoseError: a file cannot be read.
        """
        for table in self.tables(list(self.columns)):
            texts = (table.column(name).to_pylist() for name in self.columns)
            yield from (InputRow(tuple(text or "" for text in row)) for row in zip(*texts, strict=True))

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The rows as tables, with all columns if none are named."""
        for file in self.files:
            if file.first < self.last and self.first < file.first + file.rows:
                try:
                    yield from self._tables_of(file, columns)
                except PARQUET_ERRORS as error:
                    raise MoseError(f"{file.path}: rows cannot be read: {first_line(error)}; expected {EXPECTED}") from None

    def _tables_of(self, file: InputFile, columns: list[str] | None) -> Iterator[pa.Table]:
        with storage_path(file.path).open("rb") as stored:
            # This buffer and no pre-buffering bound the memory by a page per column instead of a row group.
            reader = pq.ParquetFile(stored, buffer_size=1 << 20, pre_buffer=False)
            row = file.first
            for group in range(reader.num_row_groups):
                size = reader.metadata.row_group(group).num_rows
                if row < self.last and self.first < row + size:
                    start = row
                    for batch in reader.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
                        low, high = max(self.first - start, 0), min(self.last - start, len(batch))
                        if low < high:
                            yield pa.Table.from_batches([batch.slice(low, high - low)])
                        start += len(batch)
                row += size


@dataclass(frozen=True)
class RepositoryFiles:
    """The repositories of one task, whose files pass the filters first."""

    inputs: TaskInputs
    sources: SourcesConfig
    filters: FiltersConfig
    unreadable: list[str] = field(default_factory=list)
    """Filled while the rows are read: repositories that cannot be read, as `mose-data pack` leaves them out."""

    @property
    def expected_repositories(self) -> int:
        """Number of repositories."""
        return self.inputs.expected_repositories

    def rows(self) -> Iterator[InputRow]:
        """The text of every file."""
        counts = FilterCounts()
        for ref, files in self.inputs.read(self.sources):
            try:
                for file in filter_repository(files, self.filters, counts):
                    yield InputRow((file.text,), Origin(ref.name, file.source.path, file.source.blob_id))
            except (MoseError, OSError) as error:
                self.unreadable.append(ref.name)
                print(f"dedup: {ref.name} is left out from here on: {one_line(error)}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Plan:
    """The inputs of all tasks."""

    fingerprint: str
    """Changes when the inputs or the evaluation files do."""
    ranges: tuple[RowRange, ...] = ()
    """By task, where the inputs are parquet files."""
    files: tuple[InputFile, ...] = ()
    assignment: Assignment | None = None
    config: DedupConfig | None = None

    def inputs_of(self, task: int) -> RowRange | RepositoryFiles:
        """The inputs of one task."""
        if self.assignment is None or self.config is None:
            return self.ranges[task]
        return RepositoryFiles(self.assignment.inputs_of(task), self.config.sources, self.config.filters)


def plan_inputs(config: DedupConfig) -> Plan:
    """Assign the inputs to tasks: consecutive rows, or consecutive repositories by name.

    Raises:
        MoseError: a file or source cannot be read, or a file lacks a column or has other columns than the first.
    """
    evaluation = [_content_of(file) for file in config.evaluation.files]
    if not config.inputs:
        assignment = _assign_repositories(config)
        return Plan(fingerprint([assignment.fingerprint, evaluation]), assignment=assignment, config=config)
    files: list[InputFile] = []
    facts, total = [], 0
    schema: pa.Schema | None = None
    for path in dict.fromkeys(path for pattern in config.inputs for path in expand(pattern, EXPECTED)):
        rows, found = _rows_of(path, config.columns)
        if schema is not None and not found.equals(schema):
            raise MoseError(f"{path}: its columns differ from those of {files[0].path}; expected equal names and types")
        schema = found
        files.append(InputFile(path, total, rows))
        facts.append(footer_fingerprint(path))
        total += rows
    cuts = [total * task // config.num_tasks for task in range(config.num_tasks + 1)]
    ranges = []
    for first, last in itertools.pairwise(cuts):
        overlapping = tuple(file for file in files if file.first < last and first < file.first + file.rows)
        ranges.append(RowRange(overlapping, first, last, config.columns))
    return Plan(fingerprint([facts, evaluation]), tuple(ranges), tuple(files))


def evaluation_rows(config: EvaluationConfig, num_columns: int, task: int, num_tasks: int) -> Iterator[InputRow]:
    """A task's share of the evaluation texts: every `num_tasks`-th, the same text in every column."""
    number = 0
    for file in config.files:
        name = storage_path(file).name
        for example, texts in enumerate(read_examples(file, config.fields)):
            for text in texts:
                if number % num_tasks == task:
                    yield InputRow((text,) * num_columns, Origin(name, f"example {example}"))
                number += 1


def _assign_repositories(config: DedupConfig) -> Assignment:
    parts, number = grouped_parts(config.sources), config.num_tasks
    found = source_fingerprint(config.sources)
    if parts:
        return Assignment(number, found, parts=tuple(parts))
    refs = list_repositories(config.sources)
    cuts = [len(refs) * task // number for task in range(number + 1)]
    return Assignment(number, found, tuple(tuple(refs[a:b]) for a, b in itertools.pairwise(cuts)))


def _rows_of(path: str, columns: tuple[str, ...]) -> tuple[int, pa.Schema]:
    """Number of rows and schema of a parquet file that has these text columns."""
    try:
        with storage_path(path).open("rb") as stored:
            reader = pq.ParquetFile(stored)
            schema, rows = reader.schema_arrow, reader.metadata.num_rows
    except PARQUET_ERRORS as error:
        message = getattr(error, "strerror", None) or first_line(error)
        raise MoseError(f"{path}: cannot be read: {message}; expected {EXPECTED}") from None
    for name in columns:
        if name not in schema.names:
            raise MoseError(f"{path}: columns: no column {name}; expected some of: {', '.join(schema.names)}")
        kind: Any = schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            raise MoseError(f"{path}: columns: {name} is of type {kind}, expected text")
    return rows, schema


def _content_of(file: str) -> str:
    path = storage_path(file)
    try:
        return file_sha256(path) if is_local(path) else fingerprint(path.read_bytes().hex())
    except OSError as error:
        message = error.strerror or first_line(error)
        raise MoseError(f"{Path(file)}: evaluation.files: cannot be read: {message}; expected an evaluation file") from None

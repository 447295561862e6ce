"""The source that reads folders of `mose-data group`: parts with one row per repository, described by grouped.json."""

import contextlib
import dataclasses
import itertools
import operator
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep.sources.repositories import RepositoryRef, SourceFile, SourceKind, content_sha1
from data_prep.sources.stack_v2.file_columns import texts
from data_prep.sources.stack_v2.parquet_file import CONTENT, columns_of, footer_fingerprint, open_parquet, stamp
from data_prep.sources.stack_v2.row_batches import row_batches
from data_prep.sources.stack_v2.row_cache import process_cache
from data_prep.sources.stack_v2.rows import (
    READ_COLUMNS,
    RowFiles,
    batch_row,
    check_repositories,
    metadata_of_rows,
    row_files,
    row_names,
    source_files,
)
from mose.errors import MoseError, first_line
from mose.files.json_file import parse_json
from mose.files.parquet_errors import PARQUET_ERRORS
from mose.files.records import from_plain
from mose.files.safe_path import path_inside
from mose.files.storage import storage_path

KIND = "stack_v2_grouped"
DESCRIPTION = "grouped.json"
VERSION = 1
# Bytes decoded at a time; `group` writes row groups of about this size.
_BATCH_BYTES = 1 << 25
# What a file without blob id gets while its content is not read.
_EMPTY = content_sha1(b"")


@dataclass(frozen=True)
class PartEntry:
    """The entry of one part in grouped.json."""

    name: str
    """File name in the folder."""
    repositories: int
    rows: int
    """More than `repositories` if one was too large for a row; its rows are consecutive."""
    files: int
    bytes: int
    """Sum of `length_bytes`, or of the content sizes if there is no such column."""
    size: int
    """Bytes of the parquet file."""
    footer: str
    """`footer_fingerprint` of the parquet file."""


@dataclass(frozen=True)
class GroupedFolder:
    """The content of grouped.json, which is written after all parts: its presence means that the folder is complete."""

    version: int
    fingerprint: str
    """A hash of inputs, seed and columns."""
    seed: int
    repositories: int
    files: int
    bytes: int
    parts: tuple[PartEntry, ...]
    empty_repositories: int = 0
    """Rows of the input without files."""
    contents_left_out: dict[str, int] = field(default_factory=dict)
    """Number of files per repository whose content could not be decoded within the memory bound; other columns are kept."""


@dataclass(frozen=True)
class GroupedPart:
    """One part of the grouped folders of a config."""

    number: int
    """From 0, over all grouped folders of the config in their order; task I of N reads those with number % N == I."""
    location: str
    """The parquet file."""
    entry: PartEntry


def is_grouped(text: str) -> bool:
    """Whether a path or URL is a folder that `mose-data group` completed."""
    return (storage_path(text) / DESCRIPTION).is_file()


def read_description(text: str) -> GroupedFolder:
    """grouped.json of a folder.

    Raises:
        MoseError: the file cannot be read, or has another version.
    """
    path = storage_path(text) / DESCRIPTION
    try:
        values = parse_json(path.read_bytes())
        if values["version"] != VERSION:
            raise MoseError(f"{path}: version: is {values['version']}, expected {VERSION}; group again")
        return from_plain(GroupedFolder, values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise MoseError(f"{path}: cannot be read: {error}; expected what `mose-data group` writes") from None


def parts_of(folders: list[str]) -> list[GroupedPart]:
    """The parts of grouped folders, numbered consecutively over all folders.

    Raises:
        MoseError: a grouped.json cannot be read.
    """
    places = [(str(_part(storage_path(folder), entry)), entry) for folder in folders for entry in read_description(folder).parts]
    return [GroupedPart(number, location, entry) for number, (location, entry) in enumerate(places)]


def _part(folder: Path, entry: PartEntry) -> Path:
    return path_inside(folder, entry.name, f"{folder / DESCRIPTION}: parts: name")


def read_part(
    part: GroupedPart, wanted_of: Callable[[RepositoryRef], Callable[[str], bool]], blob_store: str = ""
) -> Iterator[tuple[RepositoryRef, Iterator[SourceFile]]]:
    """The repositories of a part in its order, each with its files in path order; streams rows in bounded memory.

    `wanted_of` gives the predicate of the paths of a repository. Damaged rows fail when the files of their repository are read.
    Read the files of a repository before asking for the next repository; unread files are skipped.

    Raises:
        MoseError: the part is corrupt or not the one that grouped.json describes; the blob store is damaged.
    """
    if footer_fingerprint(part.location) != part.entry.footer:
        raise MoseError(f"{part.location}: is not the file that {DESCRIPTION} describes; group again, or copy the folder again")
    check_repositories(part.location, bool(blob_store))
    for (name, first), rows in itertools.groupby(_rows(part.location), key=operator.itemgetter(0)):
        ref = RepositoryRef(name, KIND, part.location, first)
        yield ref, _files(name, rows, wanted_of(ref), blob_store)


def list_rows(folder: str, has_store: bool) -> list[RepositoryRef]:
    """Every repository of a grouped folder; holds all names in memory, so large folders are read with `read_part`.

    Raises:
        MoseError: grouped.json or a part cannot be read.
    """
    refs = []
    for part in parts_of([folder]):
        names = row_names(part.location, has_store)
        starts = [row for row, name in enumerate(names) if row == 0 or name != names[row - 1]]
        refs += [RepositoryRef(name=names[row], kind=KIND, location=part.location, index=row) for row in starts]
    return refs


def read(ref: RepositoryRef, wanted: Callable[[str], bool], blob_store: str = "") -> Iterator[SourceFile]:
    """The files of a listed repository in path order, over all of its rows.

    Raises:
        MoseError: the part is corrupt, or the blob store is damaged.
    """
    key = (ref.location, stamp(ref.location), "names")
    names: list[str] = process_cache().get(key, lambda: _sized(row_names(ref.location, has_store=True)))
    for row in itertools.takewhile(lambda row: names[row] == names[ref.index], range(ref.index, len(names))):
        yield from source_files(ref.name, row_files(ref.location, row), wanted, blob_store)


def _sized(names: list[str]) -> tuple[list[str], int]:
    return names, sum(map(sys.getsizeof, names))


def _rows(location: str) -> Iterator[tuple[tuple[str, int], RowFiles | MoseError]]:
    """For each row: the repository (name and number of its first row) and the row's files, or why they cannot be read."""
    repository, row = ("", 0), 0
    for group in range(open_parquet(location).metadata.num_row_groups):
        for name, files in _rows_of_group(location, group):
            repository = repository if name == repository[0] else (name, row)
            yield repository, files
            row += 1


def _rows_of_group(location: str, group: int) -> Iterator[tuple[str, RowFiles | MoseError]]:
    """Name and files of each row; after damage, the names of the other rows of the row group with the error."""
    row = 0
    try:
        for batch in row_batches(location, group, READ_COLUMNS, _BATCH_BYTES, repository=("repo_name",)):
            for index, name in enumerate(texts(batch.rows.column("repo_name"))):
                place = f"{location}: row group {group}: row {row}"
                try:
                    files: RowFiles | MoseError = batch_row(batch.rows, index, batch.too_large, place)
                except (ValueError, pa.ArrowException) as error:
                    files = MoseError(f"{place}: {first_line(error)}")
                yield name or "", files
                row += 1
    except (MoseError, ValueError) as error:
        left = open_parquet(location).metadata.row_group(group).num_rows - row
        unnamed = [f"{storage_path(location).name}: row group {group}"] * min(left, 1)
        for name in _names_of_group(location, group)[row:] or unnamed:
            yield name, error if isinstance(error, MoseError) else MoseError(f"{location}: {first_line(error)}")


def metadata_of_files(location: str, wanted: Callable[[str], bool]) -> Iterator[SourceFile]:
    """The files of the wanted repositories of a parquet file, without content; damaged rows are passed over.

    Repositories with a file that has no blob id are read with their content, from which the id is computed.
    """
    lacking: set[str] = set()
    for file in _files_of(location, wanted, [name for name in READ_COLUMNS if name != CONTENT]):
        if file.blob_id == _EMPTY:
            lacking.add(file.repository)
        else:
            yield file
    if lacking and CONTENT in columns_of(location).file:
        files = _files_of(location, lacking.__contains__, list(READ_COLUMNS))
        yield from (file for file in files if file.blob_id != _EMPTY)


def _files_of(location: str, wanted: Callable[[str], bool], names: list[str]) -> Iterator[SourceFile]:
    for group in range(open_parquet(location).metadata.num_row_groups):
        try:
            for batch in row_batches(location, group, names, _BATCH_BYTES, repository=("repo_name",)):
                repositories = texts(batch.rows.column("repo_name"))
                if CONTENT not in names:
                    # After damage the rows before it are read one by one.
                    with contextlib.suppress(ValueError, pa.ArrowException):
                        yield from metadata_of_rows(repositories, batch.rows, batch.too_large, wanted)
                        continue
                for index, name in enumerate(repositories):
                    if name and wanted(name):
                        row = batch_row(batch.rows, index, batch.too_large, location)
                        yield from source_files(name, row, lambda path: True, "")
        except (MoseError, ValueError, pa.ArrowException):
            continue


def _names_of_group(location: str, group: int) -> list[str]:
    try:
        column = open_parquet(location).read_row_group(group, columns=["repo_name"], use_threads=False).column(0)
        return [name or "" for chunk in column.chunks for name in texts(chunk)]
    except PARQUET_ERRORS:
        return []


def _files(
    name: str,
    rows: Iterator[tuple[tuple[str, int], RowFiles | MoseError]],
    wanted: Callable[[str], bool],
    blob_store: str,
) -> Iterator[SourceFile]:
    for _, row in rows:
        if isinstance(row, MoseError):
            raise row
        yield from source_files(name, row, wanted, blob_store)


def to_plain(folder: GroupedFolder) -> dict[str, Any]:
    """grouped.json as nested dictionaries."""
    return dataclasses.asdict(folder)


GROUPED = SourceKind(
    KIND,
    list_entry=lambda folder, blob_store: list_rows(folder, bool(blob_store)),
    read=read,
    accepts=is_grouped,
    knows_files=True,
    knows_licences=True,
    facts=lambda folder: [read_description(folder).fingerprint],
)

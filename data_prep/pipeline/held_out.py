"""Collects the files of the held-out repositories before a data set is packed, so that train can go without their copies.

A copy in train of a held-out file makes validation measure memory. The held-out repositories are few and known by their names, so
one pass over them, before any task, gives the same set whatever the number of tasks; train repositories are not read.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from data_prep.filters.blob_set import BlobSet
from data_prep.filters.filters import BYTES_FILTERS, FilterCounts, filter_repository
from data_prep.pipeline.assignment import Assignment
from data_prep.pipeline.config import PackConfig
from data_prep.pipeline.duplicates import write_duplicates
from data_prep.pipeline.near_duplicates import NearDuplicates, write_near_duplicates
from data_prep.sources.registry import read_repository
from data_prep.sources.repositories import HELD_OUT, TRAIN, RepositoryRef, SourceFile, split_of
from data_prep.sources.stack_v2.grouped import metadata_of_files
from data_prep.sources.stack_v2.rows import KIND as ROWS_KIND
from mose.errors import MoseError
from mose.files.lock import HeldError, lock_file

_WAIT_SECONDS = 2.0
# What metadata decides; the other filters judge the content and so drop all copies of a file alike.
_BY_METADATA = ("opt_out", "vendored", "generated", "language", "documentation", "licence", "licence_name")


def held_out_path(dataset: Path) -> Path:
    """Path of the set of held-out files."""
    return dataset / "tasks" / "held_out.npy"


Reader = Callable[[RepositoryRef], Iterator[SourceFile]]


def prepare_held_out(
    dataset: Path, config: PackConfig, assignment: Assignment, *, is_new: bool, read: Reader | None = None
) -> None:
    """Write the set of held-out files, unless it is there, no repository is held out, or an earlier version began the data set.

    Of the tasks of an array, one collects the set and the others wait for it. A dry run gives `read`, which reads its sample.
    """
    path = held_out_path(dataset)
    if config.held_out_copies == "ignore" or not config.held_out_fraction or (not is_new and not path.is_file()):
        return

    def write() -> None:
        BlobSet.of(blob_id for _, blob_id in _files(dataset, config, assignment, HELD_OUT, read)).write(path)

    _write_once(path, "one process that collects the held-out files", write)


def duplicates_path(dataset: Path) -> Path:
    """Path of the table of files that stand in several train repositories."""
    return dataset / "tasks" / "duplicates.npy"


def prepare_duplicates(dataset: Path, config: PackConfig, assignment: Assignment, read: Reader | None = None) -> None:
    """Write the table of duplicates among train repositories, unless it is there or the config ignores them.

    Of folders and git checkouts all content is read once more for it, of parquet files only the metadata.
    """
    path = duplicates_path(dataset)

    def write() -> None:
        write_duplicates(path, _files(dataset, config, assignment, TRAIN, read), config.seed)

    if config.duplicates != "ignore":
        _write_once(path, "one process that looks for duplicates", write)


def near_duplicates_path(dataset: Path) -> Path:
    """Path of the table of files that `near_duplicates` lists."""
    return dataset / "tasks" / "near_duplicates.npy"


def prepare_near_duplicates(dataset: Path, config: PackConfig) -> None:
    """Write the table of near-duplicates, unless it is there or the config names no list; before the other two, which heed it.

    Raises:
        MoseError: a list cannot be read.
    """
    path = near_duplicates_path(dataset)
    if config.near_duplicates:
        _write_once(
            path, "one process that reads the near-duplicates", lambda: write_near_duplicates(path, config.near_duplicates)
        )


def near_duplicates_of(dataset: Path, config: PackConfig) -> NearDuplicates:
    """The table that `prepare_near_duplicates` wrote; an empty one if the config names no list."""
    return NearDuplicates.read(near_duplicates_path(dataset)) if config.near_duplicates else NearDuplicates.none()


def _write_once(path: Path, expected: str, write: Callable[[], None]) -> None:
    """Write a file unless it is there; of several processes one writes and the others wait for it."""
    while not path.is_file():
        try:
            with lock_file(path.with_suffix(".lock"), str(path), expected):
                if not path.is_file():
                    write()
        except HeldError:
            time.sleep(_WAIT_SECONDS)


def _files(
    dataset: Path, config: PackConfig, assignment: Assignment, split: str, read: Reader | None
) -> Iterator[tuple[str, str]]:
    """Repository and blob id of each file of a split that neither its metadata nor the list of near-duplicates excludes."""
    near = near_duplicates_of(dataset, config)

    def is_wanted(name: str) -> bool:
        return split_of(name, config.seed, config.held_out_fraction) == split

    refs = [ref for refs in assignment.refs for ref in refs if is_wanted(ref.name)]
    for ref in refs:
        if ref.kind != ROWS_KIND:
            files = read(ref) if read else read_repository(ref, config.sources)
            yield from ((ref.name, blob_id) for blob_id in _blobs_of(files, config, near))
    locations = {part.location for part in assignment.parts} | {ref.location for ref in refs if ref.kind == ROWS_KIND}
    for location in sorted(locations):
        for file in metadata_of_files(location, is_wanted):
            if not _is_dropped(file, config) and not near.reason(file):
                yield file.repository, file.blob_id


def _blobs_of(files: Iterator[SourceFile], config: PackConfig, near: NearDuplicates) -> list[str]:
    """The files of a repository that pass the filters; none of one that cannot be read, as its task leaves it out."""
    filters = config.filters
    if "drop" not in (filters.secrets, filters.personal_data):
        # What is replaced drops no file and changes no blob id. Where one drops, both count: of findings that overlap one stays.
        filters = replace(filters, secrets="keep", personal_data="keep")
    try:
        texts = filter_repository(files, filters, FilterCounts(), excluded=near.reason)
        return [text.source.blob_id for text in texts]
    except (MoseError, OSError):
        return []


def _is_dropped(file: SourceFile, config: PackConfig) -> bool:
    return any(entry.drops(file, config.filters) for entry in BYTES_FILTERS if entry.reason in _BY_METADATA)

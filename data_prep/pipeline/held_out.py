"""Collects the files of the held-out repositories before a data set is packed, so that train can go without their copies.

A copy in train of a held-out file makes validation measure memory. The held-out repositories are few and known by their names, so
one pass over them, before any task, gives the same set whatever the number of tasks; train repositories are not read.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep.filters.blob_set import BlobSet
from data_prep.filters.filters import BYTES_FILTERS, FilterCounts, filter_repository
from data_prep.pipeline.assignment import Assignment
from data_prep.pipeline.config import PackConfig
from data_prep.pipeline.duplicates import write_duplicates
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
    while not path.is_file():
        try:
            with lock_file(path.with_name("held_out.lock"), str(path), "one process that collects the held-out files"):
                if not path.is_file():
                    BlobSet.of(blob_id for _, blob_id in _files(config, assignment, HELD_OUT, read)).write(path)
        except HeldError:
            time.sleep(_WAIT_SECONDS)


def duplicates_path(dataset: Path) -> Path:
    """Path of the table of files that stand in several train repositories."""
    return dataset / "tasks" / "duplicates.npy"


def prepare_duplicates(dataset: Path, config: PackConfig, assignment: Assignment, read: Reader | None = None) -> None:
    """Write the table of duplicates among train repositories, unless it is there or the config ignores them.

    Of folders and git checkouts all content is read once more for it, of parquet files only the metadata.
    """
    path = duplicates_path(dataset)
    while config.duplicates != "ignore" and not path.is_file():
        try:
            with lock_file(path.with_name("duplicates.lock"), str(path), "one process that looks for duplicates"):
                if not path.is_file():
                    write_duplicates(path, _files(config, assignment, TRAIN, read), config.seed)
        except HeldError:
            time.sleep(_WAIT_SECONDS)


def _files(config: PackConfig, assignment: Assignment, split: str, read: Reader | None) -> Iterator[tuple[str, str]]:
    """Repository and blob id of each file of a split that its metadata does not exclude."""

    def is_wanted(name: str) -> bool:
        return split_of(name, config.seed, config.held_out_fraction) == split

    refs = [ref for refs in assignment.refs for ref in refs if is_wanted(ref.name)]
    for ref in refs:
        if ref.kind != ROWS_KIND:
            files = read(ref) if read else read_repository(ref, config.sources)
            yield from ((ref.name, blob_id) for blob_id in _blobs_of(files, config))
    locations = {part.location for part in assignment.parts} | {ref.location for ref in refs if ref.kind == ROWS_KIND}
    for location in sorted(locations):
        for file in metadata_of_files(location, is_wanted):
            if not _is_dropped(file, config):
                yield file.repository, file.blob_id


def _blobs_of(files: Iterator[SourceFile], config: PackConfig) -> list[str]:
    """The files of a repository that pass the filters; none of one that cannot be read, as its task leaves it out."""
    try:
        texts = filter_repository(files, config.filters, FilterCounts())
        return [text.source.blob_id for text in texts]
    except (MoseError, OSError):
        return []


def _is_dropped(file: SourceFile, config: PackConfig) -> bool:
    return any(entry.drops(file, config.filters) for entry in BYTES_FILTERS if entry.reason in _BY_METADATA)

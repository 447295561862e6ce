"""The two passes of `mose-data group`: partition the inputs into buckets on disk, then sort each bucket into its parts.

The rows of a repository may be anywhere in inputs far larger than the memory. A bucket is a range of repository keys, so that
it holds whole repositories and can be sorted alone, in any worker. Keys are hashes: buckets are of similar size, and parts are
random samples of the repositories. Each step ends with a marker file, so that a rerun repeats only unfinished steps.
"""

import dataclasses
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.console import show_progress
from data_prep.sources.ingest.folder_lock import lock_folder
from data_prep.sources.ingest.grouping.bucket_file import Batch, BucketWriter, load_batches, save_batches
from data_prep.sources.ingest.grouping.columns import KEY, FlatInput, InputCounts, OutputColumns, layout_of, part_of
from data_prep.sources.ingest.grouping.config import GroupConfig
from data_prep.sources.ingest.grouping.parts import write_parts
from data_prep.sources.ingest.grouping.sorting import sorted_tables
from data_prep.sources.stack_v2.grouped import (
    DESCRIPTION,
    VERSION,
    GroupedFolder,
    PartEntry,
    is_grouped,
    read_description,
    to_plain,
)
from data_prep.sources.stack_v2.parquet_file import expand, footer_fingerprint
from mose.config import fingerprint
from mose.errors import MoseError
from mose.files.atomic_file import write_json, write_text
from mose.files.json_file import parse_json
from mose.files.lock import WRITER_LOCK, lock_file
from mose.files.records import from_plain
from mose.files.storage import storage_path

# Python, numpy and pyarrow before any row is read (measured: 110 MB), and a row group of 32 MiB while it is encoded.
_BASE_BYTES = 1 << 28
# Input batch, buffered rows, their sorted copy, encoded row group: with this share, measured peaks stay below the bound.
_SHARE = 8
_MAX_BUCKETS = 64


@dataclass(frozen=True)
class Grouping:
    """A config and its resolved inputs: everything that a worker needs."""

    config: GroupConfig
    paths: tuple[str, ...]
    layout: OutputColumns
    fingerprint: str

    @property
    def scratch(self) -> Path:
        """The folder for temporary files."""
        return Path(self.config.scratch) if self.config.scratch else storage_path(self.config.output) / ".grouping"

    @property
    def num_buckets(self) -> int:
        """Buckets of the first pass; each is a range of parts."""
        return min(_MAX_BUCKETS, self.config.num_parts)

    @property
    def budget_bytes(self) -> int:
        """Size of the rows held in memory at a time."""
        return (self.config.memory_bytes - _BASE_BYTES) // _SHARE

    def bucket_parts(self, bucket: int) -> tuple[int, int]:
        """The first part of a bucket, and that of the next bucket."""
        parts = self.config.num_parts
        return -(-bucket * parts // self.num_buckets), -(-(bucket + 1) * parts // self.num_buckets)


def group(config: GroupConfig) -> GroupedFolder:
    """Group the inputs by repository; a rerun after a kill repeats only unfinished inputs and buckets.

    Raises:
        MoseError: an input cannot be read or lacks a column; the output holds another grouping.
    """
    grouping = _prepare(config)
    if is_grouped(config.output):
        done = read_description(config.output)
        if done.fingerprint != grouping.fingerprint:
            raise MoseError(f"{config.output}: output: holds a grouping of other inputs or settings; expected an empty folder")
        # A run that was killed after its last file left it.
        shutil.rmtree(grouping.scratch, ignore_errors=True)
        return done
    # The scratch folder may be on a disk of this machine, the output on one that others share: each needs its own lock.
    with (
        lock_folder(grouping.scratch, "one `mose-data group` at a time"),
        lock_file(storage_path(config.output) / WRITER_LOCK, config.output, "one `mose-data group` per output"),
    ):
        _claim_scratch(grouping)
        folder = _group(grouping)
    shutil.rmtree(grouping.scratch)
    return folder


def _group(grouping: Grouping) -> GroupedFolder:
    _run_all(grouping, "reading", len(grouping.paths), _bucket_file, partition_input)
    _run_all(grouping, "grouping", grouping.num_buckets, _bucket_path, write_bucket)
    folder = _describe(grouping)
    write_json(storage_path(grouping.config.output) / DESCRIPTION, to_plain(folder))
    return folder


def partition_input(grouping: Grouping, number: int) -> None:
    """Partition the files of one input into buckets, in one temporary file.

    Raises:
        MoseError: the input is corrupt or holds a column of another type.
        OSError: the disk is full.
    """
    counts = InputCounts()
    config, budget = grouping.config, grouping.budget_bytes
    source = FlatInput(grouping.paths[number], number, grouping.layout, config.seed, config.memory_bytes // 4)
    path = _bucket_file(grouping, number).with_suffix(".arrow")
    with BucketWriter(path, grouping.layout.flat_schema, lambda table: _buckets(grouping, table), budget) as writer:
        for table in source.tables(budget // 2, counts):
            writer.add(table)
        batches = writer.close()
    save_batches(_bucket_file(grouping, number), batches, dataclasses.asdict(counts))


def write_bucket(grouping: Grouping, bucket: int) -> None:
    """Write the parts of one bucket from all partitioned inputs.

    Raises:
        MoseError: a temporary file is damaged.
        OSError: the disk is full.
    """
    inputs = range(len(grouping.paths))
    batches = [batch for number in inputs for batch in _partitioned(grouping, number)[0] if batch.bucket == bucket]
    scratch = grouping.scratch / f"bucket-{bucket:05d}"
    shutil.rmtree(scratch, ignore_errors=True)
    tables = sorted_tables(batches, grouping.layout.flat_schema, grouping.budget_bytes, scratch)
    first, last = grouping.bucket_parts(bucket)
    entries = write_parts(grouping.config.output, first, last, grouping.config.num_parts, tables, grouping.layout)
    write_json(_bucket_path(grouping, bucket), [dataclasses.asdict(entry) for entry in entries])


def _prepare(config: GroupConfig) -> Grouping:
    paths = tuple(dict.fromkeys(path for pattern in config.inputs for path in expand(pattern)))
    layout = layout_of(paths, config.repository_columns, config.file_columns)
    facts = [footer_fingerprint(path) for path in paths]
    settings = [config.num_parts, config.seed, layout.repository, layout.file]
    return Grouping(config, paths, layout, fingerprint([VERSION, facts, settings]))


def _claim_scratch(grouping: Grouping) -> None:
    """Bind the folder for temporary files to this grouping, or check that it already is.

    Raises:
        MoseError: the folder holds temporary files of another grouping.
    """
    claim = grouping.scratch / "fingerprint"
    mine = f"{grouping.fingerprint} {grouping.num_buckets}"
    if claim.is_file() and claim.read_text("utf-8") != mine:
        raise MoseError(f"{grouping.scratch}: holds an unfinished grouping of other inputs or settings; remove it to begin anew")
    write_text(claim, mine)


def _run_all(
    grouping: Grouping, title: str, count: int, marker: Callable[[Grouping, int], Path], work: Callable[[Grouping, int], None]
) -> None:
    """Run the numbered steps that have no marker file yet, in this process or in several workers."""
    missing = [number for number in range(count) if not marker(grouping, number).is_file()]
    with show_progress(f"group: {title}", count, "inputs" if marker is _bucket_file else "buckets") as advance:
        advance(count - len(missing))
        if grouping.config.num_workers == 1 or len(missing) < 2:
            for number in missing:
                work(grouping, number)
                advance(1)
            return
        # Spawned, because a forked child would share the threads and open files of pyarrow and fsspec.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(grouping.config.num_workers, context) as pool:
            for future in as_completed([pool.submit(work, grouping, number) for number in missing]):
                _result(future, pool)
                advance(1)


def _result(future: "Future[None]", pool: ProcessPoolExecutor) -> None:
    """Raise the error of a worker, and cancel the steps that have not begun."""
    try:
        future.result()
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise MoseError(
                "group: a worker was killed, perhaps for its memory; run again to continue, with fewer num_workers"
            ) from None
        raise


def _describe(grouping: Grouping) -> GroupedFolder:
    entries = [PartEntry(**entry) for b in range(grouping.num_buckets) for entry in _entries(_bucket_path(grouping, b))]
    counts = [InputCounts(**_partitioned(grouping, number)[1]) for number in range(len(grouping.paths))]
    left_out: Counter[str] = Counter()
    for count in counts:
        left_out.update(count.contents_left_out)
    return GroupedFolder(
        version=VERSION,
        fingerprint=grouping.fingerprint,
        seed=grouping.config.seed,
        repositories=sum(entry.repositories for entry in entries),
        files=sum(entry.files for entry in entries),
        bytes=sum(entry.bytes for entry in entries),
        parts=tuple(entries),
        empty_repositories=sum(count.empty_repositories for count in counts),
        contents_left_out=dict(sorted(left_out.items())),
    )


def _buckets(grouping: Grouping, table: pa.Table) -> NDArray[np.int64]:
    parts_F = part_of(table.column(KEY).to_numpy(), grouping.config.num_parts)
    return parts_F * grouping.num_buckets // grouping.config.num_parts


def _bucket_file(grouping: Grouping, number: int) -> Path:
    return grouping.scratch / f"input-{number:06d}.json"


def _bucket_path(grouping: Grouping, bucket: int) -> Path:
    return grouping.scratch / f"bucket-{bucket:05d}.json"


def _partitioned(grouping: Grouping, number: int) -> tuple[list[Batch], dict[str, Any]]:
    path = _bucket_file(grouping, number)
    found = load_batches(path)
    if found is None:
        raise MoseError(f"{path}: no such file; expected the output of the first pass: group again")
    return found


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        return from_plain(list[dict[str, Any]], parse_json(path.read_bytes()))
    except ValueError as error:
        raise MoseError(f"{path}: cannot be read: {error}; remove its folder and group again") from None

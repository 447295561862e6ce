"""Temporary files of rows partitioned into buckets: one Arrow file per input, one bucket per record batch.

One file with all buckets, rather than one file per bucket, keeps the number of files at that of the inputs; the Arrow file format
gives random access to the batches of one bucket.

F: files (rows) of a table.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.sources.ingest.grouping.columns import KEY
from mose.errors import MoseError
from mose.files.atomic_file import write_json
from mose.files.json_file import parse_json
from mose.files.parquet_errors import PARQUET_ERRORS
from mose.files.safe_path import path_inside

Assign = Callable[[pa.Table], NDArray[np.int64]]
"""The bucket of each row of a table."""


@dataclass(frozen=True)
class Batch:
    """One record batch of a bucket file: rows of one bucket."""

    path: str
    index: int
    bucket: int
    bytes: int
    """Size in memory, not on disk."""
    first_key: int
    last_key: int


class BucketWriter:
    """Partitions rows into buckets; buffers about `buffer_bytes` of rows, and twice that while it writes."""

    def __init__(self, path: Path, schema: pa.Schema, assign: Assign, buffer_bytes: int) -> None:
        self.batches: list[Batch] = []
        self._path = path
        self._assign = assign
        self._buffer_bytes = buffer_bytes
        self._waiting: list[pa.Table] = []
        self._waiting_bytes = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = path.open("wb")
        options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
        self._writer = pa.ipc.new_file(self._file, schema, options=options)

    def add(self, table: pa.Table) -> None:
        """Add rows; the whole table is buffered.

        Raises:
            OSError: the disk is full.
        """
        if self._waiting and self._waiting_bytes + table.nbytes > self._buffer_bytes:
            self._flush()
        self._waiting.append(table)
        self._waiting_bytes += table.nbytes

    def close(self) -> list[Batch]:
        """Write the buffered rows; returns the batches of the file."""
        self._flush()
        self._writer.close()
        # The list that marks this file as finished is on the disk at once; without this, a power cut could leave it alone there.
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self.batches

    def __enter__(self) -> "BucketWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting)
        self._waiting, self._waiting_bytes = [], 0
        if not len(table):
            # Rows without files, of which an input may consist.
            return
        buckets_F = self._assign(table)
        # Stable, so that rows of one bucket keep the order of the input.
        order_F = np.argsort(buckets_F, kind="stable")
        table = table.take(pa.array(order_F))
        buckets, starts = np.unique(buckets_F[order_F], return_index=True)
        ends = [*starts[1:].tolist(), len(table)]
        for bucket, start, end in zip(buckets.tolist(), starts.tolist(), ends, strict=True):
            rows = table.slice(start, end - start).combine_chunks()
            keys: Any = pc.min_max(rows.column(KEY))
            for batch in rows.to_batches():
                entry = Batch(str(self._path), len(self.batches), bucket, batch.nbytes, keys["min"].as_py(), keys["max"].as_py())
                self.batches.append(entry)
                self._writer.write_batch(batch)


def read_batches(batches: Sequence[Batch], columns: Sequence[str] = ()) -> Iterator[pa.Table]:
    """The rows, batch by batch; all columns, or only `columns` if given.

    Raises:
        MoseError: a bucket file is damaged.
    """
    for path in dict.fromkeys(batch.path for batch in batches):
        try:
            with pa.OSFile(path) as source:
                schema = pa.ipc.open_file(source).schema
                fields = [schema.get_field_index(name) for name in columns] or None
                reader = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False))
                for batch in batches:
                    if batch.path == path:
                        yield pa.Table.from_batches([reader.get_batch(batch.index)])
        except PARQUET_ERRORS as error:
            raise MoseError(f"{path}: temporary rows cannot be read: {error}; remove its folder and group again") from None


def save_batches(path: Path, batches: Sequence[Batch], more: dict[str, Any]) -> None:
    """Write the list of a bucket file's batches and `more`; the presence of this list marks the bucket file as finished."""
    write_json(path, {**more, "batches": [{**asdict(batch), "path": Path(batch.path).name} for batch in batches]})


def load_batches(path: Path) -> tuple[list[Batch], dict[str, Any]] | None:
    """The batches and `more` of `save_batches`; None if there is no such file.

    Raises:
        MoseError: the file is damaged.
    """
    try:
        values = parse_json(path.read_bytes())
        batches = [Batch(**{**entry, "path": _path_of(path, entry)}) for entry in values.pop("batches")]
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MoseError(f"{path}: cannot be read: {error}; remove its folder and group again") from None
    return batches, values


def _path_of(file: Path, entry: dict[str, Any]) -> str:
    return str(path_inside(file.parent, entry["path"], f"{file}: batches: path"))

"""Where the rows of a task come from: repository, path and blob id, or evaluation file and example, in a parquet file."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mose.array_types import INT64_ARRAY

_SCHEMA = pa.schema([("place", pa.int64()), ("name", pa.string()), ("path", pa.string()), ("blob_id", pa.string())])
_BATCH_ROWS = 1 << 14


class OriginWriter:
    """Writes origins in ascending order of their places; holds one batch of them."""

    def __init__(self, file: IO[bytes]):
        self._writer = pq.ParquetWriter(file, _SCHEMA)
        self._waiting: list[tuple[int, str, str, str]] = []

    def add(self, place: int, name: str, path: str, blob_id: str) -> None:
        """Append the origin of one row."""
        self._waiting.append((place, name, path, blob_id))
        if len(self._waiting) == _BATCH_ROWS:
            self._write()

    def close(self) -> None:
        """Write what waits, and the end of the file."""
        self._write()
        self._writer.close()

    def _write(self) -> None:
        columns = list(zip(*self._waiting, strict=True)) or [()] * len(_SCHEMA)
        arrays = [pa.array(column, kind) for column, kind in zip(columns, _SCHEMA.types, strict=True)]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA))
        self._waiting = []


def read_origins(path: Path, places: INT64_ARRAY) -> Iterator[tuple[str, str, str]]:
    """Name, path and blob id of each of these places, which ascend; reads one batch of the file at a time."""
    done = 0
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
            if done == len(places):
                return
            held = batch.column(0).to_numpy()
            last = done + int(np.searchsorted(places[done:], held[-1], side="right")) if len(held) else done
            chosen = batch.take(pa.array(np.searchsorted(held, places[done:last])))
            yield from zip(*(chosen.column(name).to_pylist() for name in ("name", "path", "blob_id")), strict=True)
            done = last

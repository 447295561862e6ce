"""The log of dropped files and pieces with their reasons: written by the tasks, listed by `mose-data dropped`."""

import contextlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mose.files.atomic_file import atomic_write

FOLDER = "dropped"
# One line per dropped file, or per dropped piece of a kept file; `num_bytes` is 0 if the file was never read.
DROPPED_SCHEMA = pa.schema(
    [
        ("repository", pa.string()),
        ("path", pa.string()),
        ("blob_id", pa.string()),
        ("reason", pa.string()),
        ("num_bytes", pa.int64()),
        ("detail", pa.string()),
    ]
)
MAX_DETAIL_CHARACTERS = 400
# Lines per row group; at about 300 bytes of Python objects per line, the buffer stays below 5 MB.
GROUP_LINES = 1 << 14

Line = tuple[str, str, str, str, int, str]


def dropped_path(task: int) -> str:
    """The path of a task's log, relative to the data set."""
    return f"{FOLDER}/dropped-{task:06d}.parquet"


class DroppedLines:
    """Dropped files and pieces in memory."""

    def __init__(self) -> None:
        self._waiting: list[Line] = []

    def add(self, repository: str, path: str, blob_id: str, reason: str, num_bytes: int, detail: str = "") -> None:
        """Note one dropped file or piece; keeps the first 400 characters of `detail`."""
        self._waiting.append((repository, path, blob_id, reason, num_bytes, detail[:MAX_DETAIL_CHARACTERS]))

    def take(self) -> list[Line]:
        """Remove and return the lines."""
        lines, self._waiting = self._waiting, []
        return lines


class DroppedLog(DroppedLines, contextlib.AbstractContextManager["DroppedLog"]):
    """Collects a task's dropped files and pieces in bounded memory.

    The file appears atomically, at `close` or at the end of the `with` block; after an error in the block it does not appear.
    Its bytes depend only on the lines and their order.
    """

    def __init__(self, dataset: Path, task: int):
        super().__init__()
        self._path = dataset / dropped_path(task)
        self._open_files = contextlib.ExitStack()
        self._writer: pq.ParquetWriter | None = None
        self._is_closed = False
        self.lines = 0
        """Lines so far."""

    def add(self, repository: str, path: str, blob_id: str, reason: str, num_bytes: int, detail: str = "") -> None:
        """Log one dropped file or piece."""
        super().add(repository, path, blob_id, reason, num_bytes, detail)
        self.lines += 1
        if len(self._waiting) >= GROUP_LINES:
            self._flush()

    def close(self) -> None:
        """Publish the log, an empty one if nothing was dropped. A second call does nothing.

        Raises:
            OSError: the disk is full or not writable.
        """
        if not self._is_closed:
            self._flush()
            self._open_files.close()
            self._is_closed = True

    def __exit__(self, *error: Any) -> None:
        """Publish the log, or remove the temporary file after an error."""
        if error[0] is None:
            self.close()
        self._open_files.__exit__(*error)

    def _flush(self) -> None:
        columns = list(zip(*self.take(), strict=True)) or [()] * len(DROPPED_SCHEMA)
        self._opened().write_table(pa.table(list(map(pa.array, columns, DROPPED_SCHEMA.types)), schema=DROPPED_SCHEMA))

    def _opened(self) -> pq.ParquetWriter:
        if self._writer is None:
            file = self._open_files.enter_context(atomic_write(self._path))
            self._writer = pq.ParquetWriter(file, DROPPED_SCHEMA, compression="zstd")
            self._open_files.callback(self._writer.close)
        return self._writer

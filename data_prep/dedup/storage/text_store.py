"""The normalised texts of a task, compressed one by one, so that the verification can read any of them.

A parquet file would have to be decompressed by the megabyte to read one row of it.
"""

import hashlib
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa

from data_prep.dedup.storage.documents import place_of, task_of
from mose.errors import MoseError
from mose.seeding import UINT64_ARRAY

DOCUMENT_DTYPE = np.dtype(
    [("offset", "<u8"), ("content", "<u8"), ("stored", "<u4"), ("bytes", "<u4"), ("characters", "<u4"), ("unused", "<u4")]
)
"""Per document: where its text is, a hash of the text, and its size as stored, in UTF-8 and in characters."""
_CODEC = "lz4_raw"
_ENCODING = ("utf-8", "surrogatepass")


class TextWriter:
    """Writes texts and their table to two open files."""

    def __init__(self, texts: IO[bytes], table: IO[bytes]):
        self._texts, self._table = texts, table
        self._codec = pa.Codec(_CODEC)
        self._offset = 0

    def add(self, normalized: list[str]) -> None:
        """Append the next documents."""
        records = np.zeros(len(normalized), DOCUMENT_DTYPE)
        for number, text in enumerate(normalized):
            content = text.encode(*_ENCODING)
            stored = self._codec.compress(content, asbytes=True) if content else b""
            self._texts.write(stored)
            records[number] = (self._offset, _hash(content), len(stored), len(content), len(text), 0)
            self._offset += len(stored)
        self._table.write(records.tobytes())


class TextStores:
    """The texts of all tasks; files are mapped when they are first needed."""

    def __init__(self, paths: list[tuple[Path, Path]]):
        """`paths` are the files of texts and tables by task."""
        self._paths = paths
        self._open: dict[int, tuple[np.typing.NDArray[np.uint8], np.typing.NDArray[np.void]]] = {}
        self._codec = pa.Codec(_CODEC)

    def field(self, documents: UINT64_ARRAY, name: str) -> np.typing.NDArray[np.generic]:
        """A field of the table for each document."""
        tasks, places = task_of(documents), place_of(documents)
        found = np.zeros(len(documents), DOCUMENT_DTYPE[name])
        for task in np.unique(tasks).tolist():
            chosen = tasks == task
            found[chosen] = self._files(task)[1][name][places[chosen]]
        return found

    def read(self, document: int) -> str:
        """The normalised text of a document.

        Raises:
            MoseError: the file of texts is damaged.
        """
        task, place = int(document) >> 32, int(document) & 0xFFFFFFFF
        texts, table = self._files(task)
        record = table[place]
        if not record["bytes"]:
            return ""
        start = int(record["offset"])
        try:
            stored = texts[start : start + int(record["stored"])].tobytes()
            content: bytes = self._codec.decompress(stored, int(record["bytes"]), asbytes=True)
            return content.decode(*_ENCODING)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise MoseError(
                f"{self._paths[task][0]}: document {place} cannot be read: {error}; remove the marker of task {task}"
            ) from None

    def _files(self, task: int) -> tuple[np.typing.NDArray[np.uint8], np.typing.NDArray[np.void]]:
        if task not in self._open:
            texts, table = self._paths[task]
            # An empty file cannot be mapped.
            self._open[task] = (
                np.memmap(texts, np.uint8, mode="r") if texts.stat().st_size else np.zeros(0, np.uint8),
                np.memmap(table, DOCUMENT_DTYPE, mode="r") if table.stat().st_size else np.zeros(0, DOCUMENT_DTYPE),
            )
        return self._open[task]


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")

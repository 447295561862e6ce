"""Appends to a blob store: one writer per part, and recovery of a part whose writer was killed.

Packs are append-only, so a kill leaves at most one incomplete record at the end, which the next writer truncates.
"""

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from data_prep.sources.blobs.pack import HEADER, Record, build_index, encode_record, read_index, scan, write_index
from data_prep.sources.blobs.store import PACKS, STATUSES, BlobStore, as_ids
from data_prep.sources.ingest.folder_lock import lock_folder
from mose.files.atomic_file import sync_folder

SYNC_SECONDS = 5.0
# The records of the open pack are held in memory, at about 300 bytes per record.
MAX_PACK_RECORDS = 1_000_000


class BlobWriter:
    """Appends to one task's part of a store, and looks up blobs in the whole store.

    Each record is written unbuffered, so that a killed process loses none; fsync runs every few seconds only, because a flush
    per record would limit the throughput.
    """

    def __init__(self, store: Path, part: int, pack_bytes: int = 1 << 30) -> None:
        """Open (or make) `STORE/part-00000`, lock it, and truncate an incomplete record.

        Raises:
            MoseError: another process writes to this part.
        """
        self.folder = store / f"part-{part:05d}"
        self._lock = lock_folder(self.folder, "one per part: give each another task").__enter__()
        # The part's own entry: without it, flushed packs would be in no folder after a power cut.
        sync_folder(store)
        self._pack_bytes = pack_bytes
        self._records: dict[bytes, Record] = {}
        self._recover()
        # Opened after the recovery, when every finished pack of this part has an index.
        self._others = BlobStore(store, skip=self._pack)
        self._synced = time.monotonic()

    def statuses(self, blobs: Sequence[bytes]) -> list[tuple[str, int] | None]:
        """Status and decoded size in bytes of each blob (20 bytes), with a body preferred; None for blobs not in the store."""
        located = self._others.locate(as_ids(blobs))
        statuses: list[tuple[str, int] | None] = []
        for blob, place in zip(blobs, located, strict=True):
            record = self._records.get(blob)
            if record is None or (place is not None and place.record.status == 0):
                record = place.record if place is not None else None
            statuses.append((STATUSES[record.status], record.length) if record is not None else None)
        return statuses

    def add(self, blob: bytes, status: str, codec: int, length: int, stored: bytes = b"") -> None:
        """Append a record of a blob: its stored body, or a status without a body.

        Raises:
            OSError: the disk is full; the record is removed again.
        """
        if self._size >= self._pack_bytes or len(self._records) >= MAX_PACK_RECORDS:
            self._finish_pack()
        record = Record(blob, STATUSES.index(status), codec, self._size, len(stored), length)
        self._append(encode_record(blob, record.status, codec, length, stored))
        self._records[blob] = record
        if time.monotonic() > self._synced + SYNC_SECONDS:
            self.sync()

    def _append(self, content: bytes) -> None:
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(self._size)
            raise
        self._size += len(content)

    def sync(self) -> None:
        """Flush the open pack to the disk."""
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        """Flush, index the open pack and unlock the part."""
        with contextlib.ExitStack() as stack:
            stack.push(self._lock)
            stack.callback(self._others.close)
            stack.callback(self._file.close)
            self.sync()
            if self._records:
                write_index(self._pack, build_index(list(self._records.values())))

    def __enter__(self) -> "BlobWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _recover(self) -> None:
        """Index the packs that a killed writer left without index, and continue in the last pack."""
        packs = sorted(self.folder.glob(PACKS))
        for pack in packs[:-1]:
            if read_index(pack) is None:
                write_index(pack, build_index(_recovered(pack)))
        self._pack = packs[-1] if packs else self.folder / PACKS.replace("*", "000000")
        index = read_index(self._pack) if packs else build_index([])
        records = _recovered(self._pack) if index is None else map(index.record, range(len(index.keys_R)))
        self._records = {record.blob: record for record in records}
        self._open_pack()

    def _open_pack(self) -> None:
        self._file = self._pack.open("ab", buffering=0)
        self._size = self._pack.stat().st_size

    def _finish_pack(self) -> None:
        self.sync()
        self._file.close()
        index = build_index(list(self._records.values()))
        write_index(self._pack, index)
        self._others.add_pack(self._pack, index)
        self._records = {}
        self._pack = self.folder / PACKS.replace("*", f"{int(self._pack.stem.rpartition('-')[2]) + 1:06d}")
        self._open_pack()


def _recovered(pack: Path) -> list[Record]:
    """The complete records of a pack; truncates the pack behind the last of them."""
    with pack.open("r+b") as file:
        records = list(scan(file))
        file.truncate(records[-1].offset + HEADER.size + records[-1].stored if records else 0)
        os.fsync(file.fileno())
    return records

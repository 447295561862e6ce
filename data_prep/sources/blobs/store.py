"""The blob store: bodies by SHA-1 in a few large files, written by `mose-data fetch` and read by packing.

Layout: STORE/part-00000/pack-000000.blobs and its index, one folder per fetching task; see `data_prep/sources/blobs/pack.py`.
"""

import functools
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from data_prep.sources.blobs.pack import GZIP, ID_BYTES, Ids, PackIndex, Record, build_index, read_index, read_stored, scan
from data_prep.sources.repositories import READ_LIMIT_BYTES
from mose.config import fingerprint
from mose.errors import MoseError
from mose.files.storage import storage_path

BODY = "body"
MISSING = "missing"
NOT_GZIP = "not_gzip"
WRONG_CHECKSUM = "wrong_checksum"
TOO_LARGE = "too_large"
STATUSES = (BODY, MISSING, NOT_GZIP, WRONG_CHECKSUM, TOO_LARGE)
"""The status of a record; the position in this tuple is the byte on disk, so the order must not change."""
NOT_FETCHED = "not_fetched"
INVALID_ID = "invalid_blob_id"
PACKS = "pack-*.blobs"
_OPEN_PACKS = 16


@dataclass(frozen=True)
class Location:
    """A record and the pack that holds it."""

    pack: Path
    record: Record

    @property
    def status(self) -> str:
        """One of `STATUSES`."""
        return STATUSES[self.record.status]


class BlobStore:
    """A store opened for reading, local or by URL. Bodies are read on demand and local indices are memory-mapped."""

    def __init__(self, folder: Path, skip: Path | None = None) -> None:
        """Open every pack below `folder` except `skip`.

        Raises:
            MoseError: the folder does not exist.
        """
        if not folder.is_dir():
            raise MoseError(f"{folder}: blob_store: no such folder; expected what `mose-data fetch` wrote")
        packs = [path for part in part_folders(folder) for path in sorted(part.glob(PACKS)) if path != skip]
        self.folder = folder
        self.packs = [(path, index_of(path)) for path in packs]
        self._files: OrderedDict[Path, IO[bytes]] = OrderedDict()
        # Search the most recently hit packs first: a part's repositories were fetched together, so they share a pack.
        self._recent = list(range(len(self.packs)))

    def locate(self, ids_N: Ids) -> list[Location | None]:
        """The record of each id [N, 20]: one with a body if there is any, else the record of the last pack, else None."""
        found: list[tuple[int, Record] | None] = [None] * len(ids_N)
        open_N = np.arange(len(ids_N))
        for number in list(self._recent):
            if not len(open_N):
                break
            index = self.packs[number][1]
            place_N = index.find(ids_N[open_N])
            for i in np.flatnonzero(place_N >= 0).tolist():
                record, before = index.record(int(place_N[i])), found[open_N[i]]
                if before is None or record.status == 0 or number > before[0]:
                    found[open_N[i]] = (number, record)
            if (place_N >= 0).any():
                self._recent.remove(number)
                self._recent.insert(0, number)
            open_N = np.array([i for i in open_N.tolist() if not _is_body(found[i])], np.int64)
        return [None if hit is None else Location(self.packs[hit[0]][0], hit[1]) for hit in found]

    def add_pack(self, pack: Path, index: PackIndex) -> None:
        """Add a pack that was finished after the store was opened."""
        self.packs.append((pack, index))
        self._recent.insert(0, len(self.packs) - 1)

    def get(self, blob_id: str) -> tuple[str, bytes]:
        """Status and body of one blob: see `get_located`."""
        return self.get_located(*self.locate_names([blob_id]))

    def locate_names(self, blob_ids: Sequence[str]) -> list[Location | str]:
        """The location of each hexadecimal blob id, or `not_fetched` or `invalid_blob_id` instead."""
        ids = [parse_id(blob_id) for blob_id in blob_ids]
        known = [blob for blob in ids if blob is not None]
        located = iter(self.locate(as_ids(known)))
        return [INVALID_ID if blob is None else (next(located) or NOT_FETCHED) for blob in ids]

    def get_located(self, place: Location | str) -> tuple[str, bytes]:
        """Status and body of a result of `locate_names`; the status is one of `STATUSES`, `not_fetched` or `invalid_blob_id`.

        The body is empty unless the status is `body`.

        Raises:
            MoseError: the pack is damaged.
        """
        if isinstance(place, str):
            return place, b""
        if place.status != BODY:
            return place.status, b""
        stored = read_stored(place.pack, self._file(place.pack), place.record)
        if place.record.codec != GZIP:
            return BODY, stored
        body = gunzip(stored, READ_LIMIT_BYTES)
        if body is None:
            raise MoseError(f"{place.pack}: blob {place.record.blob.hex()} is not gzip; remove the pack, fetch again")
        return BODY, body

    def fingerprint(self) -> str:
        """A hash that changes when packs are added or grow."""
        return fingerprint([[path.parent.name, path.name, path.stat().st_size] for path, _ in self.packs])

    def close(self) -> None:
        """Close the packs that are open."""
        while self._files:
            self._files.popitem()[1].close()

    def _file(self, pack: Path) -> IO[bytes]:
        if pack not in self._files:
            if len(self._files) >= _OPEN_PACKS:
                self._files.popitem(last=False)[1].close()
            self._files[pack] = pack.open("rb")
        self._files.move_to_end(pack)
        return self._files[pack]


@functools.lru_cache(maxsize=4)
def open_store(text: str) -> BlobStore:
    """The store at a path or URL, opened once per process.

    Raises:
        MoseError: the folder does not exist or holds no pack.
    """
    store = BlobStore(storage_path(text))
    if not store.packs:
        raise MoseError(f"{text}: blob_store: holds no packs; expected what `mose-data fetch` wrote")
    return store


def part_folders(store: Path) -> list[Path]:
    """The folders of a store, one per fetching task, sorted."""
    return sorted(path for path in store.glob("part-*") if path.is_dir())


def index_of(pack: Path) -> PackIndex:
    """A pack's index: from its file, or by a scan if there is none (a pack that is still being written)."""
    index = read_index(pack)
    if index is not None:
        return index
    with pack.open("rb") as file:
        return build_index(list(scan(file)))


def parse_id(blob_id: str) -> bytes | None:
    """The 20 bytes of a hexadecimal SHA-1; None for anything else."""
    try:
        blob = bytes.fromhex(blob_id)
    except ValueError:
        return None
    return blob if len(blob) == ID_BYTES else None


def as_ids(blobs: Sequence[bytes]) -> Ids:
    """Ids as an array [N, 20]."""
    return np.frombuffer(b"".join(blobs), np.uint8).reshape(-1, ID_BYTES)


def gunzip(stored: bytes, limit: int) -> bytes | None:
    """The decoded bytes, at most `limit` + 1; None if the input is damaged, or incomplete below the limit."""
    decoder = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        body = decoder.decompress(stored, limit + 1)
    except zlib.error:
        return None
    return body if decoder.eof or len(body) > limit else None


def _is_body(hit: tuple[int, Record] | None) -> bool:
    return hit is not None and hit[1].status == STATUSES.index(BODY)

"""The format of one pack file of a blob store: consecutive records, and a sorted index file that a scan can rebuild.

A record is `HEADER` and the stored bytes. An index is two arrays of the pack's R records, sorted by id: `pack-000000.keys.npy`
(the first eight bytes of each id, for the binary search) and `pack-000000.records.npy`. The keys are a file of their own so that
a search touches 8 bytes per record instead of the whole record. Packs exist because millions of small files overload a file
system; each record carries its own checksum, so that the pack alone is enough to recover the index after a kill.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mose.errors import MoseError
from mose.files.atomic_file import atomic_write
from mose.files.npy_file import read_npy

MAGIC = b"MSB1"
HEADER = struct.Struct("<4s20sBBHQQI")
"""Magic, SHA-1, status, codec, zero, stored bytes, decoded bytes, CRC-32 of header (with this field 0) and stored bytes."""
RECORD = np.dtype([("id", "u1", 20), ("status", "u1"), ("codec", "u1"), ("offset", "<u8"), ("stored", "<u8"), ("length", "<u8")])
ID_BYTES = 20
RAW, GZIP = 0, 1

Ids = NDArray[np.uint8]


@dataclass(frozen=True)
class Record:
    """Where the body of one blob is in a pack, or the status recorded instead of a body."""

    blob: bytes
    """SHA-1 of the body, 20 bytes."""
    status: int
    codec: int
    offset: int
    """Of the header, from the start of the pack."""
    stored: int
    """Bytes after the header."""
    length: int
    """Bytes of the decoded body, if known."""


class PackIndex:
    """The sorted records of one pack, mapped into memory where the file is local."""

    def __init__(self, keys_R: NDArray[np.uint64], records_R: NDArray[Any]) -> None:
        self.keys_R = keys_R
        self.records_R = records_R

    def find(self, ids_N: Ids) -> NDArray[np.int64]:
        """Position [N] of each id [N, 20] in the index, -1 if the pack does not hold it."""
        keys_N = sort_keys(ids_N)
        place_N = np.searchsorted(self.keys_R, keys_N).astype(np.int64)
        found_N = np.full(len(ids_N), -1, np.int64)
        open_N = np.arange(len(ids_N))
        # Ids that share their first eight bytes are adjacent, so step forward until the full id matches or the key changes.
        while len(open_N):
            open_N = open_N[place_N[open_N] < len(self.keys_R)]
            open_N = open_N[self.keys_R[place_N[open_N]] == keys_N[open_N]]
            same = (self.records_R["id"][place_N[open_N]] == ids_N[open_N]).all(axis=1)
            found_N[open_N[same]] = place_N[open_N[same]]
            open_N = open_N[~same]
            place_N[open_N] += 1
        return found_N

    def record(self, position: int) -> Record:
        """The record at a position of the index."""
        row = self.records_R[position]
        return Record(bytes(row["id"]), *(int(row[name]) for name in ("status", "codec", "offset", "stored", "length")))


def sort_keys(ids_N: Ids) -> NDArray[np.uint64]:
    """The first eight bytes of each id [N, 20] as a big-endian number [N], which sorts in the order of the ids."""
    return np.ascontiguousarray(ids_N[:, :8]).view(">u8").reshape(-1).astype(np.uint64)


def encode_record(blob: bytes, status: int, codec: int, length: int, stored: bytes) -> bytes:
    """The bytes of one record, header and body."""
    # The checksum covers the header too: a damaged length would misplace every record behind it.
    header = HEADER.pack(MAGIC, blob, status, codec, 0, len(stored), length, 0)
    return header[:-4] + struct.pack("<I", zlib.crc32(stored, zlib.crc32(header))) + stored


def is_intact(header: bytes, stored: bytes) -> bool:
    """Whether a record's checksum matches its bytes."""
    checksum = int.from_bytes(header[-4:], "little")
    return zlib.crc32(stored, zlib.crc32(header[:-4] + bytes(4))) == checksum


def scan(file: IO[bytes]) -> Iterator[Record]:
    """The records of a pack in file order, each verified; stops at the first that is incomplete or damaged."""
    offset = 0
    while len(header := file.read(HEADER.size)) == HEADER.size:
        magic, blob, status, codec, _, stored, length, _ = HEADER.unpack(header)
        body = file.read(stored) if magic == MAGIC else b""
        if magic != MAGIC or len(body) != stored or not is_intact(header, body):
            return
        yield Record(blob, status, codec, offset, stored, length)
        offset += HEADER.size + stored


def build_index(records: list[Record]) -> PackIndex:
    """The index of a pack's records; of several records of one id, the last one counts."""
    records_R = np.zeros(len(records), RECORD)
    records_R["id"] = np.frombuffer(b"".join(record.blob for record in records), np.uint8).reshape(-1, ID_BYTES)
    for name in ("status", "codec", "offset", "stored", "length"):
        records_R[name] = [getattr(record, name) for record in records]
    ids_R = np.ascontiguousarray(records_R["id"])
    # Stable, so that records of one id stay in file order and `is_last` selects the newest.
    records_R = records_R[np.argsort(ids_R.view("S20").reshape(-1), kind="stable")]
    if len(records_R):
        is_last = np.append((records_R["id"][1:] != records_R["id"][:-1]).any(axis=1), True)
        records_R = records_R[is_last]
    return PackIndex(sort_keys(records_R["id"]), records_R)


def write_index(pack: Path, index: PackIndex) -> None:
    """Write the two files of a pack's index; the keys come last, so that their presence means that both are complete."""
    for path, values in zip(reversed(index_paths(pack)), (index.records_R, index.keys_R), strict=True):
        with atomic_write(path) as file:
            np.save(file, values, allow_pickle=False)


def read_index(pack: Path) -> PackIndex | None:
    """The stored index of a pack; None if it is absent or damaged, or if the pack has another length than the index says."""
    try:
        keys_R, records_R = (read_npy(path, mapped=True) for path in index_paths(pack))
    except (OSError, ValueError):
        return None
    if records_R.dtype != RECORD or keys_R.dtype != np.uint64 or len(keys_R) != len(records_R):
        return None
    end = int((records_R["offset"] + records_R["stored"]).max()) + HEADER.size if len(records_R) else 0
    return PackIndex(keys_R, records_R) if end == pack.stat().st_size else None


def index_paths(pack: Path) -> tuple[Path, Path]:
    """The keys file and the records file of a pack."""
    return pack.with_suffix(".keys.npy"), pack.with_suffix(".records.npy")


def read_stored(pack: Path, file: IO[bytes], record: Record) -> bytes:
    """The stored bytes of a record.

    Raises:
        MoseError: the checksum or the id does not match.
    """
    file.seek(record.offset)
    content = file.read(HEADER.size + record.stored)
    header, stored = content[: HEADER.size], content[HEADER.size :]
    if len(stored) != record.stored or header[4:24] != record.blob or not is_intact(header, stored):
        raise MoseError(
            f"{pack}: damaged at byte {record.offset}; expected blob {record.blob.hex()}: remove the pack, fetch again"
        )
    return stored

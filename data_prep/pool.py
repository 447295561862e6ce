"""The texts that are packed together: tokens and lineage of a bounded number of files.

Letters: N tokens of a file, P pieces.
"""

from dataclasses import dataclass

import numpy as np

from data_prep.packed_rows import PieceTable
from data_prep.pieces import INT64_ARRAY
from data_prep.records import SourceFile
from mose.packed_sequence import TOKENS


@dataclass(frozen=True, slots=True)
class FileLineage:
    """What the lineage table says of a file."""

    repository: str
    path: str
    blob_id: str
    licence: str
    language: str


def lineage_of(file: SourceFile) -> FileLineage:
    """Lineage of a file; several licences are joined with ` AND `, none told is the licence type."""
    licence = " AND ".join(sorted(file.licences)) or file.licence_type
    return FileLineage(file.repository, file.path, file.blob_id, licence, file.language)


@dataclass(frozen=True)
class CutFile:
    """One file's tokens, where they are cut, and the bytes that the cuts stand at."""

    lineage: FileLineage
    tokens_N: TOKENS
    bounds: INT64_ARRAY
    """Token offsets [P + 1]."""
    byte_offsets: INT64_ARRAY
    """The same places in the file's UTF-8 bytes, [P + 1]."""


@dataclass(frozen=True)
class Piece:
    """One piece as it enters a row."""

    lineage: FileLineage
    tokens: TOKENS
    start_byte: int
    end_byte: int


class Pool:
    """Files in the order in which they were read; pieces are numbered through them."""

    def __init__(self, files: list[CutFile]):
        self._files = files
        counts = [len(file.bounds) - 1 for file in files]
        self._file_of = np.repeat(np.arange(len(files)), counts)
        self._first_piece = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))

    def table(self) -> PieceTable:
        """Lengths and owners of all pieces; repositories are numbered as they come."""
        numbers: dict[str, int] = {}
        repository_of_file = [numbers.setdefault(file.lineage.repository, len(numbers)) for file in self._files]
        lengths = [np.diff(file.bounds) for file in self._files]
        file_ids = self._file_of.tolist()
        return PieceTable(np.concatenate(lengths).tolist(), file_ids, [repository_of_file[file] for file in file_ids])

    def piece(self, number: int) -> Piece:
        """The tokens and lineage of one piece."""
        index = int(self._file_of[number])
        file = self._files[index]
        place = number - int(self._first_piece[index])
        start, end = int(file.bounds[place]), int(file.bounds[place + 1])
        return Piece(file.lineage, file.tokens_N[start:end], int(file.byte_offsets[place]), int(file.byte_offsets[place + 1]))

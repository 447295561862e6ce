"""Files cut into pieces, many at a time: the texts that wait for a row, and those that are packed together.

Letters: F files, N tokens of all files, P pieces of all files.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.packing.rows import PieceTable
from data_prep.shards.lineage import FILE_SCHEMA, FileLineage
from mose.array_types import INT64_ARRAY
from mose.dataset.packed_sequence import TOKENS


@dataclass(frozen=True)
class CutFiles:
    """Files in the order in which they were read and their pieces, file after file."""

    lineage: list[FileLineage]
    """Of each file, [F]."""
    tokens_N: TOKENS
    """Tokens of all files; some may belong to no piece."""
    starts_P: INT64_ARRAY
    """Where each piece begins in `tokens_N`."""
    lengths_P: INT64_ARRAY
    """Tokens of each piece."""
    bytes_P2: INT64_ARRAY
    """First and last byte of each piece in the UTF-8 text of its file."""
    file_of_P: INT64_ARRAY
    """Which file each piece is of, ascending."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all pieces."""
        return int(self.lengths_P.sum())

    def tokens_of_files(self) -> INT64_ARRAY:
        """Tokens of the pieces of each file, [F]."""
        return np.bincount(self.file_of_P, self.lengths_P, len(self.lineage)).astype(np.int64)

    def pieces(self, chosen_P: NDArray[np.bool_]) -> "CutFiles":
        """The same files with these pieces only."""
        columns = (self.starts_P, self.lengths_P, self.bytes_P2, self.file_of_P)
        starts_P, lengths_P, bytes_P2, file_of_P = (column[chosen_P] for column in columns)
        return replace(self, starts_P=starts_P, lengths_P=lengths_P, bytes_P2=bytes_P2, file_of_P=file_of_P)

    def files(self, chosen_F: NDArray[np.bool_]) -> "CutFiles":
        """These files only, in the same order; tokens are not copied."""
        chosen = self.pieces(chosen_F[self.file_of_P])
        numbers_F = np.cumsum(chosen_F) - 1
        lineage = [self.lineage[file] for file in np.flatnonzero(chosen_F).tolist()]
        return replace(chosen, lineage=lineage, file_of_P=numbers_F[chosen.file_of_P])

    def table(self) -> PieceTable:
        """Lengths and owners of all pieces; repositories are numbered as they come."""
        numbers: dict[str, int] = {}
        repository_of_F = np.array([numbers.setdefault(file.repository, len(numbers)) for file in self.lineage], dtype=np.int64)
        return PieceTable(self.lengths_P, self.file_of_P, repository_of_F[self.file_of_P])

    def lineage_batch(self) -> pa.RecordBatch:
        """Lineage of the files, a line each."""
        columns = [pa.array([getattr(file, name) for file in self.lineage], pa.string()) for name in FILE_SCHEMA.names]
        return pa.RecordBatch.from_arrays(columns, schema=FILE_SCHEMA)


def join_files(parts: Sequence[CutFiles]) -> CutFiles:
    """All files of one or more parts; holds a copy of the tokens of their pieces and nothing else of the parts."""
    spans = [
        part.tokens_N[start : start + length]
        for part in parts
        for start, length in zip(part.starts_P.tolist(), part.lengths_P.tolist(), strict=True)
    ]
    lengths_P = np.concatenate([part.lengths_P for part in parts])
    first_files = np.cumsum([0, *(len(part.lineage) for part in parts)])
    return CutFiles(
        lineage=[file for part in parts for file in part.lineage],
        tokens_N=np.concatenate([parts[0].tokens_N[:0], *spans]),
        starts_P=np.cumsum(lengths_P) - lengths_P,
        lengths_P=lengths_P,
        bytes_P2=np.concatenate([part.bytes_P2 for part in parts]),
        file_of_P=np.concatenate([part.file_of_P + first for part, first in zip(parts, first_files, strict=False)]),
    )


class WaitingFiles:
    """Files that wait for their pool; each pool takes some by chance, so that not only repositories read together meet."""

    def __init__(self) -> None:
        self._parts: list[CutFiles] = []
        self.num_tokens = 0

    def add(self, files: CutFiles) -> None:
        """Let more files wait."""
        if len(files.lengths_P):
            self._parts.append(files)
            self.num_tokens += files.num_tokens

    def take(self, num_tokens: int, random: np.random.Generator) -> CutFiles:
        """Remove and return files that together have `num_tokens` tokens or a few more; all of them where fewer wait."""
        waiting = join_files(self._parts)
        sizes_F = waiting.tokens_of_files()
        order = random.permutation(len(sizes_F))
        count = int(np.searchsorted(np.cumsum(sizes_F[order]), num_tokens)) + 1
        chosen_F = np.zeros(len(sizes_F), dtype=np.bool_)
        chosen_F[order[:count]] = True
        taken = waiting.files(chosen_F)
        self._parts = [] if chosen_F.all() else [join_files([waiting.files(~chosen_F)])]
        self.num_tokens -= taken.num_tokens
        return taken

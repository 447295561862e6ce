"""The shuffle buffer: chunked files that wait to be packed, from which random samples are packed together.

Letters: F files, N tokens of all files, C chunks of all files.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.packing.rows import ChunkTable
from data_prep.shards.lineage import FileLineage
from mose.array_types import INT64_ARRAY
from mose.dataset.packed_sequence import TOKENS


@dataclass(frozen=True)
class ChunkedFiles:
    """Files in the order in which they were read, and their chunks, file after file."""

    lineage: list[FileLineage]
    """Of each file, [F]."""
    tokens_N: TOKENS
    """Tokens of all files; those of dropped chunks belong to no chunk."""
    starts_C: INT64_ARRAY
    """Index of the first token of each chunk in `tokens_N`."""
    lengths_C: INT64_ARRAY
    """Tokens of each chunk."""
    bytes_C2: INT64_ARRAY
    """Byte range of each chunk in the UTF-8 text of its file, the end excluded."""
    file_of_C: INT64_ARRAY
    """Index of the file of each chunk, ascending."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all chunks."""
        return int(self.lengths_C.sum())

    def tokens_of_files(self) -> INT64_ARRAY:
        """Tokens of the chunks of each file, [F]."""
        return np.bincount(self.file_of_C, self.lengths_C, len(self.lineage)).astype(np.int64)

    def spans(self) -> list[tuple[int, int]]:
        """First and last index in `tokens_N`, the last excluded, of each run of chunks with nothing between them."""
        if not len(self.starts_C):
            return []
        ends_C = self.starts_C + self.lengths_C
        begins_C = np.concatenate(([True], self.starts_C[1:] != ends_C[:-1]))
        # Most chunks follow the one before; copies of whole runs save a slice per chunk.
        last_C = np.concatenate((begins_C[1:], [True]))
        return list(zip(self.starts_C[begins_C].tolist(), ends_C[last_C].tolist(), strict=True))

    def chunks(self, chosen_C: NDArray[np.bool_]) -> "ChunkedFiles":
        """The same files with these chunks only."""
        columns = (self.starts_C, self.lengths_C, self.bytes_C2, self.file_of_C)
        starts_C, lengths_C, bytes_C2, file_of_C = (column[chosen_C] for column in columns)
        return replace(self, starts_C=starts_C, lengths_C=lengths_C, bytes_C2=bytes_C2, file_of_C=file_of_C)

    def files(self, chosen_F: NDArray[np.bool_]) -> "ChunkedFiles":
        """These files only, in the same order; tokens are not copied."""
        chosen = self.chunks(chosen_F[self.file_of_C])
        numbers_F = np.cumsum(chosen_F) - 1
        lineage = [self.lineage[file] for file in np.flatnonzero(chosen_F).tolist()]
        return replace(chosen, lineage=lineage, file_of_C=numbers_F[chosen.file_of_C])

    def table(self) -> ChunkTable:
        """The table that packing reads; repositories are numbered in the order of their first file."""
        numbers: dict[str, int] = {}
        repository_of_F = np.array([numbers.setdefault(file.repository, len(numbers)) for file in self.lineage], dtype=np.int64)
        return ChunkTable(self.lengths_C, self.file_of_C, repository_of_F[self.file_of_C])

    def lineage_column(self, name: str) -> pa.Array:
        """A field of the lineage of each file, [F]."""
        return pa.array([getattr(file, name) for file in self.lineage], pa.string())


def join_files(parts: Sequence[ChunkedFiles]) -> ChunkedFiles:
    """Concatenate one or more parts; copies the tokens of their chunks, so that the parts can be freed."""
    spans = [part.tokens_N[start:end] for part in parts for start, end in part.spans()]
    lengths_C = np.concatenate([part.lengths_C for part in parts])
    first_files = np.cumsum([0, *(len(part.lineage) for part in parts)])
    return ChunkedFiles(
        lineage=[file for part in parts for file in part.lineage],
        tokens_N=np.concatenate([parts[0].tokens_N[:0], *spans]),
        starts_C=np.cumsum(lengths_C) - lengths_C,
        lengths_C=lengths_C,
        bytes_C2=np.concatenate([part.bytes_C2 for part in parts]),
        file_of_C=np.concatenate([part.file_of_C + first for part, first in zip(parts, first_files, strict=False)]),
    )


class ShuffleBuffer:
    """Chunked files that wait to be packed.

    Rows mix the repositories of one sample. Samples are random, because in reading order a repository would only ever meet the
    few that were read just before and after it.
    """

    def __init__(self) -> None:
        self._parts: list[ChunkedFiles] = []
        self.num_tokens = 0

    def add(self, files: ChunkedFiles) -> None:
        """Add files."""
        if len(files.lengths_C):
            self._parts.append(files)
            self.num_tokens += files.num_tokens

    def sample(self, num_tokens: int, random: np.random.Generator) -> ChunkedFiles:
        """Remove and return random whole files, just enough for `num_tokens` tokens; all files if there are fewer tokens."""
        waiting = join_files(self._parts)
        sizes_F = waiting.tokens_of_files()
        order = random.permutation(len(sizes_F))
        count = int(np.searchsorted(np.cumsum(sizes_F[order]), num_tokens)) + 1
        chosen_F = np.zeros(len(sizes_F), dtype=np.bool_)
        chosen_F[order[:count]] = True
        # What stays is copied, since a view would keep the tokens of the sample in memory.
        sample = waiting.files(chosen_F)
        self._parts = [] if chosen_F.all() else [join_files([waiting.files(~chosen_F)])]
        self.num_tokens -= sample.num_tokens
        return sample

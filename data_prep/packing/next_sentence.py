"""Rows of two segments for the ablation against next-sentence prediction: a text and its continuation, or two repositories."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from data_prep.packing.config import PackingConfig
from data_prep.packing.rows import ChunkTable, LabelBalance, Packer, Packing, RowList
from mose.array_types import INT64_ARRAY


def pack_nsp(table: ChunkTable, random: np.random.Generator, config: PackingConfig, balance: LabelBalance) -> Packing:
    """Rows of two chunks: consecutive in one file (label 0), or of two repositories (label 1).

    The odd chunk of a file has no continuation, so it only fits into a row of label 1. It is dropped if no other repository has
    one left.
    """
    repository_ids: list[int] = table.repository_ids_C.tolist()
    pairs, singles = _pairs_and_singles(table.file_ids_C.tolist())
    rows, dropped = _across(singles, repository_ids, random)
    # Rows of odd chunks are mixed already. As many pairs as are still needed exchange their second chunks across repositories.
    wanted = config.mixed_share * (len(pairs) + len(rows)) - len(rows)
    num_exchanged = min(len(pairs), max(0, round(wanted)))
    pairs = [pairs[i] for i in random.permutation(len(pairs))]
    firsts, unmatched = _across([a for a, _ in pairs[:num_exchanged]], repository_ids, random)
    follower = dict(pairs)
    # Exchanging two pairs gives two mixed rows and keeps every chunk in its place, first or second, so that the place says
    # nothing about the label.
    exchanged = [(a, follower[b]) for row in firsts for a, b in (row, row[::-1])]
    rows += exchanged
    plain = [(a, follower[a]) for a in unmatched] + pairs[num_exchanged:]
    labelled = [(row, True) for row in rows] + [(row, False) for row in plain]
    packed = RowList()
    for i in random.permutation(len(labelled)):
        row, mixed = labelled[i]
        balance.add(mixed)
        packed.add(row, mixed)
    return packed.packing(dropped)


def _pairs_and_singles(file_ids: Sequence[int]) -> tuple[list[tuple[int, int]], list[int]]:
    """Consecutive chunks of each file in pairs, and the last chunk of files with an odd number of chunks."""
    chunks_of: dict[int, list[int]] = defaultdict(list)
    for chunk, file in enumerate(file_ids):
        chunks_of[file].append(chunk)
    pairs = [pair for chunks in chunks_of.values() for pair in zip(chunks[::2], chunks[1::2], strict=False)]
    return pairs, [chunks[-1] for chunks in chunks_of.values() if len(chunks) % 2]


def _across(
    chunks: list[int], repository_ids: Sequence[int], random: np.random.Generator
) -> tuple[list[tuple[int, int]], list[int]]:
    """Pairs of chunks of two repositories, and the chunks without a partner.

    Chunks are sorted by repository and the i-th of the first half is paired with the i-th of the second half. They are half the
    list apart, so they can only be of one repository if it has more than half of all chunks.
    """
    shuffled = [chunks[i] for i in random.permutation(len(chunks))]
    ordered = sorted(shuffled, key=lambda chunk: repository_ids[chunk])
    half = len(ordered) // 2
    met = list(zip(ordered[:half], ordered[half:], strict=False))
    apart = [pair for pair in met if repository_ids[pair[0]] != repository_ids[pair[1]]]
    paired = {chunk for pair in apart for chunk in pair}
    swapped = [pair[::-1] if random.random() < 0.5 else pair for pair in apart]
    return [(a, b) for a, b in swapped], [chunk for chunk in ordered if chunk not in paired]


def _chunk_limits(num_tokens_F: INT64_ARRAY, config: PackingConfig) -> INT64_ARRAY:
    # A text needs a continuation, so every file is split into two chunks or more.
    return np.clip((num_tokens_F + 1) // 2, 1, config.piece_tokens)


PACKER = Packer(pack_nsp, _chunk_limits)

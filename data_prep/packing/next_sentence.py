"""Rows of two segments for the ablation against next-sentence prediction: a text and its continuation, or two repositories."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from data_prep.packing.config import PackingConfig
from data_prep.packing.rows import LabelBalance, Packer, Packing, PieceTable, RowList
from mose.array_types import INT64_ARRAY


def pack_nsp(table: PieceTable, random: np.random.Generator, config: PackingConfig, balance: LabelBalance) -> Packing:
    """Rows of two pieces: next to each other in one file (label 0), or of two repositories (label 1).

    A file's odd piece can only stand in a row of label 1; where no other repository has one left, it is dropped.
    """
    repository_ids: list[int] = table.repository_ids_P.tolist()
    pairs, singles = _pairs_and_singles(table.file_ids_P.tolist())
    rows, dropped = _across(singles, repository_ids, random)
    wanted = config.mixed_share * (len(pairs) + len(rows)) - len(rows)
    num_exchanged = min(len(pairs), max(0, round(wanted)))
    pairs = [pairs[i] for i in random.permutation(len(pairs))]
    firsts, unmatched = _across([a for a, _ in pairs[:num_exchanged]], repository_ids, random)
    follower = dict(pairs)
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
    """Neighbouring pieces of one file, two by two; the last piece of an odd number is single."""
    pieces_of: dict[int, list[int]] = defaultdict(list)
    for piece, file in enumerate(file_ids):
        pieces_of[file].append(piece)
    pairs = [pair for pieces in pieces_of.values() for pair in zip(pieces[::2], pieces[1::2], strict=False)]
    return pairs, [pieces[-1] for pieces in pieces_of.values() if len(pieces) % 2]


def _across(
    pieces: list[int], repository_ids: Sequence[int], random: np.random.Generator
) -> tuple[list[tuple[int, int]], list[int]]:
    """Pairs of pieces of two repositories, and the pieces that found no partner.

    Sorted by repository, the i-th piece of the first half meets the i-th of the second: as many pairs as there can be, unless
    one repository has more than half of all pieces.
    """
    shuffled = [pieces[i] for i in random.permutation(len(pieces))]
    ordered = sorted(shuffled, key=lambda piece: repository_ids[piece])
    half = len(ordered) // 2
    met = list(zip(ordered[:half], ordered[half:], strict=False))
    apart = [pair for pair in met if repository_ids[pair[0]] != repository_ids[pair[1]]]
    paired = {piece for pair in apart for piece in pair}
    swapped = [pair[::-1] if random.random() < 0.5 else pair for pair in apart]
    return [(a, b) for a, b in swapped], [piece for piece in ordered if piece not in paired]


def _piece_limits(num_tokens_F: INT64_ARRAY, config: PackingConfig) -> INT64_ARRAY:
    # A text needs a continuation, so every file is cut into two pieces or more.
    return np.clip((num_tokens_F + 1) // 2, 1, config.piece_tokens)


PACKER = Packer(pack_nsp, _piece_limits)

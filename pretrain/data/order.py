"""The order of rows: a pure function of seed, epoch and position, so that the loader's only state is how many rows it gave.

A shuffle in two stages. Read blocks of neighbouring rows (`block_rows`) are permuted over the whole split; then the rows of
each shuffle window (`window_rows` positions of that sequence) are shuffled one by one. Why two: a full shuffle of rows reads
each row at random from the disk or the object store, which is slow, while shuffling blocks alone keeps the rows of a block,
often of one repository, in the same batch. In two stages the reads of a window are whole blocks, which can be staged in
advance, and a batch still takes its rows from blocks of the whole split.

Both permutations are keyed and computed for a position, not stored: memory and time do not grow with the number of rows, any
rank can compute any position, and a run resumes without replaying the order.

Letters: P positions.
"""

from collections.abc import Callable

import numpy as np

from mose.array_types import INT64_ARRAY
from mose.seeding import UINT64_ARRAY, counter_random, derive_key

# Rows of one task share repositories. With N tasks, blocks of B rows and windows of W, a batch repeats repositories about
# 1 + N (B - 1) / W times as often as in a full shuffle: 1.06 at 4,096 tasks, within the bar of 1.1 (benchmarks/loader.py).
BLOCK_ROWS = 16
WINDOW_ROWS = 1 << 20
# Luby and Rackoff 1988: four rounds of a Feistel network with random round functions are a pseudorandom permutation. Two more
# because halves of a few bits mix little in each round. The number is even, so that halves of unequal width, which swap
# places in each round, end in their first places.
_ROUNDS = 6


def rows_at(
    seed: int,
    epoch: int,
    positions_P: INT64_ARRAY,
    num_rows: int,
    block_rows: int = BLOCK_ROWS,
    window_rows: int = WINDOW_ROWS,
) -> INT64_ARRAY:
    """The rows [P] at these positions [P] of an epoch, each position in 0..num_rows-1: a bijection for each (seed, epoch).

    A last read block shorter than `block_rows` stays at the end of the sequence of blocks, hence in the last shuffle windows:
    anywhere else it would shift the blocks after it. The last window may be shorter than `window_rows`.
    """
    sequence_P = sequence_at(seed, epoch, positions_P, num_rows, window_rows)
    block_P, inside_P = np.divmod(sequence_P, block_rows)
    return blocks_at(seed, epoch, block_P, num_rows, block_rows) * block_rows + inside_P


def sequence_at(seed: int, epoch: int, positions_P: INT64_ARRAY, num_rows: int, window_rows: int) -> INT64_ARRAY:
    """Places [P] of these positions in the concatenation of the permuted read blocks, inside the same shuffle window."""
    window_P, inside_P = np.divmod(positions_P, window_rows)
    size_P = np.minimum(window_rows, num_rows - window_P * window_rows).astype(np.uint64)
    window_keys_P = counter_random(derive_key(seed, "order of rows in a window", epoch), window_P.astype(np.uint64))
    shuffled_P = permute(inside_P.astype(np.uint64), size_P, window_keys_P, min(window_rows, num_rows))
    return window_P * window_rows + shuffled_P.astype(np.int64)


def blocks_at(seed: int, epoch: int, places_P: INT64_ARRAY, num_rows: int, block_rows: int) -> INT64_ARRAY:
    """The read blocks at these places of an epoch's sequence of blocks; block b starts at row b * block_rows."""
    full_blocks = num_rows // block_rows
    full_P = places_P < full_blocks
    blocks_P, full_places = places_P.copy(), places_P[full_P].astype(np.uint64)
    key = derive_key(seed, "order of blocks", epoch)
    sizes, keys = np.full_like(full_places, full_blocks), np.full_like(full_places, key)
    blocks_P[full_P] = permute(full_places, sizes, keys, full_blocks).astype(np.int64)
    return blocks_P


def rows_of_run(
    seed: int, start: int, count: int, num_rows: int, block_rows: int = BLOCK_ROWS, window_rows: int = WINDOW_ROWS
) -> tuple[INT64_ARRAY, INT64_ARRAY]:
    """Rows and epochs, both [count], of positions start..start+count-1, counted from the start of training across epochs."""
    return rows_of_run_at(seed, np.arange(start, start + count, dtype=np.int64), num_rows, block_rows, window_rows)


def rows_of_run_at(
    seed: int, positions_P: INT64_ARRAY, num_rows: int, block_rows: int = BLOCK_ROWS, window_rows: int = WINDOW_ROWS
) -> tuple[INT64_ARRAY, INT64_ARRAY]:
    """Rows and epochs, both [P], of these positions [P], counted from the start of training across epochs."""
    epochs_P, inside_P = np.divmod(positions_P, num_rows)
    rows_P = np.empty_like(positions_P)
    for epoch in np.unique(epochs_P):
        chosen = epochs_P == epoch
        rows_P[chosen] = rows_at(seed, int(epoch), inside_P[chosen], num_rows, block_rows, window_rows)
    return rows_P, epochs_P


def permute(values_P: UINT64_ARRAY, sizes_P: UINT64_ARRAY, keys_P: UINT64_ARRAY, largest: int) -> UINT64_ARRAY:
    """Permute each value of 0..size-1 under its key; sizes and keys may differ by position, `largest` bounds the sizes.

    A Feistel network permutes 0..2^bits-1. A result outside 0..size-1 is permuted again until it falls inside (cycle
    walking): each value follows its cycle to the next value below `size`, which is again a bijection. The domain is less than
    twice as large as the largest size, so that few values need a second pass.
    """
    encrypt = _feistel(max(1, (largest - 1).bit_length()))
    result_P = encrypt(values_P, keys_P)
    while (outside := np.flatnonzero(result_P >= sizes_P)).size:
        result_P[outside] = encrypt(result_P[outside], keys_P[outside])
    return result_P


def _feistel(bits: int) -> Callable[[UINT64_ARRAY, UINT64_ARRAY], UINT64_ARRAY]:
    """A keyed permutation of numbers of `bits` bits; the halves differ by one bit where `bits` is odd."""
    low_bits, high_bits = np.uint64(bits // 2), np.uint64(bits - bits // 2)
    one = np.uint64(1)

    def encrypt(values_P: UINT64_ARRAY, keys_P: UINT64_ARRAY) -> UINT64_ARRAY:
        left_P, right_P = values_P >> low_bits, values_P & ((one << low_bits) - one)
        left_bits = high_bits
        for number in range(_ROUNDS):
            round_keys_P = counter_random(keys_P, np.full_like(keys_P, number))
            noise_P = counter_random(round_keys_P, right_P) & ((one << left_bits) - one)
            left_P, right_P = right_P, left_P ^ noise_P
            left_bits = np.uint64(bits) - left_bits
        return (left_P << low_bits) | right_P

    return encrypt

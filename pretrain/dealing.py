"""How a global batch is dealt to data ranks and micro-batches: who computes a row, never which rows the batch holds.

Letters: G rows of the global batch, K sets that are dealt apart, n rows of one set, S bins of one set, c rows of one bin.
"""

import numpy as np
from numpy.typing import NDArray

INT64_ARRAY = NDArray[np.int64]


def deal(num_tokens_G: INT64_ARRAY, data_ranks: int, micro_batch_rows: int) -> INT64_ARRAY:
    """Indices into the global batch [data_ranks, micro_batches, micro_batch_rows]; every row is in exactly one place.

    G is a multiple of data_ranks * micro_batch_rows. Real tokens are balanced over ranks first (the slowest one sets the
    pace) and over the micro-batches of each rank second: the sums of two ranks, and of two micro-batches of a rank, never
    differ by more than rows do that are neighbours in length (one round of `_balance`). Deterministic.
    """
    rows_G1 = np.arange(len(num_tokens_G), dtype=np.int64)[None, :]
    rank_rows = _balance(rows_G1, num_tokens_G, data_ranks)[0]
    micro_batches = rank_rows.shape[1] // micro_batch_rows
    return _balance(rank_rows, num_tokens_G, micro_batches)


def _balance(rows_Kn: INT64_ARRAY, num_tokens_G: INT64_ARRAY, bins: int) -> INT64_ARRAY:
    """Split each set of rows [K, n] into bins of equal size [K, S, c] and nearly equal token sums.

    Longest rows first; each round gives every bin one row, the longest of the round to the bin that holds least. If two
    bins differ by d before a round whose rows differ by r at most, they differ by max(d, r) at most after it: hence the
    bound that `deal` promises.
    """
    sets, n = rows_Kn.shape
    by_length_Kn = np.argsort(-num_tokens_G[rows_Kn], axis=1, kind="stable")
    rounds_KcS = np.take_along_axis(rows_Kn, by_length_Kn, axis=1).reshape(sets, n // bins, bins)
    if bins == 1:
        return rounds_KcS.transpose(0, 2, 1)
    sums_KS = np.zeros((sets, bins), dtype=np.int64)
    dealt_KcS = np.empty_like(rounds_KcS)
    for number in range(n // bins):
        rows_KS = rounds_KcS[:, number]
        emptiest_KS = np.argsort(sums_KS, axis=1, kind="stable")
        np.put_along_axis(dealt_KcS[:, number], emptiest_KS, rows_KS, axis=1)
        sums_KS += num_tokens_G[dealt_KcS[:, number]]
    return dealt_KcS.transpose(0, 2, 1)

"""What counts of tokens and of pairs of neighbours reach on masked tokens: the levels that an encoder has to beat.

Letters: R rows, T slots, V vocabulary, P pairs.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pretrain.data.rows import Rows

# Rows are read in blocks of this size, so that memory holds the counts and one block.
_BLOCK_ROWS = 256

COUNTS = NDArray[np.int64]


def cross_entropy_of_frequencies(counts_V: COUNTS, frequencies_V: COUNTS) -> float:
    """Nats per token when tokens that occur `counts_V` times are predicted by `frequencies_V` (one added to each)."""
    chances_V = (frequencies_V + 1) / (frequencies_V + 1).sum()
    return float(-(counts_V * np.log(chances_V)).sum() / max(counts_V.sum(), 1))


def entropy(counts_V: COUNTS) -> float:
    """Nats per token when tokens are predicted by their own frequencies: no unigram model can do better on them."""
    present = counts_V[counts_V > 0]
    return float(-(present * np.log(present / present.sum())).sum() / max(present.sum(), 1))


def left_bigram_cross_entropy(train_P: COUNTS, held_out_P: COUNTS, vocabulary_size: int) -> float:
    """Nats per token when each token of the pairs `held_out_P` is predicted from the one on its left, by counts of `train_P`.

    Pairs are numbers left * V + token. Counts are interpolated with token frequencies as Witten and Bell (1991) do: the more
    different tokens follow a left one, the more weight the frequencies have. It has no constant to tune.
    """
    pairs, counts = np.unique(train_P, return_counts=True)
    left, token = np.divmod(pairs, vocabulary_size)
    after_V = np.bincount(left, weights=counts, minlength=vocabulary_size)
    kinds_V = np.bincount(left, minlength=vocabulary_size)
    frequencies_V = np.bincount(token, weights=counts, minlength=vocabulary_size) + 1
    chances_V = frequencies_V / frequencies_V.sum()
    seen = np.append(counts, 0)[_places(pairs, held_out_P)]
    left, token = np.divmod(held_out_P, vocabulary_size)
    known = kinds_V[left] > 0
    weight = np.maximum(after_V[left] + kinds_V[left], 1)
    chances = np.where(known, (seen + kinds_V[left] * chances_V[token]) / weight, chances_V[token])
    return float(-np.log(chances).mean()) if len(held_out_P) else 0.0


def _places(pairs: COUNTS, wanted_P: COUNTS) -> COUNTS:
    """The place of each wanted number in the sorted `pairs`; their length where it is not among them."""
    places = np.searchsorted(pairs, wanted_P)
    found = pairs[np.minimum(places, len(pairs) - 1)] == wanted_P if len(pairs) else np.zeros(len(wanted_P), dtype=bool)
    return np.where(found, places, len(pairs))


def count_rows(rows: Rows, vocabulary_size: int, max_rows: int, ordinary_V: NDArray[np.bool_]) -> tuple[COUNTS, COUNTS]:
    """Of the first rows of a split, padding left out: how often each token [V] stands there, and pairs of neighbours [P].

    A pair is left * V + token, for each token that can be masked (`ordinary_V`) and has one on its left.
    """
    counts_V, found = np.zeros(vocabulary_size, dtype=np.int64), [np.zeros(0, dtype=np.int64)]
    for tokens_RT, real_RT in _blocks(rows, max_rows):
        counts_V += np.bincount(tokens_RT[real_RT], minlength=vocabulary_size)
        left, token = tokens_RT[:, :-1].astype(np.int64), tokens_RT[:, 1:]
        found.append((left * vocabulary_size + token)[real_RT[:, :-1] & ordinary_V[token]])
    return counts_V, np.concatenate(found)


def _blocks(rows: Rows, max_rows: int) -> Iterator[tuple[NDArray[np.uint16], NDArray[np.bool_]]]:
    """Tokens [R, T] of the first rows in blocks, and where they are not padding."""
    count = min(len(rows), max_rows)
    for start in range(0, count, _BLOCK_ROWS):
        rows_R = np.arange(start, min(start + _BLOCK_ROWS, count), dtype=np.int64)
        num_tokens_R = rows.labels(rows_R).num_tokens
        yield rows.tokens(rows_R), np.arange(rows.sequence_length) >= rows.sequence_length - num_tokens_R[:, None]

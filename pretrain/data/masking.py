"""Which tokens the model must predict: a pure function of (seed, epoch, row), whatever rank or micro-batch the row is in.

Counter-based random numbers: the draw of a slot is a hash of (seed, epoch, row, slot), with no generator state. A stateful
generator would give a row other masks at another number of ranks, in another order, or after a resume; with counters the
masks of any row can be computed anywhere, alone, and are the same.

Letters: R rows, T slots, M masked tokens, V ordinary ids.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mose.array_types import INT64_ARRAY
from mose.dataset.packed_sequence import TOKENS, SpecialTokens
from mose.seeding import counter_random, derive_key

UINT32_ARRAY = NDArray[np.uint32]

# Section 2.1 of the paper: 15 % of the tokens, replaced as in BERT: 80 % become <mask>, 10 % a random token, 10 % stay.
MASKED_SHARE = 0.15
MASK_TOKEN_SHARE = 0.8
RANDOM_TOKEN_SHARE = 0.1
# The golden ratio in 32 bits. Odd, so that its multiples are all different, and they lie far apart.
_SLOT_STEP = np.uint32(0x9E3779B9)
# "lowbias32" (Wellons 2018): the least biased two-round integer hash that a search found.
_MULTIPLIER_1 = np.uint32(0x7FEB352D)
_MULTIPLIER_2 = np.uint32(0x846CA68B)
# The draws of 16 x 2,048 slots stay in a core's cache; 64 rows at a time took 1.7 times as long per row.
_ROWS_AT_A_TIME = 16


@dataclass(frozen=True)
class Masked:
    """Masked tokens of rows [R, T]: indices into the flattened rows [M], ascending, and what the model sees there [M]."""

    places_M: INT64_ARRAY
    seen_M: TOKENS


def mask_rows(
    tokens_RT: TOKENS,
    num_tokens_R: INT64_ARRAY,
    row_numbers_R: INT64_ARRAY,
    epochs_R: INT64_ARRAY,
    seed: int,
    special: SpecialTokens,
    ordinary_ids_V: TOKENS,
    share: float = MASKED_SHARE,
) -> Masked:
    """Draw the masked tokens of left-padded rows.

    Each real token that is not one of the five special tokens is selected with probability `share`; 80 % of the selected
    become `<mask>`, 10 % a uniform one of `ordinary_ids_V`, 10 % stay as they are. One 32-bit draw per slot decides all of it:
    whether the token is selected, and for a selected token, which is uniform below the threshold, what replaces it. Slots are
    counted from the right end (`<cls>` is 0), so that the result depends neither on padding nor on the batch.
    """
    T = tokens_RT.shape[1]
    threshold = round(share * 2.0**32)
    draws_RT = _draws(row_keys(seed, epochs_R, row_numbers_R), T)
    drawn = np.flatnonzero(draws_RT < np.uint32(min(threshold, 2**32 - 1)))
    tokens = tokens_RT.reshape(-1).take(drawn)
    # A padding slot can hold any id in a damaged row, so its place decides, not its token.
    kept = drawn % T >= (T - num_tokens_R)[drawn // T]
    for token_id in special.ids():
        kept &= tokens != token_id
    places_M, tokens_M = drawn[kept], tokens[kept]
    draws_M = draws_RT.reshape(-1).take(places_M)
    return Masked(places_M, _replacements(tokens_M, draws_M, threshold, special, ordinary_ids_V))


def row_keys(seed: int, epochs_R: INT64_ARRAY, row_numbers_R: INT64_ARRAY) -> NDArray[np.uint64]:
    """The 64 bits that decide the masks of each row [R]."""
    epoch_keys_R = counter_random(derive_key(seed, "masking"), epochs_R.astype(np.uint64))
    return counter_random(epoch_keys_R, row_numbers_R.astype(np.uint64))


def _draws(keys_R: NDArray[np.uint64], T: int) -> UINT32_ARRAY:
    """32 random bits per slot [R, T]: half of a row's key enters before the first round of the hash, half before the second.

    Both halves are needed: with 32 bits of key, two of some 100,000 rows would share all their masks.
    """
    steps_T = np.arange(T - 1, -1, -1, dtype=np.uint32) * _SLOT_STEP
    low_R1, high_R1 = keys_R.astype(np.uint32)[:, None], (keys_R >> np.uint64(32)).astype(np.uint32)[:, None]
    draws_RT = np.empty((len(keys_R), T), dtype=np.uint32)
    shifted = np.empty((_ROWS_AT_A_TIME, T), dtype=np.uint32)
    for start in range(0, len(keys_R), _ROWS_AT_A_TIME):
        some = slice(start, start + _ROWS_AT_A_TIME)
        x = np.bitwise_xor(steps_T, low_R1[some], out=draws_RT[some])
        y = shifted[: len(x)]
        x ^= np.right_shift(x, np.uint32(16), out=y)
        x *= _MULTIPLIER_1
        x += high_R1[some]
        x ^= np.right_shift(x, np.uint32(15), out=y)
        x *= _MULTIPLIER_2
        x ^= np.right_shift(x, np.uint32(16), out=y)
    return draws_RT


def _replacements(
    tokens_M: TOKENS, draws_M: UINT32_ARRAY, threshold: int, special: SpecialTokens, ordinary_ids_V: TOKENS
) -> TOKENS:
    """What the model sees in place of selected tokens [M], whose draws are uniform over 0..threshold-1."""
    mask_end = round(threshold * MASK_TOKEN_SHARE)
    random_end = round(threshold * (MASK_TOKEN_SHARE + RANDOM_TOKEN_SHARE))
    seen_M: TOKENS = np.where(draws_M < mask_end, tokens_M.dtype.type(special.mask), tokens_M)
    random = np.flatnonzero((draws_M >= mask_end) & (draws_M < random_end))
    offsets = draws_M[random].astype(np.uint64) - np.uint64(mask_end)
    seen_M[random] = ordinary_ids_V[offsets * np.uint64(len(ordinary_ids_V)) // np.uint64(max(1, random_end - mask_end))]
    return seen_M

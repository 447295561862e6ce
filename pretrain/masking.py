"""Which tokens the model must predict: a pure function of (seed, epoch, row), whatever rank or micro-batch the row is in.

Letters: R rows, T slots, C candidates (tokens drawn for masking), V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mose.packed_sequence import TOKENS, SpecialTokens
from mose.seeding import UINT64_ARRAY, counter_random, derive_key

# Section 2.1 of the paper: 15 % of the tokens, replaced as in BERT: 80 % become <mask>, 10 % a random token, 10 % stay.
MASKED_SHARE = 0.15
MASK_TOKEN_SHARE = 0.8
RANDOM_TOKEN_SHARE = 0.1
_HALF_BITS = np.uint64(32)
# 64 bits for each of 8 x 2,048 slots stay in a core's cache; 32 rows at a time took twice as long a row.
_ROWS_AT_A_TIME = 8
_SECOND_DRAW = np.uint64(1 << 32)
_LOW_HALF = np.uint64(0xFFFFFFFF)


@dataclass(frozen=True)
class Masked:
    """Rows as the model sees them [R, T], and which slots it must predict [R, T]."""

    input_RT: TOKENS
    selected_RT: NDArray[np.bool_]


def mask_rows(
    tokens_RT: TOKENS,
    num_tokens_R: NDArray[np.int64],
    row_numbers_R: NDArray[np.int64],
    epochs_R: NDArray[np.int64],
    seed: int,
    special: SpecialTokens,
    ordinary_ids_V: TOKENS,
    share: float = MASKED_SHARE,
) -> Masked:
    """Draw the masked tokens of left-padded rows.

    Each real token that is not one of the five special tokens is selected with probability `share`; 80 % of the selected
    become `<mask>`, 10 % any one of `ordinary_ids_V`, 10 % stay as they are. The draw of a slot is keyed by (seed, epoch,
    row) and counts slots from the right end (`<cls>` is 0), so that it depends neither on padding nor on the batch.
    """
    T = tokens_RT.shape[1]
    row_keys_R = _row_keys(seed, epochs_R, row_numbers_R)
    drawn_C = np.flatnonzero(_drawn(row_keys_R, num_tokens_R, T, share))
    tokens_C = tokens_RT.reshape(-1)[drawn_C]
    ordinary_C = np.isin(tokens_C, special.ids(), invert=True)
    drawn_C, tokens_C = drawn_C[ordinary_C], tokens_C[ordinary_C]
    row_C, slot_C = np.divmod(drawn_C, T)
    # A second draw for the few that are selected: the first one is small by selection, hence not uniform.
    second_C = counter_random(row_keys_R[row_C], (T - 1 - slot_C).astype(np.uint64) + _SECOND_DRAW)
    selected_RT, input_RT = np.zeros(tokens_RT.shape, dtype=bool), tokens_RT.copy()
    selected_RT.reshape(-1)[drawn_C] = True
    input_RT.reshape(-1)[drawn_C] = _replacements(tokens_C, second_C, special, ordinary_ids_V)
    return Masked(input_RT, selected_RT)


def _drawn(row_keys_R: UINT64_ARRAY, num_tokens_R: NDArray[np.int64], T: int, share: float) -> NDArray[np.bool_]:
    """Slots [R, T] whose first draw selects them, special tokens included; padding never is."""
    from_right_T = np.arange(T - 1, -1, -1, dtype=np.uint64)
    threshold = np.uint64(share * 2.0**64)
    drawn_RT = np.empty((len(row_keys_R), T), dtype=bool)
    for start in range(0, len(row_keys_R), _ROWS_AT_A_TIME):
        some = slice(start, start + _ROWS_AT_A_TIME)
        np.less(counter_random(row_keys_R[some, None], from_right_T[None, :]), threshold, out=drawn_RT[some])
    drawn_RT &= np.arange(T) >= T - num_tokens_R[:, None]
    return drawn_RT


def _row_keys(seed: int, epochs_R: NDArray[np.int64], row_numbers_R: NDArray[np.int64]) -> UINT64_ARRAY:
    epoch_keys_R = counter_random(derive_key(seed, "masking"), epochs_R.astype(np.uint64))
    return counter_random(epoch_keys_R, row_numbers_R.astype(np.uint64))


def _replacements(tokens_C: TOKENS, draws_C: UINT64_ARRAY, special: SpecialTokens, ordinary_ids_V: TOKENS) -> TOKENS:
    """What the model sees in place of selected tokens [C]: the high half of a draw says the kind, the low half the token."""
    kind_C = (draws_C >> _HALF_BITS).astype(np.float64) / 2.0**32
    which_C = ((draws_C & _LOW_HALF) * np.uint64(len(ordinary_ids_V))) >> _HALF_BITS
    kept_C = np.where(kind_C < MASK_TOKEN_SHARE + RANDOM_TOKEN_SHARE, ordinary_ids_V[which_C], tokens_C)
    replaced_C: TOKENS = np.where(kind_C < MASK_TOKEN_SHARE, tokens_C.dtype.type(special.mask), kept_C)
    return replaced_C

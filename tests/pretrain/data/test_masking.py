"""Masking: rates, what is never masked, and that only (seed, epoch, row) decides it."""

import hashlib
from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mose.dataset.packed_sequence import TOKENS, SpecialTokens
from pretrain.data.masking import _draws, mask_rows, row_keys

SPECIAL = SpecialTokens(pad=0, unk=1, sep=2, cls=3, mask=4)
VOCABULARY = 512
ORDINARY = np.arange(5, VOCABULARY).astype(np.uint16)


def some_rows(count: int, length: int, seed: int = 0) -> tuple[TOKENS, NDArray[np.int64]]:
    """Left-padded rows `<sep> ... <sep> ... <cls>` with an `<unk>` here and there."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, VOCABULARY, size=(count, length)).astype(np.uint16)
    num_tokens = rng.integers(6, length + 1, size=count)
    for row, real in zip(tokens, num_tokens, strict=True):
        first = length - real
        row[:first] = SPECIAL.pad
        row[[first, first + real // 2]] = SPECIAL.sep
        row[first + 1] = SPECIAL.unk
        row[-1] = SPECIAL.cls
    return tokens, num_tokens


@dataclass(frozen=True)
class Dense:
    """Rows as the model sees them [R, T], and which slots it must predict [R, T]."""

    input_RT: TOKENS
    selected_RT: NDArray[np.bool_]


def mask_epochs(
    tokens: TOKENS,
    num_tokens: NDArray[np.int64],
    rows: NDArray[np.int64],
    epochs: NDArray[np.int64],
    seed: int = 0,
    share: float = 0.15,
) -> Dense:
    masked = mask_rows(tokens, num_tokens, rows, epochs, seed, SPECIAL, ORDINARY, share)
    assert (np.diff(masked.places_M) > 0).all()
    seen, selected = tokens.copy(), np.zeros(tokens.shape, dtype=bool)
    seen.reshape(-1)[masked.places_M] = masked.seen_M
    selected.reshape(-1)[masked.places_M] = True
    return Dense(seen, selected)


def mask(
    tokens: TOKENS, num_tokens: NDArray[np.int64], rows: NDArray[np.int64], epoch: int = 0, seed: int = 0, share: float = 0.15
) -> Dense:
    return mask_epochs(tokens, num_tokens, rows, np.full_like(rows, epoch), seed, share)


def test_rates() -> None:
    tokens, num_tokens = some_rows(800, 1024)
    masked = mask(tokens, num_tokens, np.arange(800))
    maskable = ~np.isin(tokens, SPECIAL.ids())
    count = int(masked.selected_RT.sum())
    bound = 5 / np.sqrt(count)
    assert abs(count / maskable.sum() - 0.15) < 0.15 * bound
    seen, true = masked.input_RT[masked.selected_RT], tokens[masked.selected_RT]
    as_mask, same = (seen == SPECIAL.mask).mean(), (seen == true).mean()
    assert abs(as_mask - 0.8) < bound
    # One in 507 random tokens is the true one by chance.
    assert abs(same - (0.1 + 0.1 / len(ORDINARY))) < bound
    assert abs((1 - as_mask - same) - 0.1) < bound


def test_random_tokens_are_uniform_over_ordinary_ids() -> None:
    tokens, num_tokens = some_rows(800, 1024, seed=1)
    masked = mask(tokens, num_tokens, np.arange(800))
    changed = masked.selected_RT & (masked.input_RT != SPECIAL.mask) & (masked.input_RT != tokens)
    counts = np.bincount(masked.input_RT[changed], minlength=VOCABULARY)
    assert counts[:5].sum() == 0
    expected = changed.sum() / len(ORDINARY)
    chi_squared = ((counts[5:] - expected) ** 2 / expected).sum()
    assert abs(chi_squared - len(ORDINARY)) < 6 * np.sqrt(2 * len(ORDINARY))


def test_special_tokens_and_padding_are_never_touched() -> None:
    tokens, num_tokens = some_rows(64, 128)
    masked = mask(tokens, num_tokens, np.arange(64), share=0.95)
    special = np.isin(tokens, SPECIAL.ids())
    assert not masked.selected_RT[special].any()
    assert np.array_equal(masked.input_RT[~masked.selected_RT], tokens[~masked.selected_RT])
    assert masked.selected_RT[~special].mean() > 0.9


def test_padding_that_spells_an_ordinary_token_is_not_masked() -> None:
    tokens = np.full((4, 64), 100, dtype=np.uint16)
    masked = mask(tokens, np.array([0, 1, 10, 64]), np.arange(4), share=0.999)
    assert not masked.selected_RT[0].any()
    assert not masked.selected_RT[2, :54].any()
    assert masked.selected_RT[2, 54:].mean() > 0.5


@given(seed=st.integers(0, 2**32), order=st.permutations(list(range(8))))
def test_a_row_is_masked_the_same_in_any_batch(seed: int, order: list[int]) -> None:
    tokens, num_tokens = some_rows(8, 40, seed % 1000)
    numbers = np.arange(100, 108)
    together = mask(tokens, num_tokens, numbers, seed=seed)
    shuffled = mask(tokens[order], num_tokens[order], numbers[order], seed=seed)
    assert np.array_equal(shuffled.input_RT, together.input_RT[order])
    assert np.array_equal(shuffled.selected_RT, together.selected_RT[order])
    for row in range(8):
        one = slice(row, row + 1)
        alone = mask(tokens[one], num_tokens[one], numbers[one], seed=seed)
        assert np.array_equal(alone.input_RT[0], together.input_RT[row])


def test_it_does_not_depend_on_padding() -> None:
    tokens, num_tokens = some_rows(8, 64)
    wider = np.concatenate([np.full((8, 100), SPECIAL.pad, dtype=np.uint16), tokens], axis=1)
    narrow, wide = (mask(rows, num_tokens, np.arange(8)) for rows in (tokens, wider))
    assert np.array_equal(wide.input_RT[:, 100:], narrow.input_RT)
    assert np.array_equal(wide.selected_RT[:, 100:], narrow.selected_RT)


def test_epochs_seeds_and_rows_draw_apart() -> None:
    tokens = np.full((1, 1024), 100, dtype=np.uint16)
    drawn = [
        mask(tokens, np.array([1024]), np.array([row]), epoch, seed).selected_RT[0]
        for epoch, seed, row in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            # Independent draws of 15 % meet in .15 squared of the slots: 23 of 1,024, deviation 4.7.
            assert (one & other).sum() < 60


def test_rows_of_another_epoch_in_one_batch() -> None:
    tokens, num_tokens = some_rows(1, 256)
    twice, lengths, numbers = np.repeat(tokens, 2, axis=0), np.repeat(num_tokens, 2), np.array([7, 7])
    masked = mask_epochs(twice, lengths, numbers, np.array([0, 1]))
    for place, epoch in enumerate((0, 1)):
        alone = mask(tokens, num_tokens, numbers[:1], epoch)
        assert np.array_equal(masked.selected_RT[place], alone.selected_RT[0])
    assert not np.array_equal(masked.selected_RT[0], masked.selected_RT[1])


def test_the_stored_rows_are_not_changed_and_the_type_stays() -> None:
    tokens, num_tokens = some_rows(4, 64)
    before = tokens.copy()
    for dtype in (np.uint16, np.uint32):
        masked = mask_rows(tokens.astype(dtype), num_tokens, *np.zeros((2, 4), np.int64), 0, SPECIAL, ORDINARY.astype(dtype))
        assert masked.seen_M.dtype == dtype
    assert np.array_equal(tokens, before)


def test_slots_of_a_row_and_rows_of_a_slot_are_drawn_independently() -> None:
    """Neighbours in a row, and one slot of neighbouring rows, epochs and seeds, are masked together as often as chance says."""
    count, length = 3000, 512
    tokens, num_tokens = np.full((count, length), 100, dtype=np.uint16), np.full(count, length)
    selected = mask(tokens, num_tokens, np.arange(count)).selected_RT
    pairs = {
        "next slot": (selected[:, 1:], selected[:, :-1]),
        "slot 8 further": (selected[:, 8:], selected[:, :-8]),
        "next row": (selected[1:], selected[:-1]),
        "row 64 further": (selected[64:], selected[:-64]),
        "next epoch": (selected, mask(tokens, num_tokens, np.arange(count), epoch=1).selected_RT),
        "next seed": (selected, mask(tokens, num_tokens, np.arange(count), seed=1).selected_RT),
    }
    for name, (one, other) in pairs.items():
        expected = 0.15**2 * one.size
        assert abs((one & other).sum() - expected) < 5 * np.sqrt(expected), name


def test_masked_tokens_of_a_slot_and_of_a_row_vary_as_a_coin_would() -> None:
    """Chi-square over slots and over rows: neither is favoured, and rows are not evened out."""
    count, length = 2000, 512
    tokens, num_tokens = np.full((count, length), 100, dtype=np.uint16), np.full(count, length)
    selected = mask(tokens, num_tokens, np.arange(count)).selected_RT
    for counts, draws in ((selected.sum(axis=0), count), (selected.sum(axis=1), length)):
        chi_squared = ((counts - 0.15 * draws) ** 2 / (draws * 0.15 * 0.85)).sum()
        assert abs(chi_squared - len(counts)) < 5 * np.sqrt(2 * len(counts))


def test_half_of_a_rows_key_is_not_enough_to_give_its_masks() -> None:
    """500 million rows share 32-bit halves of their keys by chance; the masks then still differ."""
    keys = row_keys(0, np.zeros(1 << 17, dtype=np.int64), np.arange(1 << 17))
    low = keys & np.uint64(0xFFFFFFFF)
    order = np.argsort(low)
    same = np.flatnonzero(np.diff(low[order]) == 0)
    assert len(same), "2 to the 17 rows are enough for a pair, seed 0 has one"
    pair = order[[same[0], same[0] + 1]]
    tokens = np.full((2, 1024), 100, dtype=np.uint16)
    one, other = mask(tokens, np.full(2, 1024), pair).selected_RT
    assert (one & other).sum() < 60


def test_the_draws_never_change() -> None:
    """A run that resumes with newer code must mask its rows as before, so the hash is fixed to the last bit of its last round."""
    keys_R = row_keys(7, np.array([0, 3]), np.array([0, 499_999_999]))
    draws_RT = _draws(keys_R, 2048)
    assert draws_RT[:, -3:].tolist() == [[568515380, 1055848032, 2394710267], [2318038050, 1716772131, 3994804379]]
    assert hashlib.sha256(draws_RT.astype("<u4").tobytes()).hexdigest()[:16] == "e3ef4ff6c688ff3f"

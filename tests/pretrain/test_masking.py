"""Masking: rates, what is never masked, and that only (seed, epoch, row) decides it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mose.packed_sequence import TOKENS, SpecialTokens
from pretrain.masking import Masked, mask_rows

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


def mask(
    tokens: TOKENS, num_tokens: NDArray[np.int64], rows: NDArray[np.int64], epoch: int = 0, seed: int = 0, share: float = 0.15
) -> Masked:
    return mask_rows(tokens, num_tokens, rows, np.full_like(rows, epoch), seed, SPECIAL, ORDINARY, share)


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
    masked = mask_rows(twice, lengths, numbers, np.array([0, 1]), 0, SPECIAL, ORDINARY)
    for place, epoch in enumerate((0, 1)):
        alone = mask(tokens, num_tokens, numbers[:1], epoch)
        assert np.array_equal(masked.selected_RT[place], alone.selected_RT[0])
    assert not np.array_equal(masked.selected_RT[0], masked.selected_RT[1])


def test_the_stored_rows_are_not_changed_and_the_type_stays() -> None:
    tokens, num_tokens = some_rows(4, 64)
    before = tokens.copy()
    for dtype in (np.uint16, np.uint32):
        masked = mask(tokens.astype(dtype), num_tokens, np.arange(4))
        assert masked.input_RT.dtype == dtype
    assert np.array_equal(tokens, before)

"""Seeding: a pure function of seed and names, evenly spread, and the same on every machine."""

import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mose.seeding import counter_random, derive_key, generator, mix

PARTS = st.lists(st.one_of(st.integers(), st.text(max_size=5)), max_size=4)


@given(PARTS, PARTS)
def test_other_parts_give_another_key(a: list[int | str], b: list[int | str]) -> None:
    assert (derive_key(*a) == derive_key(*b)) == (a == b) or any("\x1f" in str(part) for part in (*a, *b))


def test_a_number_and_its_spelling_differ() -> None:
    assert derive_key(1, "2") != derive_key("1", 2)


def test_keys_are_the_same_in_another_process() -> None:
    code = "from mose.seeding import derive_key, generator; print(derive_key(3, 'x'), generator(3, 'x').integers(1 << 40))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert [int(word) for word in printed] == [derive_key(3, "x"), int(generator(3, "x").integers(1 << 40))]


def test_mix_is_splitmix64() -> None:
    # The first outputs of SplitMix64 seeded with 0, as published with Java's SplittableRandom and xoshiro's seeding.
    increments = np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert [hex(value) for value in mix(increments)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


def test_a_counter_alone_decides_its_bits() -> None:
    every = counter_random(5, np.arange(1000, dtype=np.uint64))
    some = counter_random(5, np.array([999, 0, 17], dtype=np.uint64))
    assert some.tolist() == every[[999, 0, 17]].tolist()
    assert len(set(every.tolist())) == 1000
    assert not np.isin(counter_random(6, np.arange(1000, dtype=np.uint64)), every).any()


def test_keys_broadcast_over_rows() -> None:
    keys = np.array([[1], [2]], dtype=np.uint64)
    counters = np.arange(5, dtype=np.uint64)
    both = counter_random(keys, counters)
    assert both.shape == (2, 5)
    assert both[1].tolist() == counter_random(2, counters).tolist()


def test_bits_are_evenly_spread() -> None:
    values = counter_random(11, np.arange(100_000, dtype=np.uint64))
    counts = np.bincount((values >> np.uint64(56)).astype(np.int64), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-4
    bits = (values[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.01


def test_generators_of_other_purposes_differ() -> None:
    assert generator(0, "a").random() == generator(0, "a").random()
    assert generator(0, "a").random() != generator(0, "b").random()

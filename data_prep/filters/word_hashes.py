"""Splits text into words and hashes word n-grams, in numpy, so that texts can be compared regardless of their layout.

A word is a run of ASCII letters (in either case), digits, `_` and bytes outside ASCII; a run longer than 64 bytes
is split every 64 bytes. Letters: W words, G n-grams.
"""

from dataclasses import dataclass

import numpy as np

from mose.array_types import INT64_ARRAY
from mose.seeding import UINT64_ARRAY, mix

MAX_WORD_BYTES = 64
_IS_WORD = [byte >= 128 or byte == ord("_") or chr(byte).isalnum() for byte in range(256)]
# Maps A-Z to a-z, keeps other bytes of words, maps all others to 0. Only ASCII is folded, at one table look-up per byte.
_FOLD = bytes(ord(chr(byte).lower()) if is_word and byte < 128 else byte * is_word for byte, is_word in enumerate(_IS_WORD))
_STEP = 8
# Keeps the first k of 8 little-endian bytes.
_MASKS = np.array([(1 << 8 * k) - 1 for k in range(_STEP + 1)], dtype=np.uint64)
# Any odd number is invertible modulo 2^64; 5 modulo 8 keeps the powers of it furthest apart (PCG's multiplier, O'Neill 2014).
_MULTIPLIER = 6364136223846793005
_MODULUS = 1 << 64


@dataclass(frozen=True)
class Words:
    """The words of a text in their order."""

    hashes_W: UINT64_ARRAY
    """A 64-bit hash of each word."""
    starts_W: INT64_ARRAY
    """Offset of each word's first byte."""
    ends_W: INT64_ARRAY
    """Offset after each word's last byte."""

    def __len__(self) -> int:
        return len(self.hashes_W)

    def last(self, number: int) -> "Words":
        """The last `number` words, or all if there are fewer."""
        first = max(len(self) - number, 0)
        return Words(self.hashes_W[first:], self.starts_W[first:], self.ends_W[first:])

    def joined(self, other: "Words") -> "Words":
        """These words and then those of `other`."""
        if not len(self):
            return other
        return Words(
            np.concatenate((self.hashes_W, other.hashes_W)),
            np.concatenate((self.starts_W, other.starts_W)),
            np.concatenate((self.ends_W, other.ends_W)),
        )


def fold(text: bytes) -> bytes:
    """The text with letters in lower case, and 0 for every byte outside words."""
    return text.translate(_FOLD)


def find_words(folded: bytes, offset: int = 0) -> Words:
    """The words of a result of `fold`, with `offset` added to their positions."""
    # A leading 0 makes the first word an edge too; trailing zeros let 8 bytes be read at the last byte.
    padded = b"\0" + folded + bytes(_STEP)
    is_word = np.frombuffer(padded, dtype=np.uint8) != 0
    edges = np.flatnonzero(is_word[1:] != is_word[:-1])
    starts_W, ends_W = _short(edges[0::2], edges[1::2])
    return Words(_hash(padded, starts_W + 1, ends_W - starts_W), starts_W + offset, ends_W + offset)


def ngram_hashes(hashes_W: UINT64_ARRAY, size: int) -> UINT64_ARRAY:
    """Hashes [W - size + 1] of all n-grams of `size` words: a polynomial in the words' hashes modulo 2^64.

    Combines n-grams of 1, 2, 4, ... words by the binary digits of `size`: O(log size) array operations instead of `size`.
    """
    total, block, block_size, covered = hashes_W[:0], hashes_W, 1, 0
    while True:
        if size & block_size:
            total = _joined(total, block, covered, block_size)
            covered += block_size
        if covered == size:
            return total
        block = _joined(block, block, block_size, block_size)
        block_size *= 2


def _joined(left: UINT64_ARRAY, right: UINT64_ARRAY, left_size: int, right_size: int) -> UINT64_ARRAY:
    """Hashes of `left_size + right_size` words from those of `left_size` and of `right_size` words."""
    if left_size == 0:
        return right
    tail = right[left_size:]
    return left[: len(tail)] * np.uint64(pow(_MULTIPLIER, right_size, _MODULUS)) + tail


def _short(starts: INT64_ARRAY, ends: INT64_ARRAY) -> tuple[INT64_ARRAY, INT64_ARRAY]:
    """The runs of word bytes, with runs longer than `MAX_WORD_BYTES` split."""
    parts = (ends - starts + MAX_WORD_BYTES - 1) // MAX_WORD_BYTES
    if not np.any(parts > 1):
        return starts, ends
    number_in_run = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    cut_starts = np.repeat(starts, parts) + MAX_WORD_BYTES * number_in_run
    return cut_starts, np.minimum(cut_starts + MAX_WORD_BYTES, np.repeat(ends, parts))


def _hash(padded: bytes, starts: INT64_ARRAY, lengths: INT64_ARRAY) -> UINT64_ARRAY:
    eight_bytes = np.ndarray(len(padded) - _STEP + 1, dtype="<u8", buffer=padded, strides=(1,))
    hashes = mix(eight_bytes.take(starts) & _MASKS[np.minimum(lengths, _STEP)])
    for done in range(_STEP, MAX_WORD_BYTES, _STEP):
        longer = np.flatnonzero(lengths > done)
        if not len(longer):
            break
        rest = eight_bytes.take(starts[longer] + done) & _MASKS[np.minimum(lengths[longer] - done, _STEP)]
        hashes[longer] = mix(hashes[longer] * np.uint64(_MULTIPLIER) + rest)
    return hashes

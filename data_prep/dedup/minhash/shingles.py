"""Text to shingles: every 5 consecutive characters of the normalised text, each as one 64-bit number.

A shingle whose characters are all below U+0100 is its five bytes, so that its number is exact and costs one load of 8 bytes. Any
other shingle is a 63-bit hash of its code points with the top bit set: two of them are confused with probability 2^-63.

Letters: D documents, W shingles in the order of the text (with repetitions), S distinct shingles in ascending order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mose.array_types import INT64_ARRAY
from mose.seeding import UINT64_ARRAY, mix

SHINGLE_CHARACTERS = 5
_BYTES_PER_LOAD = 8
_FIVE_BYTES = np.uint64((1 << 8 * SHINGLE_CHARACTERS) - 1)
_WIDE_BIT = np.uint64(1 << 63)
_WIDE_BITS = 21  # of a Unicode code point
# numpy maps and unmaps memory for every temporary array above 128 KiB, which costs more than the arithmetic (measured: 9 against
# 2 ns per shingle and hash), so batches are just below: 2^14 numbers of 8 bytes.
BATCH_CHARACTERS = (1 << 14) - 64


def normalize(text: str) -> str:
    """The text with one blank for every run of white space and none at its ends, so that layout does not count.

    Case and punctuation stay: in code they carry meaning.
    """
    return " ".join(text.split())


@dataclass(frozen=True)
class Shingles:
    """The shingles of a batch of documents, one document after another."""

    ids_W: UINT64_ARRAY
    """As many per document as it has characters: the last one is repeated, which changes no set and spares a compaction."""
    lengths_D: INT64_ARRAY
    """Number of entries of each document in `ids_W`; 0 for an empty text."""


def shingles_of(texts: Sequence[str]) -> Shingles:
    """The shingles of normalised texts. A text of fewer than 5 characters has one: itself, filled up with NUL characters."""
    padded = [text.ljust(SHINGLE_CHARACTERS, "\0") if text else "" for text in texts]
    lengths_D = np.fromiter(map(len, padded), np.int64, len(padded))
    joined = "".join(padded)
    try:
        ids_W = _narrow_ids(joined.encode("latin-1"))
    except UnicodeEncodeError:
        ids_W = _wide_ids(joined)
    # The last four windows of a document reach into the next one.
    ends_D = np.cumsum(lengths_D)[lengths_D > 0]
    for place in range(1, SHINGLE_CHARACTERS):
        ids_W[ends_D - place] = ids_W[ends_D - SHINGLE_CHARACTERS]
    return Shingles(ids_W, lengths_D)


def batches(texts: Sequence[str]) -> Iterator[slice]:
    """Ranges of consecutive texts with at most `BATCH_CHARACTERS` characters together, or of one longer text."""
    first = characters = 0
    for number, text in enumerate(texts):
        size = max(len(text), SHINGLE_CHARACTERS)
        if number > first and characters + size > BATCH_CHARACTERS:
            yield slice(first, number)
            first, characters = number, 0
        characters += size
    if first < len(texts):
        yield slice(first, len(texts))


def shingle_set(text: str) -> UINT64_ARRAY:
    """The distinct shingles [S] of a normalised text, ascending."""
    return np.unique(shingles_of([text]).ids_W)


def jaccard(first_S: UINT64_ARRAY, second_S: UINT64_ARRAY) -> float:
    """Jaccard similarity of two results of `shingle_set`; 0 if one is empty, because an empty text is like no other."""
    if not len(first_S) or not len(second_S):
        return 0.0
    merged = np.concatenate((first_S, second_S))
    merged.sort()
    shared = int(np.count_nonzero(merged[1:] == merged[:-1]))
    return shared / (len(merged) - shared)


def _narrow_ids(content: bytes) -> UINT64_ARRAY:
    """Five bytes from each place on, little-endian."""
    padded = content + bytes(_BYTES_PER_LOAD)
    loads_W = np.ndarray(len(content), dtype="<u8", buffer=padded, strides=(1,))
    return loads_W & _FIVE_BYTES


def _wide_ids(text: str) -> UINT64_ARRAY:
    """As `_narrow_ids`, of a text with characters from U+0100 on."""
    # Lone surrogates occur in texts that were decoded leniently; they are code points like any other here.
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass") + bytes(4 * SHINGLE_CHARACTERS), "<u4").astype(np.uint64)
    windows = [points[place : place + len(text)] for place in range(SHINGLE_CHARACTERS)]
    narrow = np.zeros(len(text), np.uint64)
    is_wide = np.zeros(len(text), np.bool_)
    for place, points_W in enumerate(windows):
        narrow |= points_W << np.uint64(8 * place)
        is_wide |= points_W > np.uint64(0xFF)
    low = windows[0] | windows[1] << np.uint64(_WIDE_BITS) | windows[2] << np.uint64(2 * _WIDE_BITS)
    high = windows[3] | windows[4] << np.uint64(_WIDE_BITS)
    return np.where(is_wide, mix(mix(low) + high) | _WIDE_BIT, narrow)

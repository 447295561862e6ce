"""Splits token arrays into chunks at line ends, and finds the bytes of each chunk, without encoding any text twice.

Letters: N tokens of all files, F files, C chunks of all files, V vocabulary.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mose.array_types import INT64_ARRAY
from mose.dataset.packed_sequence import TOKENS
from mose.tokenizer import SentencePieceTokenizer, Tokenizer

# sentencepiece writes a space as U+2581 and encodes a U+2581 of the text the same way: 3 bytes of text that look like 1.
SPACE_MARK = "\u2581"
_SPACE_MARK_EXCESS = len(SPACE_MARK.encode()) - 1
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
# GPT-2's byte-level alphabet has one character for each byte; these are newline, space and tab in it.
_BYTE_LEVEL_BLANKS = str.maketrans({"\u010a": "\n", "\u0120": " ", "\u0109": "\t"})


@dataclass(frozen=True)
class VocabularyTable:
    """What chunking needs to know about each token id."""

    marks_V: NDArray[np.uint16]
    """Twice the UTF-8 bytes of the token's text (none for special tokens), and 1 more if it ends a line: if it holds a newline
    with nothing but blanks after it, which is a good end for a chunk."""
    merges_space_mark: bool
    """A text's own U+2581 gets the token of a space (sentencepiece)."""

    def marks(self, tokens_N: TOKENS) -> NDArray[np.uint16]:
        """The marks of these tokens. Size and line end share one number because chunking spends its time on this look-up."""
        # "clip" skips the bounds check, a pass of its own; the ids come from the tokenizer of this vocabulary.
        return self.marks_V.take(tokens_N, mode="clip")


def vocabulary_table(tokenizer: Tokenizer) -> VocabularyTable:
    """Read every piece of the vocabulary once."""
    is_sentencepiece = isinstance(tokenizer, SentencePieceTokenizer)
    read = _sentencepiece_text if is_sentencepiece else _byte_level_text
    special = set(tokenizer.special.ids())
    texts = [("", 0) if i in special else read(tokenizer.piece(i)) for i in range(tokenizer.vocabulary_size)]
    marks = [size * 2 + text.rstrip(" \t").endswith("\n") for text, size in texts]
    return VocabularyTable(np.array(marks, dtype=np.uint16), is_sentencepiece)


def _sentencepiece_text(piece: str) -> tuple[str, int]:
    byte = _BYTE_PIECE.fullmatch(piece)
    if byte:
        return chr(int(byte.group(1), 16)), 1
    text = piece.replace(SPACE_MARK, " ")
    return text, len(text.encode())


def _byte_level_text(piece: str) -> tuple[str, int]:
    return piece.translate(_BYTE_LEVEL_BLANKS), len(piece)


def chunk_files(marks_N: NDArray[np.uint16], files_F1: INT64_ARRAY, limits_F: INT64_ARRAY) -> tuple[INT64_ARRAY, INT64_ARRAY]:
    """Split consecutive files into chunks; returns the bounds of all chunks [C + 1] and the number of chunks per file [F].

    File f is tokens `files_F1[f]` to `files_F1[f + 1]`, chunk c is tokens `bounds[c]` to `bounds[c + 1]`. No chunk of file f has
    more than `limits_F[f]` tokens. A chunk ends at the last line end within the limit, or at the limit inside a longer line. A
    file without tokens has no chunk.
    """
    # Most files fit into one chunk. Their bounds are known without a look at their tokens, so Python only visits long files.
    lengths_F = np.diff(files_F1)
    chunks_F = np.minimum(lengths_F, 1)
    long_files = np.flatnonzero(lengths_F > limits_F)
    if not len(long_files):
        return _distinct(files_F1), chunks_F
    line_ends = (np.flatnonzero((marks_N & 1).astype(np.bool_)) + 1).data
    inner: list[int] = []
    for file in long_files.tolist():
        before = len(inner)
        _chunk_file(int(files_F1[file]), int(files_F1[file + 1]), int(limits_F[file]), line_ends, inner)
        chunks_F[file] += len(inner) - before
    return _distinct(np.sort(np.concatenate((files_F1, np.array(inner, dtype=np.int64))))), chunks_F


def _distinct(ascending: INT64_ARRAY) -> INT64_ARRAY:
    """The same as `np.unique`, for numbers that are sorted already."""
    return ascending[np.diff(ascending, prepend=-1) > 0]


def _chunk_file(start: int, end: int, limit: int, line_ends: memoryview, inner: list[int]) -> None:
    """Append the bounds of chunks inside a file."""
    while end - start > limit:
        place = bisect_right(line_ends, start + limit) - 1
        line_end = line_ends[place] if place >= 0 else 0
        start = line_end if line_end > start else start + limit
        inner.append(start)


def byte_offsets(
    marks_N: NDArray[np.uint16], bounds: INT64_ARRAY, chunks_F: INT64_ARRAY, texts: Sequence[str], merges_space_mark: bool
) -> INT64_ARRAY:
    """First and last offset of each chunk [C, 2] in the UTF-8 bytes of its file; exact except where a bound splits a character.

    `bounds` and `chunks_F` are what `chunk_files` returns for files of these `texts` [F]; `merges_space_mark` is described in
    `VocabularyTable`.
    """
    if not len(bounds) - 1:
        return np.zeros((0, 2), dtype=np.int64)
    sizes_C = np.add.reduceat(marks_N >> 1, bounds[:-1], dtype=np.int64)
    ends_C = np.cumsum(sizes_C)
    firsts_F = np.cumsum(chunks_F) - chunks_F
    has_chunks = chunks_F > 0
    before_F = (ends_C - sizes_C)[firsts_F[has_chunks]]
    ends_C = ends_C - np.repeat(before_F, chunks_F[has_chunks])
    offsets_C2 = np.stack((ends_C - sizes_C, ends_C), axis=1)
    if merges_space_mark:
        for file, text in enumerate(texts):
            if SPACE_MARK in text:
                own = slice(int(firsts_F[file]), int(firsts_F[file] + chunks_F[file]))
                offsets_C2[own] = _with_space_marks(offsets_C2[own], text)
    return offsets_C2


def _with_space_marks(offsets: INT64_ARRAY, text: str) -> INT64_ARRAY:
    """Correct offsets that count each U+2581 of the text as one byte."""
    marks = np.array([match.start() for match in re.finditer(SPACE_MARK.encode(), text.encode())], dtype=np.int64)
    marks -= _SPACE_MARK_EXCESS * np.arange(len(marks))
    return offsets + _SPACE_MARK_EXCESS * np.searchsorted(marks, offsets, side="left")

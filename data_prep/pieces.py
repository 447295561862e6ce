"""Token arrays cut into pieces at line ends, and the bytes that each piece stands for; no text is encoded twice.

Letters: N tokens of a file, P pieces of a file, V vocabulary.
"""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mose.packed_sequence import TOKENS
from mose.tokenizer import SentencePieceTokenizer, Tokenizer

INT64_ARRAY = NDArray[np.int64]
# sentencepiece writes a space as U+2581, and gives a text's own U+2581 the same token: 3 bytes that look like 1.
SPACE_MARK = "\u2581"
_SPACE_MARK_EXCESS = len(SPACE_MARK.encode()) - 1
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
# GPT-2's byte-level alphabet has one character for each byte; these are newline, space and tab in it.
_BYTE_LEVEL_BLANKS = str.maketrans({"\u010a": "\n", "\u0120": " ", "\u0109": "\t"})


@dataclass(frozen=True)
class VocabularyTable:
    """What cutting needs to know of each token id."""

    ends_line_V: NDArray[np.bool_]
    """The token's text holds a newline with nothing but blanks after it: a good place to cut."""
    num_bytes_V: INT64_ARRAY
    """UTF-8 bytes of the token's text; 0 for special tokens."""
    merges_space_mark: bool
    """A text's own U+2581 gets the token of a space (sentencepiece)."""


def vocabulary_table(tokenizer: Tokenizer) -> VocabularyTable:
    """Read every piece of the vocabulary once."""
    is_sentencepiece = isinstance(tokenizer, SentencePieceTokenizer)
    read = _sentencepiece_text if is_sentencepiece else _byte_level_text
    special = set(tokenizer.special.ids())
    texts = [("", 0) if i in special else read(tokenizer.piece(i)) for i in range(tokenizer.vocabulary_size)]
    ends_line = [text.rstrip(" \t").endswith("\n") for text, _ in texts]
    return VocabularyTable(np.array(ends_line), np.array([size for _, size in texts], dtype=np.int64), is_sentencepiece)


def _sentencepiece_text(piece: str) -> tuple[str, int]:
    byte = _BYTE_PIECE.fullmatch(piece)
    if byte:
        return chr(int(byte.group(1), 16)), 1
    text = piece.replace(SPACE_MARK, " ")
    return text, len(text.encode())


def _byte_level_text(piece: str) -> tuple[str, int]:
    return piece.translate(_BYTE_LEVEL_BLANKS), len(piece)


def cut(tokens_N: TOKENS, limit: int, table: VocabularyTable) -> INT64_ARRAY:
    """Bounds [P + 1] of pieces of at most `limit` tokens: piece p is tokens[bounds[p] : bounds[p + 1]].

    Each piece ends at the last line end that it can reach; inside a longer line it ends at the limit.
    """
    line_ends = np.flatnonzero(table.ends_line_V[tokens_N]) + 1
    bounds = [0]
    while len(tokens_N) - bounds[-1] > limit:
        reach = bounds[-1] + limit
        place = int(np.searchsorted(line_ends, reach, side="right")) - 1
        end = int(line_ends[place]) if place >= 0 else 0
        bounds.append(end if end > bounds[-1] else reach)
    if len(tokens_N):
        bounds.append(len(tokens_N))
    return np.array(bounds, dtype=np.int64)


def byte_offsets(tokens_N: TOKENS, bounds: INT64_ARRAY, text: str, table: VocabularyTable) -> INT64_ARRAY:
    """Offset in the UTF-8 bytes of `text` of each bound, [P + 1]; exact, except inside a character that is cut in two."""
    ends = np.concatenate(([0], np.cumsum(table.num_bytes_V[tokens_N])))
    offsets: INT64_ARRAY = ends[bounds]
    if table.merges_space_mark and SPACE_MARK in text:
        marks = np.array([match.start() for match in re.finditer(SPACE_MARK.encode(), text.encode())], dtype=np.int64)
        marks -= _SPACE_MARK_EXCESS * np.arange(len(marks))
        offsets = offsets + _SPACE_MARK_EXCESS * np.searchsorted(marks, offsets, side="left")
    return offsets

"""The packed sequence of the paper's Figure 2: `<sep> s1 <sep> s2 ... <cls>`, left-padded to a fixed length.

Letters: T slots of a row, N real tokens, R rows, S snippets of all rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mose.errors import MoseError

TOKENS = NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class SpecialTokens:
    """The special-token ids of a packed row; the same five names for every tokenizer."""

    pad: int
    unk: int
    sep: int
    cls: int
    mask: int

    def ids(self) -> tuple[int, ...]:
        """All five, in the order pad, unk, sep, cls, mask."""
        return (self.pad, self.unk, self.sep, self.cls, self.mask)


def token_dtype(vocabulary_size: int) -> np.dtype[np.unsignedinteger]:
    """The narrower of uint16 and uint32 that holds every id of the vocabulary.

    Raises:
        MoseError: the vocabulary is too large for both.
    """
    if vocabulary_size > 1 << 32:
        raise MoseError(
            f"vocabulary_size: {vocabulary_size} ids do not fit the widest token type, uint32 (expected at most {1 << 32})"
        )
    return np.dtype(np.uint16) if vocabulary_size <= 1 << 16 else np.dtype(np.uint32)


def packed_length(snippet_lengths: Sequence[int]) -> int:
    """Tokens of a row made of these snippets: one `<sep>` before each, one `<cls>` at the end."""
    return sum(snippet_lengths) + len(snippet_lengths) + 1


def assemble(
    snippets: Sequence[TOKENS], special: SpecialTokens, sequence_length: int, dtype: np.dtype[np.unsignedinteger]
) -> TOKENS:
    """Build one row [T] from snippets of token ids (no special token inside).

    Raises:
        MoseError: the snippets do not fit; the packer must have left room.
    """
    num_tokens = packed_length([len(snippet) for snippet in snippets])
    if num_tokens > sequence_length:
        raise MoseError(f"packed sequence: {num_tokens} tokens, at most {sequence_length} fit in a row")
    row = np.full(sequence_length, special.pad, dtype=dtype)
    at = sequence_length - num_tokens
    for snippet in snippets:
        row[at] = special.sep
        row[at + 1 : at + 1 + len(snippet)] = snippet
        at += 1 + len(snippet)
    row[at] = special.cls
    return row


def assemble_rows(
    tokens_N: TOKENS,
    starts_S: NDArray[np.int64],
    lengths_S: NDArray[np.int64],
    snippets_R: NDArray[np.int64],
    special: SpecialTokens,
    sequence_length: int,
) -> TOKENS:
    """Build rows [R, T] as `assemble` does, each of one snippet or more; snippet s is `tokens_N[starts_S[s] :][: lengths_S[s]]`.

    Raises:
        MoseError: the snippets of a row do not fit; the packer must have left room.
    """
    rows_RT = np.full((len(snippets_R), sequence_length), special.pad, dtype=tokens_N.dtype)
    if not len(snippets_R):
        return rows_RT
    firsts_R = np.cumsum(snippets_R) - snippets_R
    num_tokens_R = np.add.reduceat(lengths_S + 1, firsts_R) + 1
    if num_tokens_R.max() > sequence_length:
        raise MoseError(f"packed sequence: {num_tokens_R.max()} tokens, at most {sequence_length} fit in a row")
    ends_S = np.cumsum(lengths_S + 1)
    row_starts_R = np.arange(1, len(snippets_R) + 1) * sequence_length - num_tokens_R
    separators_S = ends_S - lengths_S - 1 + np.repeat(row_starts_R - ends_S[firsts_R] + lengths_S[firsts_R] + 1, snippets_R)
    flat = rows_RT.reshape(-1)
    flat[separators_S] = special.sep
    # Copying slice by slice beats any indexing by token.
    for at, start, length in zip((separators_S + 1).tolist(), starts_S.tolist(), lengths_S.tolist(), strict=True):
        flat[at : at + length] = tokens_N[start : start + length]
    rows_RT[:, -1] = special.cls
    return rows_RT


def snippet_bounds(row: TOKENS, num_tokens: int, special: SpecialTokens) -> list[tuple[int, int]]:
    """Slots [start, end) of each snippet's own tokens in a row [T]; `<sep>` and `<cls>` are outside."""
    first = len(row) - num_tokens
    separators = first + np.flatnonzero(row[first:] == special.sep)
    ends = [*separators[1:], len(row) - 1]
    return [(int(start) + 1, int(end)) for start, end in zip(separators, ends, strict=True)]


def check_row(row: TOKENS, num_tokens: int, num_snippets: int, special: SpecialTokens) -> str | None:
    """What is wrong with a stored row [T], or None: padding left, `<sep>` first, `<cls>` last, as many snippets as said."""
    if num_tokens == 0:
        return None if (row == special.pad).all() else "an emptied row holds tokens"
    if not 3 <= num_tokens <= len(row):
        return f"num_tokens is {num_tokens}, expected 3..{len(row)}"
    first = len(row) - num_tokens
    if (row[:first] != special.pad).any():
        return f"slots before {first} are not all <pad>"
    if row[first] != special.sep:
        return f"slot {first} is {row[first]}, expected <sep>"
    if row[-1] != special.cls:
        return f"last slot is {row[-1]}, expected <cls>"
    found = int((row[first:] == special.sep).sum())
    return None if found == num_snippets else f"{found} snippets, num_snippets says {num_snippets}"

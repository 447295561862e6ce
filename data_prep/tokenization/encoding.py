"""Encodes texts in bulk: with gigatoken where its output equals that of sentencepiece, else with the tokenizer itself.

Letters: N tokens, F texts.
"""

import itertools
import logging
from collections.abc import Sequence

import gigatoken
import numpy as np
from numpy.typing import NDArray

from mose.array_types import INT64_ARRAY
from mose.dataset.packed_sequence import TOKENS
from mose.tokenizer import SENTENCEPIECE_SPECIALS, SentencePieceTokenizer, Tokenizer

LOGGER = logging.getLogger(__name__)
# gigatoken encodes "<sep>" in a text as the special token (seen in 0.10.0), sentencepiece as text. gigatoken therefore gets the
# model with other spellings, made of a noncharacter of Unicode. A text that still gets a special id is encoded again with
# sentencepiece. The check at the start covers both.
_UNUSED_CHARACTER = "\U0010ffff".encode()
SAMPLE = (
    "",
    " ",
    "\n",
    "def add(a, b):\n    return a + b  # 1234567890\n",
    "\tif (x != NULL) {\r\n\t\tfree(x);\r\n\t}\r\n",
    "  two spaces  between   words\t\ttabs \n\n\n\n trailing  ",
    " " * 300 + "x" + "=" * 300 + "\n" * 300,
    "naïve café e\u0301 \u3000 Привет 漢字 ひらがな \U0001f389\U0001f468\u200d\U0001f469 \ufeff \u2028",
    "\x00\x01\x7f\x1b[0m \u2581 \ufffd",
    "a <sep> b <cls><mask> [MASK] <pad><unk> <s></s> <|endoftext|> <0x0A>",
    '{"key": [0.125, -3e10, null], "url": "https://example.org/a?b=c&d=%20"}',
)


class Encoder:
    """Encodes texts with one tokenizer; text that spells a special token stays text."""

    def __init__(self, tokenizer: Tokenizer):
        """Choose the back end: `backend` is `gigatoken`, `sentencepiece` or `tokenizers`.

        gigatoken is used if it encodes a built-in sample exactly as sentencepiece does; otherwise one log line says why not.
        """
        self.tokenizer = tokenizer
        self.backend = "tokenizers"
        self._fast: gigatoken.Tokenizer | None = None
        if isinstance(tokenizer, SentencePieceTokenizer):
            self._fast = _checked_gigatoken(tokenizer)
            self.backend = "gigatoken" if self._fast else "sentencepiece"

    def encode_batch(self, texts: Sequence[str]) -> list[TOKENS]:
        """Token ids of each text, without special tokens."""
        tokens_N, bounds = self.encode_flat(texts)
        return [tokens_N[start:end] for start, end in itertools.pairwise(bounds.tolist())]

    def encode_flat(self, texts: Sequence[str]) -> tuple[TOKENS, INT64_ARRAY]:
        """Token ids of all texts, concatenated [N], and the bounds of the texts in them [F + 1]."""
        if self._fast is None:
            return _joined(self.tokenizer.encode_batch(texts), self.tokenizer.dtype)
        return _encode(self._fast, self.tokenizer, texts)


def _encode(fast: gigatoken.Tokenizer, tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[TOKENS, INT64_ARRAY]:
    # gigatoken 0.10.0 encodes bytes a tenth faster than strings (docs/decisions.md).
    layout = fast.encode_batch([text.encode() for text in texts], parallel=False).layout if texts else None
    if layout is None:
        return _joined([], tokenizer.dtype)
    bounds = np.asarray(layout.offsets.data).astype(np.int64)
    ids = np.asarray(layout.content.data)
    wrong = _texts_with_special_ids(ids, bounds, tokenizer)
    tokens_N = ids.astype(tokenizer.dtype)
    if not len(wrong):
        return tokens_N, bounds
    parts = [tokens_N[start:end] for start, end in itertools.pairwise(bounds.tolist())]
    for text in wrong.tolist():
        parts[text] = tokenizer.encode(texts[text])
    return _joined(parts, tokenizer.dtype)


def _texts_with_special_ids(ids: NDArray[np.integer], bounds: INT64_ARRAY, tokenizer: Tokenizer) -> INT64_ARRAY:
    """The texts that got a special id, which no text should have."""
    special = tokenizer.special.ids()
    # Special ids are the first of a vocabulary: one comparison per token leaves few candidates for the slower `isin`.
    places = np.flatnonzero(ids <= max(special))
    places = places[np.isin(ids[places], special)]
    return np.unique(np.searchsorted(bounds, places, side="right") - 1)


def _joined(parts: Sequence[TOKENS], dtype: np.dtype[np.unsignedinteger]) -> tuple[TOKENS, INT64_ARRAY]:
    bounds = np.array([0, *itertools.accumulate(len(part) for part in parts)], dtype=np.int64)
    return np.concatenate([np.zeros(0, dtype=dtype), *parts]), bounds


def _checked_gigatoken(tokenizer: SentencePieceTokenizer) -> gigatoken.Tokenizer | None:
    try:
        fast = gigatoken.Tokenizer.from_sentencepiece(_with_hidden_specials(tokenizer.path.read_bytes()))
        differs = _first_difference(fast, tokenizer)
    except Exception as error:  # gigatoken raises ValueError, RuntimeError or a Rust panic for a model it cannot read
        differs = f"{type(error).__name__}: {error}"
    if differs is None:
        return fast
    LOGGER.warning(
        "encoding with sentencepiece, several times slower: gigatoken does not agree on %s: %s", tokenizer.path, differs
    )
    return None


def _with_hidden_specials(model: bytes) -> bytes:
    """Respell the special pieces of a serialized sentencepiece model with as many bytes that no text contains."""
    for number, spelling in enumerate(SENTENCEPIECE_SPECIALS.values()):
        piece = spelling.encode()
        hidden = _UNUSED_CHARACTER + b"%d" % number
        # Protobuf: a piece is field 1 of its message, so tag 10 and its length come before it; the first match is the piece.
        model = model.replace(b"\n%c" % len(piece) + piece, b"\n%c" % len(piece) + hidden.ljust(len(piece), b"_"), 1)
    return model


def _first_difference(fast: gigatoken.Tokenizer, tokenizer: Tokenizer) -> str | None:
    tokens_N, bounds = _encode(fast, tokenizer, SAMPLE)
    for number, (text, expected) in enumerate(zip(SAMPLE, tokenizer.encode_batch(SAMPLE), strict=True)):
        if not np.array_equal(tokens_N[bounds[number] : bounds[number + 1]], expected):
            return f"{text!r:.40}"
    return None

"""Texts to token ids in bulk: gigatoken where it gives what sentencepiece gives, else the tokenizer itself."""

import logging
from collections.abc import Callable, Sequence

import gigatoken
import numpy as np

from mose.packed_sequence import TOKENS
from mose.tokenizer import SENTENCEPIECE_SPECIALS, SentencePieceTokenizer, Tokenizer

LOGGER = logging.getLogger(__name__)
# gigatoken reads "<sep>" in a text as the special token (seen in 0.10.0); sentencepiece reads it as text. Texts that hold
# such a spelling therefore never go through gigatoken.
SPELLINGS = tuple(SENTENCEPIECE_SPECIALS.values())
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
    """Encodes texts with one tokenizer; a text that spells a special token is encoded as text."""

    def __init__(self, tokenizer: Tokenizer):
        """Choose the back end: `backend` is `gigatoken`, `sentencepiece` or `tokenizers`.

        gigatoken is taken when it encodes a built-in sample exactly as sentencepiece does; otherwise one log line says why not.
        """
        self.tokenizer = tokenizer
        self.backend = "tokenizers"
        self._fast: gigatoken.Tokenizer | None = None
        if isinstance(tokenizer, SentencePieceTokenizer):
            self._fast = _checked_gigatoken(tokenizer)
            self.backend = "gigatoken" if self._fast else "sentencepiece"

    def encode_batch(self, texts: Sequence[str]) -> list[TOKENS]:
        """Token ids of each text, without special tokens."""
        if self._fast is None:
            return self.tokenizer.encode_batch(texts)
        return _encode(self._fast, self.tokenizer, texts)


def _encode(fast: gigatoken.Tokenizer, tokenizer: Tokenizer, texts: Sequence[str]) -> list[TOKENS]:
    plain = [not any(spelling in text for spelling in SPELLINGS) for text in texts]
    quick = iter(_gigatoken_batch(fast, [text for text, is_plain in zip(texts, plain, strict=True) if is_plain], tokenizer.dtype))
    return [next(quick) if is_plain else tokenizer.encode(text) for text, is_plain in zip(texts, plain, strict=True)]


def _gigatoken_batch(fast: gigatoken.Tokenizer, texts: list[str], dtype: np.dtype[np.unsignedinteger]) -> list[TOKENS]:
    if not texts:
        return []
    layout = fast.encode_batch(texts, parallel=False).layout
    offsets = np.asarray(layout.offsets.data)
    ids = np.asarray(layout.content.data).astype(dtype)
    return [ids[offsets[i] : offsets[i + 1]] for i in range(len(texts))]


def _checked_gigatoken(tokenizer: SentencePieceTokenizer) -> gigatoken.Tokenizer | None:
    try:
        fast = gigatoken.Tokenizer.from_sentencepiece(str(tokenizer.path))
        differs = _first_difference(lambda texts: _encode(fast, tokenizer, texts), tokenizer)
    except Exception as error:  # gigatoken raises ValueError, RuntimeError or a panic's own class for a model it cannot read
        differs = f"{type(error).__name__}: {error}"
    if differs is None:
        return fast
    LOGGER.warning(
        "encoding with sentencepiece, several times slower: gigatoken does not agree on %s: %s", tokenizer.path, differs
    )
    return None


def _first_difference(encode_batch: Callable[[Sequence[str]], list[TOKENS]], tokenizer: Tokenizer) -> str | None:
    for text, ids, expected in zip(SAMPLE, encode_batch(SAMPLE), tokenizer.encode_batch(SAMPLE), strict=True):
        if not np.array_equal(ids, expected):
            return f"{text!r:.40}"
    return None

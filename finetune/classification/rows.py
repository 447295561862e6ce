"""The input of a classifier: `<sep>a<cls>` or `<sep>a<sep>b<cls>`; long texts share the row and `<cls>` always stays."""

from collections.abc import Sequence

from mose.dataset.packed_sequence import TOKENS, assemble, packed_length
from mose.errors import MoseError
from mose.tokenizer import Tokenizer


def share_room(lengths: Sequence[int], room: int) -> list[int]:
    """How many tokens of each text are kept where all together may have `room`: no text is cut below an equal share.

    A text shorter than its share leaves the rest to the others. Cutting at the end of the row instead would take every token
    from the last text, and a pair of one text cannot be compared.
    """
    kept, left = [0] * len(lengths), room
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    for done, index in enumerate(order):
        kept[index] = min(lengths[index], left // (len(lengths) - done))
        left -= kept[index]
    return kept


def encode_rows(tokenizer: Tokenizer, rows: Sequence[Sequence[str]], max_length: int) -> list[TOKENS]:
    """Token ids [T] of each row of texts, T <= max_length; the beginning of each text is kept.

    Raises:
        MoseError: `max_length` leaves no room for a single token of each text.
    """
    texts = list(dict.fromkeys(text for row in rows for text in row))
    tokens = dict(zip(texts, tokenizer.encode_batch(texts), strict=True))
    return [_enclose(tokenizer, [tokens[text] for text in row], max_length) for row in rows]


def _enclose(tokenizer: Tokenizer, texts: Sequence[TOKENS], max_length: int) -> TOKENS:
    special_tokens = packed_length([0] * len(texts))
    room = max_length - special_tokens
    if room < len(texts):
        raise MoseError(f"max_length: {max_length}, expected {special_tokens + len(texts)} or more for {len(texts)} texts")
    kept = [text[:length] for text, length in zip(texts, share_room([len(text) for text in texts], room), strict=True)]
    return assemble(kept, tokenizer.special, packed_length([len(text) for text in kept]), tokenizer.dtype)

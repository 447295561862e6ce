"""A tokenizer.json with the special tokens of StarCoder2's, small enough for tests."""

from pathlib import Path

import tokenizers
from tokenizers import models, pre_tokenizers

SPECIALS = ("<|endoftext|>", "<sep>", "<cls>", "<mask>")


def make_byte_tokenizer(folder: Path, specials: tuple[str, ...] = SPECIALS) -> None:
    """Write `folder/tokenizer.json`: 256 bytes and the special tokens, the first of which has id 0. Removes a tokenizer.model."""
    pieces = [specials[0], *sorted(pre_tokenizers.ByteLevel.alphabet()), *specials[1:]]
    made = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in specials])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer.model").unlink(missing_ok=True)

"""A sentencepiece model as a `tokenizer.json`, so that `AutoTokenizer` and sentence-transformers open a converted checkpoint.

Written only where it gives the same ids on a sample; the sentencepiece model stays beside it and is what this project reads.
"""

import json
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from mose.errors import MoseError
from mose.files.atomic_file import write_json, write_text
from mose.files.json_file import parse_json
from mose.tokenizer import (
    HUGGING_FACE_NAME,
    HUGGING_FACE_SPECIALS,
    SENTENCEPIECE_NAME,
    SENTENCEPIECE_SPECIALS,
)

SPACE = "\u2581"
# What code holds: indentation, digits, operators, other alphabets, control characters, characters outside the vocabulary.
SAMPLE = (
    "def f(x: int, *, y=0x1F) -> str:\n\treturn f'{x!r:>10}' + \"\\n\" * 3  # na\u00efve\n",
    "for (int i = 0; i < 1_000; ++i) { a[i] <<= 2; }\r\n\r\n",
    "  \n    \n\n\ttrailing   \u3000 wide \u00a0 spaces  ",
    "\u6f22\u5b57 \u0441\u043b\u043e\u0432\u043e \U0001f600 e\u0301 \x00\x07\ufeff",
    "1234567890 3.14159e-10 " + "=" * 70 + " aaaaaaaaaaaaaaaaaaaaaaaa",
    "",
)


def write_fast_tokenizer(folder: Path, max_length: int, framed: bool = True) -> bool:
    """Write `tokenizer.json` and `tokenizer_config.json` beside the `tokenizer.model` in `folder`, if they agree on the sample.

    A text becomes `<sep>` text `<cls>` (unless not `framed`), padded on the left; truncation keeps `<cls>`. Returns whether
    they were written.

    Raises:
        MoseError: `folder` holds no sentencepiece model.
    """
    processor = _load(folder / SENTENCEPIECE_NAME)
    fast = convert(processor)
    if any(fast.encode(text, add_special_tokens=False).ids != processor.EncodeAsIds(text) for text in SAMPLE):
        return False
    write_text(folder / HUGGING_FACE_NAME, fast.to_str(pretty=False))
    frame_fast_tokenizer(folder, max_length, SENTENCEPIECE_SPECIALS, framed)
    return True


def frame_fast_tokenizer(
    folder: Path, max_length: int, specials: dict[str, str] = HUGGING_FACE_SPECIALS, framed: bool = True
) -> None:
    """Let the `tokenizer.json` in `folder` put `<sep>` before a text and `<cls>` behind it, and write `tokenizer_config.json`.

    Not `framed`: callers write both themselves, as the released model's do. Ids without special tokens, and so the
    tokenizer's fingerprint, stay as they were.

    `mose.tokenizer` has checked that it is a tokenizer with these special tokens.
    """
    path = folder / HUGGING_FACE_NAME
    values = parse_json(path.read_bytes())
    fast = tokenizers.Tokenizer.from_str(path.read_text("utf-8"))
    fast.post_processor = _frame(fast)
    values["post_processor"] = json.loads(fast.to_str())["post_processor"] if framed else None
    write_text(path, json.dumps(values, ensure_ascii=False))
    names: dict[str, Any] = {f"{name}_token": piece for name, piece in specials.items()}
    names |= {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left", "model_max_length": max_length}
    # A row has no segments, and the model refuses inputs that it does not know.
    names["model_input_names"] = ["input_ids", "attention_mask"]
    # Code that spells a special token is text, as in pre-training; without the frame, callers write the special tokens.
    names["split_special_tokens"] = framed
    write_json(folder / "tokenizer_config.json", names)


def _frame(fast: tokenizers.Tokenizer) -> processors.TemplateProcessing:
    """`<sep>` text `<cls>`, or `<sep>` one `<sep>` other `<cls>`; truncation to a length keeps the special tokens."""
    sep, cls = SENTENCEPIECE_SPECIALS["sep"], SENTENCEPIECE_SPECIALS["cls"]
    used = [(piece, fast.token_to_id(piece)) for piece in (sep, cls)]
    return processors.TemplateProcessing(single=f"{sep} $A {cls}", pair=f"{sep} $A {sep} $B {cls}", special_tokens=used)


def _load(path: Path) -> sentencepiece.SentencePieceProcessor:
    if not path.is_file():
        raise MoseError(f"{path}: no such file; expected a sentencepiece model")
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def convert(processor: sentencepiece.SentencePieceProcessor) -> tokenizers.Tokenizer:
    """The same BPE for the `tokenizers` library: a piece's score says when its parts are merged."""
    pieces = [processor.IdToPiece(i) for i in range(processor.GetPieceSize())]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    model = models.BPE(vocabulary, _merges(processor, vocabulary), unk_token=SENTENCEPIECE_SPECIALS["unk"], byte_fallback=True)
    fast = tokenizers.Tokenizer(model)
    fast.normalizer = normalizers.Replace(" ", SPACE)
    fast.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    fast.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in SENTENCEPIECE_SPECIALS.values()])
    return fast


def _merges(processor: sentencepiece.SentencePieceProcessor, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair of pieces whose joining is a piece, best score first, then by the ids of the parts."""
    found: list[tuple[float, int, int, str, str]] = []
    for piece, i in vocabulary.items():
        if processor.IsControl(i) or processor.IsUnknown(i) or processor.IsByte(i):
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-processor.GetScore(i), vocabulary[left], vocabulary[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]

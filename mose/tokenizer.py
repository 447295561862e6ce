"""Text <-> token ids behind one interface, for a sentencepiece model and for a Hugging Face `tokenizer.json`."""

import abc
import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
import tokenizers

from mose.dataset.packed_sequence import TOKENS, SpecialTokens, token_dtype
from mose.errors import MoseError
from mose.files.atomic_file import atomic_write
from mose.files.json_file import parse_json
from mose.files.safe_path import path_inside
from mose.files.storage import is_local

SENTENCEPIECE_NAME = "tokenizer.model"
HUGGING_FACE_NAME = "tokenizer.json"
SENTENCEPIECE_SPECIALS = {"pad": "<pad>", "unk": "<unk>", "sep": "<sep>", "cls": "<cls>", "mask": "<mask>"}
# StarCoder2's file has no padding or unknown token; both are its <|endoftext|>, as in the released model.
HUGGING_FACE_SPECIALS = {"pad": "<|endoftext|>", "unk": "<|endoftext|>", "sep": "<sep>", "cls": "<cls>", "mask": "<mask>"}
# Parts of a tokenizer.json that act on encoded texts only; a converted checkpoint has its own (`fast_tokenizer.py`).
FRAMING = ("post_processor", "padding", "truncation")


class Tokenizer(abc.ABC):
    """A vocabulary with the five special tokens; text that spells a special token is encoded as text."""

    path: Path
    special: SpecialTokens
    vocabulary_size: int

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The type that token ids are stored in."""
        return token_dtype(self.vocabulary_size)

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[TOKENS]:
        """Token ids of each text, without special tokens."""

    def encode(self, text: str) -> TOKENS:
        """Token ids of one text, without special tokens."""
        return self.encode_batch([text])[0]

    @abc.abstractmethod
    def decode(self, ids: Sequence[int] | TOKENS) -> str:
        """The text of these ids; special tokens are left out."""

    @abc.abstractmethod
    def piece(self, token_id: int) -> str:
        """The vocabulary entry of an id, for display."""

    def fingerprint(self) -> str:
        """16 hexadecimal digits of the file's SHA-256; tokenizers of equal fingerprint give equal ids."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]

    def copy_to(self, folder: Path) -> None:
        """Copy the tokenizer's file into a run directory, atomically."""
        with atomic_write(folder / self.path.name) as file:
            file.write(self.path.read_bytes())

    def ordinary_ids(self) -> TOKENS:
        """Every id that is not one of the five special tokens, ascending."""
        return np.setdiff1d(np.arange(self.vocabulary_size), self.special.ids()).astype(self.dtype)


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece `.model` whose control symbols are `<pad> <unk> <sep> <cls> <mask>`."""

    def __init__(self, path: Path):
        """Load `path`.

        Raises:
            MoseError: not a sentencepiece model, or one without the five special tokens.
        """
        self.path = path
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(path.read_bytes())
        except (RuntimeError, OSError) as error:
            raise MoseError(f"{path}: not a sentencepiece model: {error}") from None
        self.vocabulary_size = self._processor.GetPieceSize()
        self.special = SpecialTokens(**{name: self._special_id(piece) for name, piece in SENTENCEPIECE_SPECIALS.items()})

    def _special_id(self, piece: str) -> int:
        token_id = int(self._processor.PieceToId(piece))
        if self._processor.IdToPiece(token_id) != piece:
            raise MoseError(f"{self.path}: has no {piece} token; expected one trained by `mose-data train-tokenizer`")
        return token_id

    def encode_batch(self, texts: Sequence[str]) -> list[TOKENS]:
        return [np.array(self._processor.EncodeAsIds(text), dtype=self.dtype) for text in texts]

    def decode(self, ids: Sequence[int] | TOKENS) -> str:
        special = self.special.ids()
        return str(self._processor.DecodeIds([int(i) for i in ids if int(i) not in special]))

    def piece(self, token_id: int) -> str:
        return str(self._processor.IdToPiece(int(token_id)))


class HuggingFaceTokenizer(Tokenizer):
    """A Hugging Face `tokenizer.json`: StarCoder2's with `<sep> <cls> <mask>` added."""

    def __init__(self, path: Path, vocabulary_size: int | None = None):
        """Load `path`; `vocabulary_size` may count rows that no token uses (49,156 for the published model).

        Raises:
            MoseError: not a tokenizer.json, or one without the special tokens.
        """
        self.path = path
        try:
            content = path.read_bytes()
            # Checked first: the library's own parser has no message for text that is nested 100,000 deep.
            parse_json(content)
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
        except Exception as error:  # tokenizers raises bare Exception
            raise MoseError(f"{path}: not a tokenizer.json: {' '.join(str(error).split())[:200]}") from None
        self._tokenizer.encode_special_tokens = True
        self.special = SpecialTokens(**{name: self._special_id(piece) for name, piece in HUGGING_FACE_SPECIALS.items()})
        self.vocabulary_size = vocabulary_size or self._tokenizer.get_vocab_size(with_added_tokens=True)

    def _special_id(self, piece: str) -> int:
        token_id = self._tokenizer.token_to_id(piece)
        if token_id is None:
            raise MoseError(f"{self.path}: has no {piece} token; expected StarCoder2's tokenizer with <sep>, <cls>, <mask> added")
        return int(token_id)

    def encode_batch(self, texts: Sequence[str]) -> list[TOKENS]:
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(item.ids, dtype=self.dtype) for item in encoded]

    def decode(self, ids: Sequence[int] | TOKENS) -> str:
        return str(self._tokenizer.decode([int(i) for i in ids if int(i) not in self.special.ids()], skip_special_tokens=False))

    def piece(self, token_id: int) -> str:
        return str(self._tokenizer.id_to_token(int(token_id)))

    def fingerprint(self) -> str:
        """As for every tokenizer, but only of the parts that decide a text's ids, without the special tokens put around it."""
        values = parse_json(self.path.read_bytes())
        kept = {name: value for name, value in values.items() if name not in FRAMING}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer from its file, or from a folder that holds `tokenizer.model` or `tokenizer.json`.

    Raises:
        MoseError: there is no tokenizer, or it lacks a special token.
    """
    if path.is_dir():
        names = [name for name in (SENTENCEPIECE_NAME, HUGGING_FACE_NAME) if (path / name).is_file()]
        if not names:
            raise MoseError(f"{path}: holds neither {SENTENCEPIECE_NAME} nor {HUGGING_FACE_NAME}")
        path = path_inside(path, names[0], f"{path}: tokenizer")
    if not path.is_file():
        raise MoseError(f"{path}: no such tokenizer file")
    return HuggingFaceTokenizer(path) if path.suffix == ".json" else SentencePieceTokenizer(path)


TOKENIZER_NAMES = (SENTENCEPIECE_NAME, HUGGING_FACE_NAME)


@contextlib.contextmanager
def opened_tokenizer(path: Path) -> Iterator[Tokenizer]:
    """A tokenizer with its file on this machine while the block runs; one on an object store is copied.

    Raises:
        MoseError: there is no tokenizer, or it lacks a special token.
    """
    if is_local(path):
        yield load_tokenizer(path)
        return
    files = [path / name for name in TOKENIZER_NAMES if (path / name).is_file()] or [path]
    if not files[0].is_file():
        raise MoseError(f"{path}: no such tokenizer file")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / files[0].name
        copy.write_bytes(files[0].read_bytes())
        yield load_tokenizer(copy)

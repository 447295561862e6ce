"""`mose-data train-tokenizer`: a sentencepiece BPE model from a sample of the training repositories."""

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sentencepiece
from jsonargparse import ArgumentParser, Namespace

from data_prep.console import show_progress
from data_prep.filters.config import FiltersConfig
from data_prep.filters.filters import FilterCounts, filter_repository
from data_prep.sources.registry import SourcesConfig, list_repositories, read_repository
from data_prep.sources.repositories import TRAIN, RepositoryRef, split_of
from data_prep.tokenization.encoding import Encoder
from mose.command import Command, add_config, read_config
from mose.config import require, save_config
from mose.errors import MoseError
from mose.files.atomic_file import atomic_write
from mose.files.lock import WRITER_LOCK, lock_file
from mose.seeding import derive_key, generator
from mose.tokenizer import SENTENCEPIECE_NAME, SENTENCEPIECE_SPECIALS, SentencePieceTokenizer

# sentencepiece skips longer training sentences, so a chunk of 4-byte characters must stay below this.
MAX_SENTENCE_BYTES = 16384
# With millions of repositories an equal share would be a few bytes. Reading fewer repositories, with this much each, is faster.
MIN_REPOSITORY_BYTES = 100_000
MEASURED_BYTES = 2_000_000
# sentencepiece writes a space as U+2581 and an unknown character as U+2585. It cannot tell a U+2581 of the text from a space,
# and skips training sentences that contain U+2585.
RESERVED = {0x2581: None, 0x2585: None}
# Measured: lossless on every file. With newlines inside the chunks it compresses best of all trainers tried.
SETTINGS: dict[str, Any] = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "allow_whitespace_only_pieces": True,
    "split_digits": True,
    "max_sentence_length": MAX_SENTENCE_BYTES,
    "bos_id": -1,
    "eos_id": -1,
    "minloglevel": 2,
}


@dataclass(frozen=True)
class TokenizerTrainingConfig:
    """Training data and size of a tokenizer."""

    output: str
    """Folder for tokenizer.model and config.yaml; older files of these names are replaced."""
    sources: SourcesConfig = field(default_factory=SourcesConfig)
    """Where the repositories are."""
    filters: FiltersConfig = field(default_factory=FiltersConfig)
    """Which files are read."""
    vocabulary_size: int = 49_152
    """Pieces, the five special tokens and the 256 bytes included."""
    max_training_bytes: int = 20_000_000
    """UTF-8 bytes of text to train on, spread over the repositories."""
    chunk_characters: int = 2048
    """Texts are split into chunks of at most this many characters; newlines stay inside, so that pieces may contain them."""
    max_run: int = 256
    """Runs of this many or more equal characters are left out of the training text."""
    character_coverage: float = 0.9999
    """Share of the text's characters that get a piece of their own; the rest are written as bytes, so nothing is lost. A
    small vocabulary needs less, e.g. .999: one file of CJK characters can take thousands of pieces."""
    held_out_fraction: float = 0.02
    """Share of repositories to hold out from training; the same value and seed hold out the same repositories as `pack` does."""
    seed: int = 0
    """Chooses the held-out repositories and the sample of text."""
    num_threads: int = 1
    """Training threads. The model file contains this number, so only equal numbers give equal files."""

    def __post_init__(self) -> None:
        require(self.vocabulary_size > 0, f"vocabulary_size: is {self.vocabulary_size}, expected 1 or more")
        require(self.max_training_bytes > 0, f"max_training_bytes: is {self.max_training_bytes}, expected 1 or more")
        require(
            0 < self.chunk_characters <= MAX_SENTENCE_BYTES // 4,
            f"chunk_characters: is {self.chunk_characters}, expected 1 to {MAX_SENTENCE_BYTES // 4}",
        )
        require(0 < self.character_coverage <= 1, f"character_coverage: is {self.character_coverage}, expected a share above 0")
        require(self.max_run > 1, f"max_run: is {self.max_run}, expected 2 or more")
        require(
            0 <= self.held_out_fraction < 1, f"held_out_fraction: is {self.held_out_fraction}, expected 0 or more and below 1"
        )
        require(self.num_threads > 0, f"num_threads: is {self.num_threads}, expected 1 or more")


def train_tokenizer(config: TokenizerTrainingConfig) -> Path:
    """Train, write `OUTPUT/tokenizer.model` and `OUTPUT/config.yaml`, print size and compression; return the model's path.

    The same input and config give the same bytes.

    Raises:
        MoseError: no repositories, no usable text, a vocabulary that this text cannot fill, or another process writes there.
    """
    with lock_file(Path(config.output) / WRITER_LOCK, config.output, "one `mose-data train-tokenizer` per output"):
        return _train_tokenizer(config)


def _train_tokenizer(config: TokenizerTrainingConfig) -> Path:
    refs = list_repositories(config.sources)
    train = [ref for ref in refs if split_of(ref.name, config.seed, config.held_out_fraction) == TRAIN]
    held_out = sorted(set(refs) - set(train))
    chunks = list(sample_chunks(train, config, config.max_training_bytes))
    if not chunks:
        raise MoseError(f"sources: none of the {len(train)} training repositories has usable text; expected source files")
    model = train_model(chunks, config)
    path = Path(config.output) / SENTENCEPIECE_NAME
    with atomic_write(path) as file:
        file.write(model)
    save_config(config, path.with_name("config.yaml"))
    print(f"tokenizer: {path}")
    print(f"vocabulary: {config.vocabulary_size:,} pieces, from {_num_bytes(chunks):,} bytes of {len(train)} repositories")
    _print_compression(path, list(sample_chunks(held_out, config, MEASURED_BYTES)), chunks)
    return path


def sample_chunks(refs: list[RepositoryRef], config: TokenizerTrainingConfig, max_bytes: int) -> Iterator[str]:
    """Chunks of text from repositories in seeded order, at most `max_bytes` UTF-8 bytes.

    Each repository may use an equal share of the remaining budget, so that no large one fills the sample alone.
    """
    order = sorted(refs, key=lambda ref: derive_key(config.seed, "tokenizer-repositories", ref.name))
    remaining = max_bytes
    with show_progress("reading", len(order), "repositories") as advance:
        for done, ref in enumerate(order):
            if remaining <= 0:
                break
            budget = min(remaining, max(remaining // (len(order) - done), MIN_REPOSITORY_BYTES))
            for chunk in _repository_chunks(ref, config, budget):
                remaining -= len(chunk.encode("utf-8"))
                yield chunk
            advance(1)


def training_chunks_of(text: str, chunk_characters: int, max_run: int) -> list[str]:
    """Split one text into chunks, without reserved characters and without runs of `max_run` or more equal characters."""
    text = re.sub(rf"(.)\1{{{max_run - 1},}}", "", text.translate(RESERVED), flags=re.DOTALL)
    return [text[i : i + chunk_characters] for i in range(0, len(text), chunk_characters)]


def train_model(chunks: Iterable[str], config: TokenizerTrainingConfig) -> bytes:
    """The bytes of a sentencepiece model trained on `chunks`.

    Raises:
        MoseError: the vocabulary is too large or too small for the text.
    """
    model = io.BytesIO()
    specials = SENTENCEPIECE_SPECIALS
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(chunks),
            model_writer=model,
            vocab_size=config.vocabulary_size,
            num_threads=config.num_threads,
            pad_id=0,
            pad_piece=specials["pad"],
            unk_id=1,
            unk_piece=specials["unk"],
            control_symbols=[specials["sep"], specials["cls"], specials["mask"]],
            **SETTINGS,
            character_coverage=config.character_coverage,
        )
    except RuntimeError as error:
        raise MoseError(_explained(str(error), config.vocabulary_size)) from None
    return model.getvalue()


def _repository_chunks(ref: RepositoryRef, config: TokenizerTrainingConfig, budget: int) -> Iterator[str]:
    files = filter_repository(read_repository(ref, config.sources), config.filters, FilterCounts())
    chunks = [chunk for file in files for chunk in training_chunks_of(file.text, config.chunk_characters, config.max_run)]
    for i in generator(config.seed, "tokenizer-chunks", ref.name).permutation(len(chunks)):
        size = len(chunks[i].encode("utf-8"))
        if size > budget:
            return
        budget -= size
        yield chunks[i]


def _print_compression(path: Path, held_out: list[str], trained_on: list[str]) -> None:
    encoder = Encoder(SentencePieceTokenizer(path))
    measured = held_out or trained_on
    tokens = sum(len(ids) for ids in encoder.encode_batch(measured))
    where = "held-out repositories" if held_out else "the training text, because no repository is held out"
    print(f"compression: {_num_bytes(measured) / tokens:.2f} bytes per token on {_num_bytes(measured):,} bytes of {where}")


def _num_bytes(chunks: Iterable[str]) -> int:
    return sum(len(chunk.encode("utf-8")) for chunk in chunks)


def _explained(message: str, vocabulary_size: int) -> str:
    """The limit that sentencepiece's message states, in one line."""
    too_high = re.search(r"too high \(\d+\)\. Please set it to a value <= (\d+)", message)
    if too_high:
        limit = int(too_high.group(1))
        return (
            f"vocabulary_size: is {vocabulary_size}, but this text can fill at most {limit}; expected at most that, or more text"
        )
    too_small = re.search(r"smaller than required_chars\. \d+ vs (\d+)", message)
    if too_small:
        least = f"expected at least {too_small.group(1)} for the characters of this text, or a lower character_coverage"
        return f"vocabulary_size: is {vocabulary_size}, {least}"
    return f"vocabulary_size: sentencepiece cannot train {vocabulary_size} pieces: {message.splitlines()[0]}"


def _add_arguments(parser: ArgumentParser) -> None:
    add_config(parser, TokenizerTrainingConfig)


def _run(parsed: Namespace) -> None:
    train_tokenizer(read_config(parsed, TokenizerTrainingConfig))


COMMAND = Command("Train a sentencepiece tokenizer on the training repositories.", _add_arguments, _run)

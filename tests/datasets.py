"""Tiny packed data sets with a real sentencepiece tokenizer, made on the fly for any test that needs rows to read.

Letters: T slots of a row.
"""

import functools
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece

from mose.dataset.manifest import Manifest, ShardEntry, write_manifest
from mose.dataset.packed_sequence import TOKENS, assemble, token_dtype
from mose.dataset.row_index import index_bytes, make_index
from mose.dataset.shard_format import RecordLayout, RowLabels, ShardWriter
from mose.files.atomic_file import atomic_write, file_sha256
from mose.seeding import generator
from mose.tokenizer import SENTENCEPIECE_NAME, SENTENCEPIECE_SPECIALS, Tokenizer, load_tokenizer

BYTE_FALLBACK_PIECES = 256 + len(SENTENCEPIECE_SPECIALS)
REPOSITORIES = 6
DATASET_NAME = "dataset"


@dataclass(frozen=True)
class MadeRow:
    """One row as it is stored: tokens [T] and its labels."""

    tokens_T: TOKENS
    mixed: int
    num_tokens: int
    num_snippets: int


@functools.lru_cache(maxsize=8)
def tokenizer_bytes(vocabulary_size: int) -> bytes:
    """A sentencepiece BPE model of exactly this many pieces, at least 60 of them."""
    rng = np.random.default_rng(7)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz_()=:. "))
    lines = ["".join(rng.choice(letters, size=80)) for _ in range(20 + vocabulary_size // 2)]
    return train_tokenizer(lines, vocabulary_size, byte_fallback=vocabulary_size > BYTE_FALLBACK_PIECES + 2 * len(letters))


def train_tokenizer(lines: Iterable[str], vocabulary_size: int, byte_fallback: bool) -> bytes:
    """A sentencepiece BPE model of these lines with the project's special tokens and lossless settings."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=vocabulary_size,
        model_type="bpe",
        byte_fallback=byte_fallback,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        pad_piece=SENTENCEPIECE_SPECIALS["pad"],
        unk_piece=SENTENCEPIECE_SPECIALS["unk"],
        control_symbols=[SENTENCEPIECE_SPECIALS[name] for name in ("sep", "cls", "mask")],
        minloglevel=2,
        num_threads=1,
    )
    return model.getvalue()


def make_tokenizer(folder: Path, vocabulary_size: int = 320) -> Tokenizer:
    """Write `folder/tokenizer.model` and load it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SENTENCEPIECE_NAME).write_bytes(tokenizer_bytes(vocabulary_size))
    return load_tokenizer(folder)


def made_rows(
    tokenizer: Tokenizer, count: int, sequence_length: int, seed: int, split: str, empty_rows: tuple[int, ...] = ()
) -> Iterator[MadeRow]:
    """Rows that can be learnt from: each repository favours its own tokens, half of the rows alternate two repositories.

    The rows numbered in `empty_rows` are emptied ones: only padding, `num_tokens` 0.
    """
    rng = generator(seed, "test rows", split)
    ordinary = tokenizer.ordinary_ids()
    favourites = [
        np.resize(part, max(2, len(part))) for part in np.array_split(generator(seed).permutation(ordinary), REPOSITORIES)
    ]
    for number in range(count):
        if number in empty_rows:
            empty = np.full(sequence_length, tokenizer.special.pad, tokenizer.dtype)
            yield MadeRow(empty, 0, 0, 0)
            continue
        most = max(2, min(6, sequence_length // 8))
        num_snippets = int(rng.integers(2, most + 1))
        num_tokens = int(rng.integers(max(3, sequence_length // 4, 2 * num_snippets + 1), sequence_length + 1))
        sizes = np.diff(np.linspace(0, num_tokens - num_snippets - 1, num_snippets + 1).astype(int))
        mixed = int(rng.integers(0, 2))
        pair = rng.permutation(REPOSITORIES)[:2]
        snippets = [_snippet(rng, favourites[pair[i % 2 if mixed else 0]], int(size)) for i, size in enumerate(sizes)]
        row = assemble(snippets, tokenizer.special, sequence_length, tokenizer.dtype)
        yield MadeRow(row, mixed, num_tokens, num_snippets)


def _snippet(rng: np.random.Generator, favourites: TOKENS, size: int) -> TOKENS:
    """Tokens of one repository; a few are far more frequent than the rest, as in code."""
    ranks = np.minimum(rng.geometric(0.25, size=size) - 1, len(favourites) - 1)
    chosen: TOKENS = favourites[ranks]
    return chosen


def make_dataset(
    folder: Path,
    rows: int = 64,
    sequence_length: int = 32,
    vocabulary_size: int = 320,
    seed: int = 0,
    *,
    held_out_rows: int = 10,
    rows_per_shard: int = 24,
    empty_rows: tuple[int, ...] = (),
) -> Path:
    """Write a data set of `rows` training rows and `held_out_rows` in shards of `rows_per_shard`; returns its folder.

    `sequence_length` is at least 8. It holds no lineage tables: `mose-data verify` would say so, no reader of rows minds.
    """
    dataset = folder / DATASET_NAME
    tokenizer = make_tokenizer(dataset, vocabulary_size)
    layout = RecordLayout(sequence_length, np.dtype(token_dtype(vocabulary_size)))
    splits = {}
    for split, count in (("train", rows), ("held_out", held_out_rows)):
        made = list(made_rows(tokenizer, count, sequence_length, seed, split, empty_rows if split == "train" else ()))
        parts = [made[start : start + rows_per_shard] for start in range(0, count, rows_per_shard)]
        splits[split] = tuple(_write_shard(dataset, layout, split, number, part) for number, part in enumerate(parts))
    write_manifest(dataset, Manifest(tokenizer.fingerprint(), "0" * 16, vocabulary_size, sequence_length, splits))
    return dataset


def _write_shard(dataset: Path, layout: RecordLayout, split: str, number: int, rows: list[MadeRow]) -> ShardEntry:
    path = dataset / split / f"shard-{number:06d}.tar"
    with atomic_write(path) as file:
        writer = ShardWriter(file, layout, number)
        for row in rows:
            writer.write(row.tokens_T, row.mixed, row.num_tokens, row.num_snippets)
        writer.close()
    index = dataset / split / f"index-{number:06d}.npy"
    labels = RowLabels(*(np.array([getattr(row, name) for row in rows]) for name in ("mixed", "num_tokens", "num_snippets")))
    with atomic_write(index) as file:
        file.write(index_bytes(make_index(np.stack([row.tokens_T for row in rows]), labels)))
    tokens = sum(row.num_tokens for row in rows)
    names = (str(path.relative_to(dataset)), str(index.relative_to(dataset)))
    return ShardEntry(names[0], len(rows), tokens, path.stat().st_size, file_sha256(path), names[1], file_sha256(index), "", "")

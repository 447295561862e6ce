"""Made for the fine-tuning tests: a tiny real tokenizer, a tiny checkpoint, and pairs that a tiny model can learn."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mose.checkpoint.converted_checkpoint import random_like, write_checkpoint
from mose.dataset.pairs import Pair, write_pairs
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.tokenizer import SENTENCEPIECE_NAME, Tokenizer, load_tokenizer
from tests.datasets import train_tokenizer

VERBS = ("read", "write", "parse", "close", "open", "count", "merge", "split", "sort", "hash", "print", "check")
NOUNS = ("file", "table", "token", "model", "shard", "config", "index", "graph", "batch", "layer", "score", "report")


def make_pairs(count: int, split: str = "train", second: bool = False) -> list[Pair]:
    """`count` distinct (description, code) pairs over 144 verb-noun combinations, numbered beyond them."""
    pairs = []
    for number in range(count):
        verb, noun = VERBS[number % 12], NOUNS[number // 12 % 12]
        tail = f"_{number // 144}" if number >= 144 else ""
        code = f"def {verb}_{noun}{tail}({noun}):\n    result = {noun}.{verb}()\n    return result, {noun}, {noun}\n"
        other = f"function {verb}{noun.title()}{tail}({noun}) {{ return {noun}.{verb}() }}\n" if second else ""
        text = f"{verb.title()} the {noun}{tail} and return it."
        pairs.append(Pair(text, code, "Python", other, "JavaScript" if second else "", f"repo{number % 7}", "/a.py", split))
    return pairs


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sentencepiece model of 400 pieces trained on the pairs' own text."""
    folder = tmp_path_factory.mktemp("tokenizer")
    lines = [text for pair in make_pairs(400, second=True) for text in (pair.nl, pair.code_a, pair.code_b)]
    lines += ["Represent this python javascript snippet description for retrieving retrieval supporting snippets of code:"] * 20
    (folder / SENTENCEPIECE_NAME).write_bytes(train_tokenizer(lines, 400, byte_fallback=True))
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_folder)


def tiny_config(dropout: float = 0.0) -> ModularStarEncoderConfig:
    """Four layers of width 32 with exits after 1, 2 and 4; the initial deviation is that of 1,024 scaled to this width."""
    return ModularStarEncoderConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        matryoshka_layers=[1, 2, 4],
        initializer_range=0.1,
        attention_dropout=dropout,
        residual_dropout=dropout,
        embedding_dropout=dropout,
    )


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A converted pre-training checkpoint with random weights; dropout .1."""
    folder = tmp_path_factory.mktemp("pretrained") / "checkpoint"
    write_checkpoint(folder, random_like(tiny_config(dropout=0.1), seed=3), tokenizer_folder, {"made": "for tests"})
    return folder


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 training pairs and 40 held-out ones, text -> code only."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    pairs = make_pairs(100)
    held_out = [Pair(**{**vars(pair), "split": "held_out"}) for pair in pairs[60:]]
    write_pairs(path, [*pairs[:60], *held_out])
    return path


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)

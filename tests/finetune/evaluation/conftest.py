"""Made for the evaluation tests: a retrieval checkpoint, a classifier, and a peer of random weights."""

from pathlib import Path

import pytest

from benchmarks.random_sentence_model import write_random_model
from mose.checkpoint.converted_checkpoint import (
    classification_from_pretrained,
    random_like,
    retrieval_from_pretrained,
    write_checkpoint,
)
from tests.finetune.conftest import tiny_config


@pytest.fixture(scope="session")
def retriever(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A converted retrieval checkpoint of random weights, exits 1, 2 and 4."""
    folder = tmp_path_factory.mktemp("retriever") / "checkpoint"
    write_checkpoint(folder, retrieval_from_pretrained(random_like(tiny_config(), seed=3), seed=4), tokenizer_folder, {})
    return folder


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A converted classification checkpoint of random weights, two classes."""
    folder = tmp_path_factory.mktemp("classifier") / "checkpoint"
    model = classification_from_pretrained(random_like(tiny_config(), seed=3), 2, seed=4)
    write_checkpoint(folder, model, tokenizer_folder, {})
    return folder


@pytest.fixture(scope="session")
def sentence_folder(tmp_path_factory: pytest.TempPathFactory, retriever: Path) -> Path:
    """A sentence-transformers model of random weights."""
    folder = tmp_path_factory.mktemp("peer") / "model"
    write_random_model(folder, retriever / "tokenizer.json")
    return folder

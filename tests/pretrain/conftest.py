"""Data sets that tests of the training stage share; nobody writes to them."""

from pathlib import Path

import pytest

from mose.tokenizer import Tokenizer, load_tokenizer
from tests.datasets import make_dataset


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 training rows of 48 slots in five shards, two of them emptied, and 10 held-out rows."""
    return make_dataset(tmp_path_factory.mktemp("rows"), rows=100, sequence_length=48, seed=1, empty_rows=(3, 50))


@pytest.fixture(scope="session")
def tokenizer(dataset: Path) -> Tokenizer:
    """The tokenizer of `dataset`."""
    return load_tokenizer(dataset)

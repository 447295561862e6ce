"""Data sets that tests of the training stage share; nobody writes to them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mose.config import save_config
from mose.tokenizer import Tokenizer, load_tokenizer
from tests.commands import command_line, run_well
from tests.datasets import make_dataset
from tests.distributed import RankPools
from tests.pretrain.cells import tiny_config


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 training rows of 48 slots in five shards, two of them emptied, and 10 held-out rows."""
    return make_dataset(tmp_path_factory.mktemp("rows"), rows=100, sequence_length=48, seed=1, empty_rows=(3, 50))


@pytest.fixture(scope="session")
def tokenizer(dataset: Path) -> Tokenizer:
    """The tokenizer of `dataset`."""
    return load_tokenizer(dataset)


@pytest.fixture(scope="session")
def finished_run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of one process over 6 steps, with checkpoints after 2, 4 and 6; copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished")
    save_config(tiny_config(dataset, micro_batch_rows=2), folder / "config.yaml")
    words = ["train", "--config", folder / "config.yaml", "--output", folder / "run", "--max_steps", 6]
    run_well(command_line("pretrain", *words, "--intervals.log_every_steps", 1, "--intervals.checkpoint_every_steps", 2))
    return folder / "run"


@pytest.fixture(scope="module")
def pools() -> Iterator[RankPools]:
    """Live ranks for all tests of a file."""
    pools = RankPools()
    yield pools
    pools.close()

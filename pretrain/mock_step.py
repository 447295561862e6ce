"""One real optimiser step on generated rows, without data: shows out-of-memory and layout errors early.

Letters: R rows, T slots.
"""

import time

import numpy as np
from numpy.typing import NDArray

from mose.config import require
from mose.dataset.packed_sequence import TOKENS, SpecialTokens, token_dtype
from mose.dataset.shard_format import RowLabels
from mose.seeding import generator
from pretrain.config.run import PretrainConfig
from pretrain.data.loader import GlobalBatchLoader
from pretrain.parallel.launch import initialize_parallel, leave_parallel
from pretrain.step import StepResult, train_step
from pretrain.train import batch_plan, build_engine

MADE_UP = SpecialTokens(pad=0, unk=1, sep=2, cls=3, mask=4)


class MadeUpRows:
    """Rows of random tokens, all of the model's full length: the most memory that a step can need."""

    def __init__(self, count: int, sequence_length: int, vocabulary_size: int):
        self._count = count
        self._sequence_length = sequence_length
        self._vocabulary_size = vocabulary_size

    def __len__(self) -> int:
        return self._count

    @property
    def sequence_length(self) -> int:
        """Slots T of a row."""
        return self._sequence_length

    def reach(self, start: int, count: int) -> None:
        """Nothing is read ahead."""

    def close(self) -> None:
        """Nothing is held open."""

    def tokens(self, rows_R: NDArray[np.int64]) -> TOKENS:
        """Tokens [R, T] of these rows."""
        shape = (len(rows_R), self._sequence_length)
        tokens_RT = generator("made-up rows").integers(len(MADE_UP.ids()), self._vocabulary_size, shape)
        tokens_RT[:, 0], tokens_RT[:, -1] = MADE_UP.sep, MADE_UP.cls
        return tokens_RT.astype(token_dtype(self._vocabulary_size))

    def labels(self, rows_R: NDArray[np.int64]) -> RowLabels:
        """Labels [R]: every other row is mixed."""
        return RowLabels(rows_R % 2, np.full_like(rows_R, self._sequence_length), np.ones_like(rows_R))


def mock_step(config: PretrainConfig) -> str:
    """Run one step of `config` on generated rows and return a summary (empty but on rank 0); every rank calls it.

    Nothing is read or written.

    Raises:
        MoseError: the config leaves the vocabulary to the data set, or the launched ranks do not fit it.
    """
    require(config.model.vocabulary_size > 0, "model.vocabulary_size: 0 takes the data set's, expected a number for a mock step")
    config = config.resolve(config.model.vocabulary_size)
    context = initialize_parallel(config)
    try:
        engine = build_engine(config, context)
        ordinary = np.arange(len(MADE_UP.ids()), config.model.vocabulary_size).astype(token_dtype(config.model.vocabulary_size))
        plan = batch_plan(config, MADE_UP, ordinary, context.data_rank, context.layout.data_ranks)
        rows = MadeUpRows(config.batch.global_rows, config.model.max_length, config.model.vocabulary_size)
        batches = GlobalBatchLoader(rows, plan).share(0)
        began = time.perf_counter()
        result = train_step(engine, batches, config.schedule.peak_learning_rate, config.seed, 0, context)
        return _sentence(result, time.perf_counter() - began) if context.is_main else ""
    finally:
        leave_parallel()


def _sentence(result: StepResult, seconds: float) -> str:
    numbers = f"loss {result.loss:.3f}, gradient norm {result.gradient_norm:.3f}"
    return f"mock step: {numbers}, {result.counts.real_tokens:,} tokens in {seconds:.1f} s"

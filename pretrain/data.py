"""From rows to a rank's share of a global batch; the only state is how many rows were consumed before it.

Letters: G rows of the global batch, R rows, K micro-batches, B rows of a micro-batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from mose.errors import MoseError
from mose.packed_sequence import TOKENS, SpecialTokens
from mose.shard_format import RowLabels
from pretrain.dealing import deal
from pretrain.masking import MASKED_SHARE, mask_rows
from pretrain.micro_batch import MicroBatch, placeholder, unpadded
from pretrain.mixture import Mixture
from pretrain.order import BLOCK_ROWS, WINDOW_ROWS
from pretrain.packed_rows import Rows

INT64_ARRAY = NDArray[np.int64]

# Reading and masking rows one at a time costs five times as much a row; more than these fall out of a core's cache.
_ROWS_READ_TOGETHER = 32


@dataclass(frozen=True)
class BatchPlan:
    """What a global batch is (seed, size, order, masking) and which part of it this rank computes (ranks, micro-batches)."""

    seed: int
    global_batch_rows: int
    micro_batch_rows: int
    special: SpecialTokens
    ordinary_ids: TOKENS = field(repr=False, compare=False)
    data_rank: int = 0
    data_ranks: int = 1
    masked_share: float = MASKED_SHARE
    block_rows: int = BLOCK_ROWS
    window_rows: int = WINDOW_ROWS

    def __post_init__(self) -> None:
        for name in ("global_batch_rows", "micro_batch_rows", "data_ranks", "block_rows", "window_rows"):
            if getattr(self, name) < 1:
                raise MoseError(f"{name}: {getattr(self, name)}, expected 1 or more")
        if not 0 <= self.data_rank < self.data_ranks:
            raise MoseError(f"data_rank: {self.data_rank}, expected 0..{self.data_ranks - 1}")
        if not 0 < self.masked_share < 1:
            raise MoseError(f"masked_share: {self.masked_share}, expected a number between 0 and 1")
        if self.global_batch_rows % (self.data_ranks * self.micro_batch_rows):
            unit = f"data_ranks {self.data_ranks} x micro_batch_rows {self.micro_batch_rows}"
            raise MoseError(f"global_batch_rows: {self.global_batch_rows}, expected a multiple of {unit}")

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a rank in one step."""
        return self.global_batch_rows // (self.data_ranks * self.micro_batch_rows)


@dataclass(frozen=True)
class GlobalBatchLoader:
    """Gives a data rank its share of any global batch; ranks of one tensor-parallel group share a data rank, hence rows.

    `mixture` says which positions of the run are whose, where `rows` are those of several data sets.
    """

    rows: Rows
    plan: BatchPlan
    mixture: Mixture | None = None

    @cached_property
    def _pin(self) -> bool:
        return torch.cuda.is_available()

    @cached_property
    def _order(self) -> Mixture:
        return Mixture.of_one(len(self.rows)) if self.mixture is None else self.mixture

    def share(self, consumed_rows: int) -> list[MicroBatch]:
        """This rank's `plan.micro_batches` micro-batches of the global batch that begins after `consumed_rows` rows.

        A pure function of `consumed_rows`: the batch is positions consumed_rows .. consumed_rows + global_batch_rows - 1 of
        the order, over the end of an epoch if need be.

        Raises:
            MoseError: a row of it cannot be read, or is damaged.
        """
        plan = self.plan
        self.rows.reach(consumed_rows, plan.global_batch_rows)
        rows_G, epochs_G = self._order.rows_of_run(
            plan.seed, consumed_rows, plan.global_batch_rows, plan.block_rows, plan.window_rows
        )
        labels_G = self.rows.labels(rows_G)
        dealt = deal(labels_G.num_tokens, plan.data_ranks, plan.micro_batch_rows)[plan.data_rank].reshape(-1)
        batches = list(micro_batches(self.rows, rows_G[dealt], epochs_G[dealt], _picked(labels_G, dealt), plan))
        return [batch.pinned() for batch in batches] if self._pin else batches


def validation_batches(rows: Rows, plan: BatchPlan, max_rows: int | None = None) -> Iterator[MicroBatch]:
    """This rank's micro-batches of the first `max_rows` rows (default: all), in row order, masked as in epoch 0 every time.

    Micro-batch j goes to data rank j mod data_ranks. Every rank gets the same number, since ranks meet in collectives: a
    rank that has none left gets the placeholder of `MicroBatch`, which adds nothing to any sum.
    """
    count = len(rows) if max_rows is None else min(max_rows, len(rows))
    starts = range(0, count, plan.micro_batch_rows)
    for turn in range(-(-len(starts) // plan.data_ranks)):
        start = (turn * plan.data_ranks + plan.data_rank) * plan.micro_batch_rows
        chosen = np.arange(start, min(start + plan.micro_batch_rows, count), dtype=np.int64)
        if len(chosen):
            yield from micro_batches(rows, chosen, np.zeros_like(chosen), rows.labels(chosen), plan)
        else:
            yield placeholder(plan.special, 0)


def micro_batches(
    rows: Rows, rows_R: INT64_ARRAY, epochs_R: INT64_ARRAY, labels_R: RowLabels, plan: BatchPlan
) -> Iterator[MicroBatch]:
    """Read, mask and unpad rows [R] as micro-batches of `plan.micro_batch_rows` rows; small ones are read together.

    Emptied rows (`num_tokens` 0) drop out, and the placeholder of `MicroBatch` stands for no row at all.
    """
    together = max(1, _ROWS_READ_TOGETHER // plan.micro_batch_rows) * plan.micro_batch_rows
    for first in range(0, len(rows_R), together):
        some = np.arange(first, min(first + together, len(rows_R)))
        numbers, labels = rows_R[some], _picked(labels_R, some)
        tokens_RT = rows.tokens(numbers)
        masked = mask_rows(
            tokens_RT, labels.num_tokens, numbers, epochs_R[some], plan.seed, plan.special, plan.ordinary_ids, plan.masked_share
        )
        yield from unpadded(tokens_RT, masked, labels, numbers, plan.micro_batch_rows, plan.special)


def _picked(labels: RowLabels, chosen: INT64_ARRAY) -> RowLabels:
    return RowLabels(labels.mixed[chosen], labels.num_tokens[chosen], labels.num_snippets[chosen])

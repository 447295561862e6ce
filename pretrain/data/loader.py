"""From rows to a rank's share of a global batch; the only state is the number of rows consumed before it.

Letters: G rows of the global batch, R rows, K micro-batches, B rows of a micro-batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from mose.array_types import INT64_ARRAY
from mose.dataset.packed_sequence import TOKENS, SpecialTokens
from mose.dataset.shard_format import RowLabels
from mose.errors import MoseError
from pretrain.data.balancing import micro_batches_of_rank
from pretrain.data.masking import MASKED_SHARE, mask_rows
from pretrain.data.micro_batch import MicroBatch, placeholder, unpadded
from pretrain.data.mixture import Mixture
from pretrain.data.order import BLOCK_ROWS, WINDOW_ROWS
from pretrain.data.row_cost import RowCost
from pretrain.data.rows import Rows

# Reading and masking rows one by one takes five times as long per row; more rows than this no longer fit a core's cache.
_ROWS_READ_TOGETHER = 32


@dataclass(frozen=True)
class BatchPlan:
    """What a global batch is (seed, size, order, masking) and which part of it this rank computes (ranks, micro-batches).

    A micro-batch holds `micro_batch_tokens` real tokens at most (0: those of `micro_batch_rows` full rows); with
    `equal_micro_batches` every rank has the same number of them.
    """

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
    micro_batch_tokens: int = 0
    row_cost: RowCost = field(default_factory=RowCost)
    equal_micro_batches: bool = False

    def __post_init__(self) -> None:
        for name in ("global_batch_rows", "micro_batch_rows", "data_ranks", "block_rows", "window_rows"):
            if getattr(self, name) < 1:
                raise MoseError(f"{name}: {getattr(self, name)}, expected 1 or more")
        if not 0 <= self.data_rank < self.data_ranks:
            raise MoseError(f"data_rank: {self.data_rank}, expected 0..{self.data_ranks - 1}")
        if not 0 < self.masked_share < 1:
            raise MoseError(f"masked_share: {self.masked_share}, expected a number between 0 and 1")
        if self.micro_batch_tokens < 0:
            raise MoseError(f"micro_batch_tokens: {self.micro_batch_tokens}, expected 0 or more")


@dataclass(frozen=True)
class GlobalBatchLoader:
    """Gives a data rank its share of any global batch; ranks of one tensor-parallel group share a data rank, hence rows.

    Where `rows` are those of several data sets, `mixture` says which data set each position of the run reads from.
    """

    rows: Rows
    plan: BatchPlan
    mixture: Mixture | None = None

    @cached_property
    def _pin(self) -> bool:
        return torch.cuda.is_available()

    @property
    def _full_rows(self) -> int:
        return self.plan.micro_batch_rows * self.rows.sequence_length

    @cached_property
    def _order(self) -> Mixture:
        return Mixture.of_one(len(self.rows)) if self.mixture is None else self.mixture

    def share(self, consumed_rows: int) -> list[MicroBatch]:
        """This rank's micro-batches, at least one, of the global batch that begins after `consumed_rows` rows.

        A pure function of `consumed_rows`: the batch is positions consumed_rows .. consumed_rows + global_batch_rows - 1 of
        the order, across the end of an epoch where it falls inside.

        Raises:
            MoseError: a row of the batch cannot be read, or is damaged.
        """
        plan = self.plan
        self.rows.reach(consumed_rows, plan.global_batch_rows)
        # Each rank computes the order and the balance of the whole batch: milliseconds, and no rank has to send it to the others.
        rows_G, epochs_G = self._order.rows_of_run(
            plan.seed, consumed_rows, plan.global_batch_rows, plan.block_rows, plan.window_rows
        )
        labels_G = self.rows.labels(rows_G)
        costs_G, budget = plan.row_cost.of(labels_G.num_tokens), plan.micro_batch_tokens or self._full_rows
        shares = micro_batches_of_rank(
            labels_G.num_tokens, costs_G, plan.data_rank, plan.data_ranks, budget, equal_numbers=plan.equal_micro_batches
        )
        chosen, sizes = np.concatenate(shares), [len(share) for share in shares]
        batches = list(micro_batches(self.rows, rows_G[chosen], epochs_G[chosen], _picked(labels_G, chosen), sizes, plan))
        return [batch.pinned() for batch in batches] if self._pin else batches


def validation_batches(rows: Rows, plan: BatchPlan, max_rows: int | None = None) -> Iterator[MicroBatch]:
    """This rank's micro-batches of the first `max_rows` rows (default: all), in row order, masked as in epoch 0 every time.

    Micro-batch j goes to data rank j mod data_ranks. Every rank gets the same number, since each forward pass may hold
    collectives: a rank without rows gets the placeholder of `MicroBatch`, which adds nothing to any sum.
    """
    count = len(rows) if max_rows is None else min(max_rows, len(rows))
    starts = range(0, count, plan.micro_batch_rows)
    for turn in range(-(-len(starts) // plan.data_ranks)):
        start = (turn * plan.data_ranks + plan.data_rank) * plan.micro_batch_rows
        chosen = np.arange(start, min(start + plan.micro_batch_rows, count), dtype=np.int64)
        if len(chosen):
            yield from micro_batches(rows, chosen, np.zeros_like(chosen), rows.labels(chosen), [len(chosen)], plan)
        else:
            yield placeholder(plan.special, 0)


def micro_batches(
    rows: Rows, rows_R: INT64_ARRAY, epochs_R: INT64_ARRAY, labels_R: RowLabels, sizes: Sequence[int], plan: BatchPlan
) -> Iterator[MicroBatch]:
    """Read, mask and unpad rows [R] as micro-batches of `sizes` rows each; small micro-batches are read together.

    Rows that `mose-data remove` emptied (`num_tokens` 0) are left out; a micro-batch without rows is the placeholder.
    """
    first = 0
    for together in _read_together(sizes):
        some = np.arange(first, first + sum(together))
        first += len(some)
        if not len(some):
            yield from (placeholder(plan.special, 0) for _ in together)
            continue
        numbers, labels = rows_R[some], _picked(labels_R, some)
        tokens_RT = rows.tokens(numbers)
        masked = mask_rows(
            tokens_RT, labels.num_tokens, numbers, epochs_R[some], plan.seed, plan.special, plan.ordinary_ids, plan.masked_share
        )
        yield from unpadded(tokens_RT, masked, labels, numbers, together, plan.special)


def _read_together(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Sizes of consecutive micro-batches in groups of at most `_ROWS_READ_TOGETHER` rows; a larger one is a group of its own."""
    group: list[int] = []
    for size in sizes:
        if group and sum(group) + size > _ROWS_READ_TOGETHER:
            yield group
            group = []
        group.append(size)
    yield group


def _picked(labels: RowLabels, chosen: INT64_ARRAY) -> RowLabels:
    return RowLabels(labels.mixed[chosen], labels.num_tokens[chosen], labels.num_snippets[chosen])

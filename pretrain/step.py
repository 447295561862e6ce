"""One optimiser step: knows tensors, not time. Counts first, then divides; sums over ranks, never means.

Letters: E exits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mose.run_directory import exit_scalar
from mose.seeding import derive_key
from pretrain.loss import COLUMNS, Denominators
from pretrain.micro_batch import MicroBatch
from pretrain.parallel.context import ParallelContext


class StepEngine(Protocol):
    """What a step needs of an engine."""

    def __call__(self, batch: MicroBatch, denominators: Denominators) -> tuple[Tensor, Tensor]:
        """Forward: (share of the global loss, sums [E, 4])."""

    def backward(self, share: Tensor, last: bool) -> None:
        """Accumulate gradients; `last` says that the step's update follows."""

    def step(self, learning_rate: float) -> float:
        """Update the weights; the norm."""


@dataclass(frozen=True)
class BatchCounts:
    """What the whole global batch holds."""

    real_tokens: int
    slots: int
    """Slots of the stored rows, padding included."""
    squared_lengths: int
    """Sum over rows of the square of their real tokens: what attention costs."""


@dataclass(frozen=True)
class StepResult:
    """What one global batch gave, the same on every rank; sums [E, 4] on the CPU in the order of `loss.COLUMNS`."""

    loss: float
    sums: Tensor
    denominators: Denominators
    gradient_norm: float
    counts: BatchCounts

    def exit_metrics(self, exit_layers: Sequence[int], prefix: str = "") -> dict[str, float]:
        """Scalars of each exit under the run directory's names, e.g. `loss/exit_04/mlm`."""
        return exit_metrics(self.sums, self.denominators, exit_layers, prefix)


def exit_metrics(sums: Tensor, denominators: Denominators, exit_layers: Sequence[int], prefix: str = "") -> dict[str, float]:
    """Means of each exit from sums [E, 4]: MLM over masked tokens, ICC over rows."""
    masked, rows = max(denominators.masked_tokens, 1), max(denominators.rows, 1)
    values: dict[str, float] = {}
    for layer, row in zip(exit_layers, sums.tolist(), strict=True):
        by_name = dict(zip(COLUMNS, row, strict=True))
        values[prefix + exit_scalar("loss", layer, "mlm")] = by_name["mlm"] / masked
        values[prefix + exit_scalar("loss", layer, "icc")] = by_name["icc"] / rows
        values[prefix + exit_scalar("accuracy", layer, "mlm")] = by_name["mlm_correct"] / masked
        values[prefix + exit_scalar("accuracy", layer, "icc")] = by_name["icc_correct"] / rows
    return values


def count_globally(batches: Sequence[MicroBatch], context: ParallelContext) -> tuple[Denominators, BatchCounts]:
    """Masked tokens and rows of the global batch, and its size: one all-reduce before the first forward."""
    total = torch.tensor([_counts(batch) for batch in batches], dtype=torch.int64, device=context.device).sum(dim=0)
    masked, rows, *counts = context.sum_over_data(total).tolist()
    return Denominators(max(masked, 1), max(rows, 1)), BatchCounts(*counts)


def _counts(batch: MicroBatch) -> list[int]:
    squared = int(torch.diff(batch.cu_seqlens.long()).square().sum()) if batch.num_rows else 0
    return [batch.num_masked, batch.num_rows, batch.num_tokens, batch.padded_slots + batch.num_tokens, squared]


def seed_dropout(seed: int, step: int, micro_batch: int, data_rank: int) -> None:
    """Reseed the default generators from the data rank, never the global one: by that, replicated weights of tensor ranks
    drift apart silently (5e-2 in 3 steps)."""
    torch.manual_seed(derive_key(seed, "dropout", step, micro_batch, data_rank) >> 1)


def train_step(
    engine: StepEngine, batches: Sequence[MicroBatch], learning_rate: float, seed: int, step: int, context: ParallelContext
) -> StepResult:
    """Run this rank's share of one global batch through forward, backward and update; every rank calls it."""
    denominators, counts = count_globally(batches, context)
    totals: list[Tensor] = []
    for number, batch in enumerate(batches):
        seed_dropout(seed, step, number, context.data_rank)
        share, sums = engine(batch.to(context.device), denominators)
        engine.backward(share, last=number == len(batches) - 1)
        totals.append(torch.cat((sums.flatten(), share.detach().double()[None])))
    norm = engine.step(learning_rate)
    summed = context.sum_over_data(torch.stack(totals).sum(dim=0)).cpu()
    sums_E4 = summed[:-1].view(-1, len(COLUMNS))
    return StepResult(float(summed[-1]), sums_E4, denominators, norm, counts)

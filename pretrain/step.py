"""One optimiser step: knows tensors, not time. Counts first, then divides; sums over ranks, never means.

Letters: E exits, C columns of sums.
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
from pretrain.objective import DISTILLATION, MLM, PAPER, ObjectiveConfig
from pretrain.parallel.context import ParallelContext


class StepEngine(Protocol):
    """What a step needs of an engine."""

    def __call__(self, batch: MicroBatch, denominators: Denominators) -> tuple[Tensor, Tensor]:
        """Forward: (share of the global loss, sums [E, C])."""

    def backward(self, share: Tensor) -> None:
        """Accumulate gradients."""

    def step(self, learning_rate: float) -> float | None:
        """Finish a micro-batch; the norm on the last one."""


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
    """What one global batch gave, the same on every rank; sums [E, C] on the CPU in the order of `loss.COLUMNS`."""

    loss: float
    sums: Tensor
    denominators: Denominators
    gradient_norm: float
    counts: BatchCounts

    def exit_metrics(self, exit_layers: Sequence[int], objective: ObjectiveConfig = PAPER) -> dict[str, float]:
        """Scalars of each exit under the run directory's names, e.g. `loss/exit_04/mlm`."""
        return exit_metrics(self.sums, self.denominators, exit_layers, objective)


def exit_metrics(
    sums: Tensor,
    denominators: Denominators,
    exit_layers: Sequence[int],
    objective: ObjectiveConfig = PAPER,
    prefix: str = "",
) -> dict[str, float]:
    """Means of each exit's terms from sums [E, C]: over masked tokens, the task's over rows.

    The deepest exit has no distillation term, hence no such scalar.
    """
    masked, rows = max(denominators.masked_tokens, 1), max(denominators.rows, 1)
    values: dict[str, float] = {}
    for layer, row in zip(exit_layers, sums.tolist(), strict=True):
        by_name = dict(zip(COLUMNS, row, strict=True))
        for name in objective.names:
            if name == DISTILLATION:
                if layer != exit_layers[-1]:
                    values[prefix + exit_scalar("loss", layer, name)] = by_name["distillation"] / masked
                continue
            column, count = ("mlm", masked) if name == MLM else ("task", rows)
            values[prefix + exit_scalar("loss", layer, name)] = by_name[column] / count
            values[prefix + exit_scalar("accuracy", layer, name)] = by_name[f"{column}_correct"] / count
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
    norm: float | None = None
    for number, batch in enumerate(batches):
        seed_dropout(seed, step, number, context.data_rank)
        share, sums = engine(batch.to(context.device), denominators)
        engine.backward(share)
        norm = engine.step(learning_rate)
        totals.append(torch.cat((sums.flatten(), share.detach().double()[None])))
    summed = context.sum_over_data(torch.stack(totals).sum(dim=0)).cpu()
    sums_EC = summed[:-1].view(-1, len(COLUMNS))
    if norm is None:
        raise RuntimeError(
            f"step {step}: {len(batches)} micro-batches did not end an accumulation; the engine expects another number"
        )
    return StepResult(float(summed[-1]), sums_EC, denominators, norm, counts)

"""One optimiser step: global counts, forward and backward passes, update. Losses are sums over ranks divided by global counts.

Letters: E exits, C columns of sums.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mose.run_directory import exit_scalar
from mose.seeding import derive_key
from pretrain.config.objective import PAPER, ObjectiveConfig
from pretrain.data.micro_batch import MicroBatch
from pretrain.model.terms.registry import COLUMNS, terms_of
from pretrain.model.terms.term import Denominators
from pretrain.parallel.context import ParallelContext
from pretrain.parallel.stage import BACKWARD, FORWARD, UPDATE


class StepEngine(Protocol):
    """What a step needs of an engine."""

    def __call__(self, batch: MicroBatch, denominators: Denominators) -> tuple[Tensor, Tensor]:
        """Forward: (share of the global loss, sums [E, C])."""

    def backward(self, share: Tensor, last: bool) -> None:
        """Accumulate gradients; `last` says that the step's update follows."""

    def step(self, learning_rate: float) -> float:
        """Update the weights; the norm, infinite where the update was skipped."""


@dataclass(frozen=True)
class BatchCounts:
    """What the whole global batch holds."""

    real_tokens: int
    slots: int
    """Slots of the stored rows, padding included."""
    squared_lengths: int
    """Sum over rows of the square of their real tokens, to which the cost of attention is proportional."""


@dataclass(frozen=True)
class StepResult:
    """Results of one global batch, the same on every rank; sums [E, C] on the CPU in the order of `terms.registry.COLUMNS`."""

    loss: float
    sums: Tensor
    denominators: Denominators
    gradient_norm: float
    """Before clipping; infinite where the update was skipped."""
    counts: BatchCounts
    own_loss: float = 0.0
    """This data rank's part of the loss: the parts of all add up to `loss`."""

    @property
    def skipped(self) -> bool:
        """Whether the update was left out, on all ranks alike."""
        return not math.isfinite(self.gradient_norm)

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
    """Means of each exit's terms from sums [E, C], each over the unit of its declaration: masked tokens or rows.

    An exit without some term, such as the deepest one where there is distillation, has no scalar of it.
    """
    positive = Denominators(max(denominators.masked_tokens, 1), max(denominators.rows, 1))
    values: dict[str, float] = {}
    for layer, row in zip(exit_layers, sums.tolist(), strict=True):
        by_name = dict(zip(COLUMNS, row, strict=True))
        for term in terms_of(objective):
            if term.follows_deepest and layer == exit_layers[-1]:
                continue
            name, count = term.name(objective), term.denominator(positive)
            values[prefix + exit_scalar("loss", layer, name)] = by_name[term.key] / count
            if term.correct is not None:
                values[prefix + exit_scalar("accuracy", layer, name)] = by_name[term.correct_key] / count
    return values


@dataclass(frozen=True)
class Counted:
    """What the ranks agreed on before the first forward of a step."""

    denominators: Denominators
    counts: BatchCounts
    stop: bool
    """Whether any rank received a stop signal, so that this step does not start."""


def count_globally(batches: Sequence[MicroBatch], context: ParallelContext, wants_stop: bool = False) -> Counted:
    """Masked tokens and rows of the global batch, its size, and whether any rank wants to stop: one all-reduce over all ranks."""
    total = torch.tensor([_counts(batch) for batch in batches], dtype=torch.int64).sum(dim=0)
    wishes = torch.tensor([int(wants_stop)], dtype=torch.int64)
    summed = context.sum_over_ranks(torch.cat((total, wishes)).to(context.device)).tolist()
    # Ranks of a tensor group count the same rows.
    masked, rows, *counts = (count // context.layout.tensor_ranks for count in summed[:-1])
    return Counted(Denominators(max(masked, 1), max(rows, 1)), BatchCounts(*counts), summed[-1] > 0)


def _counts(batch: MicroBatch) -> list[int]:
    slots = batch.padded_slots + batch.num_tokens
    return [batch.num_masked, batch.num_rows, batch.num_tokens, slots, batch.squared_lengths]


def seed_dropout(seed: int, step: int, micro_batch: int, data_rank: int) -> None:
    """Reseed the default generators from the data rank, not the global one, with which replicated weights of tensor
    ranks drift apart silently (5e-2 in 3 steps)."""
    torch.manual_seed(derive_key(seed, "dropout", step, micro_batch, data_rank) >> 1)


@dataclass(frozen=True)
class Guard:
    """Limits and observers of a step: the largest total loss at which weights are updated, and a callback for its stages."""

    loss_limit: float = math.inf
    enter: Callable[[str, int], None] = lambda stage, micro_batches_left: None


UNGUARDED = Guard()


def train_step(
    engine: StepEngine,
    batches: Sequence[MicroBatch],
    learning_rate: float,
    seed: int,
    step: int,
    context: ParallelContext,
    counted: Counted | None = None,
    guard: Guard = UNGUARDED,
) -> StepResult:
    """Run this rank's share of one global batch through forward, backward and update; every rank calls it.

    The loss is summed over data ranks before the last backward. Where it is not finite or above the guard's limit, every
    rank's last share becomes NaN, and the engine skips the update on all ranks alike and clears its gradients.
    `counted` is the result of `count_globally` for these micro-batches; by default it is computed here.
    """
    # Before the forward pass, because each share is divided by the global counts: a mean of per-rank means would weigh ranks
    # with few masked tokens too much.
    counted = counted or count_globally(batches, context)
    totals: list[Tensor] = []
    for number, batch in enumerate(batches):
        seed_dropout(seed, step, number, context.data_rank)
        left = len(batches) - 1 - number
        guard.enter(FORWARD, left)
        share, sums = engine(batch.to(context.device), counted.denominators)
        totals.append(torch.cat((sums.flatten(), share.detach().double()[None])))
        guard.enter(BACKWARD, left)
        if not left:
            own = torch.stack(totals).sum(dim=0)
            summed = context.sum_over_data(own.clone())
            share = share * _one_or_nan(summed[-1], guard.loss_limit)
        engine.backward(share, last=not left)
    guard.enter(UPDATE, 0)
    norm = engine.step(learning_rate)
    loss, sums_EC = summed[-1].item(), summed[:-1].cpu().view(-1, len(COLUMNS))
    return StepResult(loss, sums_EC, counted.denominators, norm, counted.counts, own[-1].item())


def _one_or_nan(loss: Tensor, limit: float) -> Tensor:
    """1 where a loss is finite and not above the limit, else NaN; computed on the device, so that the host does not wait."""
    good = torch.isfinite(loss) & (loss <= limit)
    return torch.where(good, 1.0, math.nan).float()

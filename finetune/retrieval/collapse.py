"""Detects collapse: training stops when the embeddings of an exit have become one point and the loss that of a guess.

Letters: E exits.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from finetune.retrieval.loss import RetrievalLoss
from mose.errors import MoseError

# One point: embeddings as alike as this, at a loss within this share of that of equal candidates.
COLLAPSED_COSINE = 0.99
LOSS_SHARE = 0.01


class CollapseError(MoseError):
    """The embeddings of an exit are one point, and no gradient leads out of it."""


def is_collapsed(cosine: float, loss: float, guess: float) -> bool:
    """Whether an exit with this mean cosine and loss tells no text from another; `guess` is the loss of equal embeddings."""
    return cosine > COLLAPSED_COSINE and loss > (1 - LOSS_SHARE) * guess


@dataclass
class CollapseWatch:
    """Looks at the exits' means every `every` steps after the warm-up; every rank sees the same losses and stops alike."""

    exit_layers: Sequence[int]
    every: int
    warmup_steps: int
    reports: list[RetrievalLoss] = field(default_factory=list)
    collapsed: set[int] = field(default_factory=set)
    """Exits that had collapsed when last looked at."""

    def add(self, step: int, report: RetrievalLoss) -> None:
        """Take in the step that made the model's step count `step`.

        Raises:
            CollapseError: an exit did not distinguish texts over two intervals in a row.
        """
        if step <= self.warmup_steps:
            return
        self.reports.append(report)
        if len(self.reports) == self.every:
            losses_E = torch.stack([report.losses_E for report in self.reports]).mean(dim=0).tolist()
            cosines_E = torch.stack([report.cosines_E for report in self.reports]).mean(dim=0).tolist()
            guess = statistics.fmean(float(report.guess) for report in self.reports)
            self.reports.clear()
            self._look(step, losses_E, cosines_E, guess)

    def _look(self, step: int, losses_E: list[float], cosines_E: list[float], guess: float) -> None:
        now = set()
        for layer, loss, cosine in zip(self.exit_layers, losses_E, cosines_E, strict=True):
            if is_collapsed(cosine, loss, guess):
                now.add(layer)
            if layer in now & self.collapsed:
                raise CollapseError(
                    f"step {step}: exit {layer:02d} has collapsed: mean cosine of its embeddings {cosine:.3f}, loss {loss:.3f} "
                    f"where a guess has {guess:.3f}; look at learning_rate, warmup_steps, head_start and "
                    "head_learning_rate_factor"
                )
        self.collapsed = now

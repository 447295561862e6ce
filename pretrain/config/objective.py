"""What a run minimises: the weights of its exits, the task on whole rows, and a distillation term, off by default."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast, get_args

from mose.config import require
from mose.model.exits import exit_weights

NONE: Final = "none"
SequenceTask = Literal["icc", "nsp", "none"]


@dataclass(frozen=True)
class ObjectiveConfig:
    """total = sum over exits of weight x (MLM + task_weight x task + distillation_weight x distillation).

    Defaults are the paper's.
    """

    exit_weights: tuple[float, ...] | Literal["depth", "uniform"] = "depth"
    """depth: i / L for the exit after layer i of L (paper section 2.2). uniform: the same for each exit, with the same sum as
    depth, so that gradients keep their size. Or one number per exit, shallow to deep."""
    sequence_task: SequenceTask = "icc"
    """Task on whole rows beside masked tokens. icc: does the row mix two repositories (paper section 2.1). nsp: are the two
    segments of a row of two repositories; takes rows packed with `packing.mode: nsp`. none: masked tokens alone."""
    task_weight: float = 1.0
    """Weight of the task on whole rows beside masked tokens; the paper's total is their plain sum (section 2.1)."""
    distillation_weight: float = 0.0
    """Weight of the divergence of each exit's predictions of masked tokens from the deepest exit's; 0 (as in the paper): off."""
    distillation_temperature: float = 1.0
    """Both sides' logits are divided by it, and the divergence is multiplied by its square (Hinton et al. 2015)."""

    def __post_init__(self) -> None:
        weights = self.exit_weights
        if not isinstance(weights, str):
            fine = len(weights) > 0 and all(math.isfinite(weight) and weight >= 0 for weight in weights) and sum(weights) > 0
            require(fine, f"objective.exit_weights: {list(weights)}, expected numbers of 0 or more, not all 0")
        above = "a number above 0"
        for name, least in (("task_weight", above), ("distillation_weight", "0 or more"), ("distillation_temperature", above)):
            value = getattr(self, name)
            fine = math.isfinite(value) and (value > 0 or (value == 0 and least != above))
            require(fine, f"objective.{name}: {value}, expected {least}")

    @property
    def distils(self) -> bool:
        """Whether there is a distillation term."""
        return self.distillation_weight > 0

    def weights_of(self, exit_layers: Sequence[int], num_layers: int) -> tuple[float, ...]:
        """The weight of each exit.

        Raises:
            MoseError: the config gives another number of weights than there are exits.
        """
        if isinstance(self.exit_weights, str):
            return exit_weights(exit_layers, num_layers, self.exit_weights)
        counted = f"objective.exit_weights: {len(self.exit_weights)} numbers, expected one for each of exits {list(exit_layers)}"
        require(len(self.exit_weights) == len(exit_layers), counted)
        return self.exit_weights

    def check_exits(self, exit_layers: Sequence[int], num_layers: int) -> None:
        """Compare with the model's exits.

        Raises:
            MoseError: weights do not fit the exits, or a single exit shall learn from a deeper one.
        """
        self.weights_of(exit_layers, num_layers)
        alone = f"objective.distillation_weight: {self.distillation_weight} with the one exit {list(exit_layers)}, expected 0"
        require(not self.distils or len(exit_layers) > 1, alone)


PAPER = ObjectiveConfig()


def sequence_task(name: str) -> SequenceTask:
    """The task on whole rows that a model's configuration names; `none` where it names another thing."""
    return cast(SequenceTask, name) if name in get_args(SequenceTask) else NONE

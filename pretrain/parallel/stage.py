"""The stages of a step in order, and the mark of a process among them, by which ranks are compared."""

from dataclasses import dataclass
from typing import Any

START, LOAD_ROWS, COUNT = "start", "load rows", "count"
FORWARD, BACKWARD, UPDATE = "forward", "backward", "update"
LOG, VALIDATE, CHECKPOINT = "log", "validate", "checkpoint"
# How a run ended, for readers of the heartbeat; the cluster's script looks for the last one.
FINISHED, STOPPED, DIVERGED = "finished", "stopped", "diverged"
# Forward and backward alternate over micro-batches, so they form one group; in it, fewer micro-batches left is further.
_GROUPS = {START: 0, LOAD_ROWS: 1, COUNT: 2, FORWARD: 3, BACKWARD: 3, UPDATE: 3, LOG: 4, VALIDATE: 5, CHECKPOINT: 6}
_GROUPS |= dict.fromkeys((FINISHED, STOPPED, DIVERGED), 7)
_ORDER = {stage: place for place, stage in enumerate(_GROUPS)}


@dataclass(frozen=True)
class Mark:
    """Where a process is: in `stage` of the step that follows `step` finished steps, with `micro_batches_left` after this one."""

    step: int = 0
    stage: str = START
    micro_batches_left: int = 0

    def moved(self, stage: str, micro_batches_left: int = 0, step: int | None = None) -> "Mark":
        """The mark in another stage, of the same step unless another is given."""
        return Mark(self.step if step is None else step, stage, micro_batches_left)

    @property
    def place(self) -> tuple[int, int, int, int]:
        """A key that orders marks; the rank with the smallest one is behind, whatever the ranks' numbers of micro-batches.

        It counts micro-batches left, not done, since ranks meet in the last one.
        """
        return self.step, _GROUPS[self.stage], -self.micro_batches_left, _ORDER[self.stage]

    def was_left(self, other: "Mark") -> bool:
        """Whether a rank last seen here has moved on since, because another rank is where none gets before all have left.

        All ranks meet in the counts of each step, in its last backward pass, in validation and at the end of a save; between
        these points a rank may run ahead.
        """
        group = _GROUPS[self.stage]
        meeting = {1: (self.step, 2), 0: (self.step, 2), 4: (self.step + 1, 2)}.get(group, (self.step, group))
        return other.place[:2] > meeting

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> "Mark":
        """A mark from the fields that another process published."""
        return cls(int(values["step"]), str(values["stage"]), int(values["micro_batches_left"]))

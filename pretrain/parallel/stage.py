"""The stages of a run, in the order in which a step goes through them, and where a process stands among them."""

from dataclasses import dataclass
from typing import Any

START, LOAD_ROWS, COUNT = "start", "load rows", "count"
FORWARD, BACKWARD, UPDATE = "forward", "backward", "update"
LOG, VALIDATE, CHECKPOINT = "log", "validate", "checkpoint"
# How a run ended, for whoever reads the heartbeat; the cluster's script looks for the last one.
FINISHED, STOPPED, DIVERGED = "finished", "stopped", "diverged"
# Forward and backward take turns, so they stand in one group; inside it, fewer micro-batches left is further.
_GROUPS = {START: 0, LOAD_ROWS: 1, COUNT: 2, FORWARD: 3, BACKWARD: 3, UPDATE: 3, LOG: 4, VALIDATE: 5, CHECKPOINT: 6}
_GROUPS |= dict.fromkeys((FINISHED, STOPPED, DIVERGED), 7)
_ORDER = {stage: place for place, stage in enumerate(_GROUPS)}


@dataclass(frozen=True)
class Mark:
    """Where a process is: in a stage of the step after `step` steps, with so many micro-batches left after this one."""

    step: int = 0
    stage: str = START
    micro_batches_left: int = 0

    def moved(self, stage: str, micro_batches_left: int = 0, step: int | None = None) -> "Mark":
        """The mark in another stage, of the same step unless another is given."""
        return Mark(self.step if step is None else step, stage, micro_batches_left)

    @property
    def place(self) -> tuple[int, int, int, int]:
        """Greater is further: ranks that wait for one another differ by it, whatever their numbers of micro-batches.

        The last micro-batch counts, since ranks meet there; before it, ranks with more micro-batches are not behind for that.
        """
        return self.step, _GROUPS[self.stage], -self.micro_batches_left, _ORDER[self.stage]

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> "Mark":
        """A mark that another process wrote down."""
        return cls(int(values["step"]), str(values["stage"]), int(values["micro_batches_left"]))

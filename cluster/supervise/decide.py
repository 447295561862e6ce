"""What happens after a start has ended: done, again, or not again; a pure function of the history."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.jobs.config import RecoveryConfig
from cluster.supervise.history import (
    BAD_INPUT,
    CANCELLED,
    CHECKED,
    DIVERGED,
    FAILED,
    FINISHED,
    HUNG,
    OWN_FAILURES,
    STOPPED,
    Start,
)
from mose import command


@dataclass(frozen=True)
class Decision:
    """`again`: the job is queued again, without the nodes of `exclude`. Otherwise it ends with `code`."""

    again: bool
    code: int
    message: str
    exclude: tuple[str, ...] = ()


def cause_of(*, finished: bool, hung: bool, stopped: bool, cancelled: bool, diverged: bool, code: int) -> str:
    """How a start ended, from what its supervisor saw; srun's exit code is the weakest evidence of all.

    It was 0 after a node had died and the ranks on another one had finished, and deepspeed's launcher ends with 0 when a signal
    killed its ranks.
    """
    if finished:
        return FINISHED
    if diverged or code == command.DIVERGED:
        return DIVERGED
    if cancelled:
        return CANCELLED
    if hung:
        return HUNG
    if stopped or code == command.STOPPED:
        return STOPPED
    return BAD_INPUT if code == command.BAD_INPUT else FAILED


def decide(run: str, history: Sequence[Start], max_restarts: int, recovery: RecoveryConfig) -> Decision:
    """What follows the last start of `history`."""
    last = history[-1]
    exclude = excluded_nodes(history, recovery.node_failures)
    if last.cause == FINISHED:
        return Decision(False, 0, f"{run} is finished")
    if last.cause == DIVERGED:
        return Decision(False, command.DIVERGED, f"{run} diverged: see skipped.jsonl; it is not started again")
    if last.cause == CANCELLED:
        return Decision(False, 143, f"{run}: the job was cancelled, or SLURM starts it again by itself")
    if last.cause == CHECKED and not last.suspects:
        return Decision(False, 1, f"{run}: {last.note}; it is not started again")
    code, same = last.code or 1, failures_without_a_checkpoint(history)
    again = "started again it would stop again"
    how = f"stopped with code {code}" if last.cause != HUNG else last.note or HUNG
    if last.cause == BAD_INPUT and last.saved_step <= last.first_step:
        return Decision(False, code, f"{how} before a new checkpoint; {again}")
    if last.cause in OWN_FAILURES and same >= recovery.same_step_failures:
        if same == 1:
            return Decision(False, code, f"{how} before a new checkpoint; {again}")
        return Decision(False, code, f"{how}: a crash loop, {same} failures in a row after step {last.saved_step}; {again}")
    if last.restarts >= max_restarts:
        return Decision(False, 1, f"not started again: {last.restarts} restarts, max_restarts is {max_restarts}")
    why = {HUNG: " because it hung", FAILED: f" because it failed with code {code}", CHECKED: " after its preflight"}
    message = f"queued again after {last.restarts} restarts{why.get(last.cause, '')}"
    return Decision(True, command.STOPPED, message + (f", without {', '.join(exclude)}" if exclude else ""), exclude)


def failures_without_a_checkpoint(history: Sequence[Start]) -> int:
    """How many starts, counted back from the last one, failed by themselves after the same checkpoint.

    A start that was stopped or lost between two failures says nothing about them, and is passed over.
    """
    count = 0
    for start in reversed(history):
        if start.saved_step > start.first_step:
            break
        count += start.cause in OWN_FAILURES
    return count


def excluded_nodes(history: Sequence[Start], failures: int) -> tuple[str, ...]:
    """Nodes that at least this many starts name as the place of a failure; one failed preflight is enough."""
    named = Counter(node for start in history for node in set(start.suspects))
    failed = {node for start in history if start.cause == CHECKED for node in start.suspects}
    return tuple(sorted(failed | {node for node, count in named.items() if count >= failures}))

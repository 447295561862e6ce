"""The state of a run, from its directory and SLURM's queue: bounded reads, and no question without a time-out."""

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import slurm
from cluster.launch.freeze import submitted_jobs
from cluster.supervise.history import FINISHED, History, Start
from cluster.supervise.progress import DIVERGED_STAGE, Heartbeat, file_exists, newest_checkpoint_step, read_heartbeat
from cluster.supervise.supervisor import DONE_NAME
from mose.errors import MoseError
from mose.files.yaml_file import read_yaml
from mose.run_directory import LOSS_TOTAL, RunDirectory

QUEUED, RUNNING, STALLED, REQUEUED, DONE, DIVERGED = "queued", "running", "stalled", "requeued", "done", "diverged"
ENDED, NOT_STARTED = "ended", "not started"
# What a person should look at.
BAD_STATES = frozenset((STALLED, DIVERGED, ENDED))
_TAIL_BYTES = 1 << 16
_SPEED = "throughput/tokens_per_second_per_device"
_UTILIZATION, _DATA_WAIT = "throughput/model_flops_utilization", "throughput/data_wait_fraction"


@dataclass(frozen=True)
class TimeParts:
    """Seconds since the first submission, by what they were spent on."""

    useful: float = 0.0
    """Steps whose result the run still has."""
    repeated: float = 0.0
    """Steps that were done again after a failure, since no checkpoint had saved them."""
    starting: float = 0.0
    """From the first line of a job to its first step."""
    queued: float = 0.0
    """Between jobs, and before the first one."""

    @property
    def total(self) -> float:
        """All of them."""
        return self.useful + self.repeated + self.starting + self.queued

    @property
    def goodput(self) -> float | None:
        """Share of the time that was useful; None before any time has passed."""
        return self.useful / self.total if self.total > 0 else None


@dataclass(frozen=True)
class RunStatus:
    """One run as `mose-cluster status` shows it."""

    run: str
    state: str
    note: str = ""
    """What a person may need beside the state: the job, its nodes, why the last start ended."""
    step: int = 0
    max_steps: int | None = None
    loss: float | None = None
    exit_losses: dict[str, float] = field(default_factory=dict)
    """Sum of the terms of each exit, by its name in the metrics, e.g. `exit_04`."""
    tokens_per_second: float | None = None
    """Real tokens per second and device."""
    utilization: float | None = None
    data_wait: float | None = None
    starts: int = 0
    time: TimeParts = field(default_factory=TimeParts)
    seconds_left: float | None = None
    """At the speed of the last start that trained."""


def read_status(path: Path, queue: dict[str, slurm.QueuedJob] | None, now: float, stall_seconds: float) -> RunStatus:
    """The state of the run in `path` at `now`, in seconds since 1970; without a `queue` SLURM is left out.

    Raises:
        MoseError: there is no run directory.
    """
    if not path.is_dir():
        raise MoseError(f"{path}: no such folder, expected a run directory")
    run = RunDirectory(path)
    beat, starts, last = read_heartbeat(run), History(run.launch).read(), _last_metrics(run)
    step = max(beat.step if beat else 0, int(last.get("step", 0)), newest_checkpoint_step(run) if beat is None else 0)
    state, note = _state(run, queue, beat, starts, now, stall_seconds)
    submitted = [job.submitted for job in submitted_jobs(run.launch)]
    parts = (
        time_parts(submitted[0], starts, step, now if state in (RUNNING, STALLED, QUEUED, REQUEUED) else None)
        if submitted
        else None
    )
    max_steps = _max_steps(run)
    pace = _seconds_per_step(starts, step, now)
    return RunStatus(
        run=str(path),
        state=state,
        note=note,
        step=step,
        max_steps=max_steps,
        loss=last.get(LOSS_TOTAL),
        exit_losses=_exit_losses(last),
        tokens_per_second=last.get(_SPEED),
        utilization=last.get(_UTILIZATION),
        data_wait=last.get(_DATA_WAIT),
        starts=len(starts),
        time=parts or TimeParts(),
        seconds_left=(max_steps - step) * pace if max_steps is not None and pace is not None and state != DONE else None,
    )


def read_queue() -> tuple[dict[str, slurm.QueuedJob] | None, str]:
    """The user's jobs, or None and the reason why SLURM does not say."""
    try:
        return slurm.queued(), ""
    except slurm.SlurmError as error:
        return None, str(error)


def _state(
    run: RunDirectory,
    queue: dict[str, slurm.QueuedJob] | None,
    beat: Heartbeat | None,
    starts: Sequence[Start],
    now: float,
    stall_seconds: float,
) -> tuple[str, str]:
    """State and note. What the run itself says last counts before what SLURM says."""
    if file_exists(run.launch / DONE_NAME) or (beat is not None and beat.stage == FINISHED):
        return DONE, ""
    if beat is not None and beat.stage == DIVERGED_STAGE:
        return DIVERGED, "see skipped.jsonl"
    last = starts[-1] if starts else None
    mine = [job for job in submitted_jobs(run.launch) if queue and job.job in queue]
    if queue and mine:
        job = queue[mine[-1].job]
        if job.state == "PENDING":
            if last is None:
                return QUEUED, f"job {job.number}: {job.reason}"
            return REQUEUED, f"job {job.number}: {job.reason}; last start: {_end_of(last)}"
        # The heartbeat of an earlier start may be older than the job's time in the queue.
        begun = max(last.started, last.ended) if last is not None else 0.0
        if beat is not None and (silent := now - max(beat.unix_seconds, begun)) > stall_seconds:
            return STALLED, f"job {job.number}: no heartbeat for {silent:.0f} s, last in {beat.stage!r} of step {beat.step + 1}"
        return RUNNING, f"job {job.number} on {job.reason}"
    if beat is not None and now - beat.unix_seconds <= stall_seconds and beat.stage != "stopped":
        return RUNNING, "without a job of ours in the queue" if queue is not None else ""
    if last is not None:
        return ENDED, f"job {last.job}: {_end_of(last)}"
    if beat is not None:
        return ENDED, f"last heartbeat {_clock(beat.unix_seconds)}"
    jobs = submitted_jobs(run.launch)
    if not jobs or queue is None:
        return NOT_STARTED, ""
    # A job whose log a node cannot open ends before its first line, so that nothing else speaks of it.
    number = jobs[-1].job
    return NOT_STARTED, f"job {number} is not in your queue: `scontrol show job {number}` says why"


def _end_of(start: Start) -> str:
    """How a start that is over ended; one without a record of its end was killed together with its supervisor."""
    return f"{start.cause or 'no record of its end'}{f', code {start.code}' if start.code else ''}"


def time_parts(submitted: float, starts: Sequence[Start], step: int, now: float | None) -> TimeParts:
    """Where the time since the first submission went; `now` is None for a run whose last start has ended."""
    useful = repeated = starting = busy = 0.0
    end = submitted
    for number, start in enumerate(starts):
        following = starts[number + 1] if number + 1 < len(starts) else None
        end = start.ended or (following.started if following else now or start.started)
        trained = start.trained or end
        last = (start.last_step if start.ended else step) if following is None else max(start.last_step, following.first_step)
        done, kept = last - start.first_step, (following.first_step if following else step) - start.first_step
        share = min(1.0, max(0.0, kept / done)) if done > 0 else 0.0
        starting += trained - start.started
        useful += (end - trained) * share
        repeated += (end - trained) * (1 - share)
        busy += end - start.started
    total = (now or end) - submitted
    return TimeParts(useful, repeated, starting, max(0.0, total - busy))


def _seconds_per_step(starts: Sequence[Start], step: int, now: float) -> float | None:
    """Of the last start that did a step, saves and validations included."""
    for start in reversed(starts):
        last = start.last_step if start.ended else step
        if start.trained and last > start.first_step:
            return ((start.ended or now) - start.trained) / (last - start.first_step)
    return None


def _last_metrics(run: RunDirectory) -> dict[str, Any]:
    """The last training line of the metrics; empty where there is none. Reads the end of the file only."""
    try:
        with run.metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return {}
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            values = json.loads(line)
            if isinstance(values, dict) and isinstance(values.get("step"), int) and (LOSS_TOTAL in values or len(values) < 4):
                return values
    return {}


def _exit_losses(values: dict[str, Any]) -> dict[str, float]:
    losses: dict[str, float] = {}
    for name, value in values.items():
        words = name.split("/")
        if len(words) == 3 and words[0] == "loss" and words[1].startswith("exit_") and isinstance(value, int | float):
            losses[words[1]] = losses.get(words[1], 0.0) + value
    return losses


def _max_steps(run: RunDirectory) -> int | None:
    for path in (run.config, run.launch / "config.yaml"):
        with contextlib.suppress(MoseError, OSError):
            values = read_yaml(path)
            if isinstance(values, dict):
                steps = values.get("max_steps", values.get("steps"))
                return steps if isinstance(steps, int) else None
    return None


def _clock(unix_seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_seconds))

"""SLURM's commands, each bounded by a time-out: a controller that does not answer must not hang the process that asks."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from mose.errors import MoseError

CALL_SECONDS = 30
# A submission may wait for a plugin of the site; one that was cut off may have been accepted all the same.
SUBMIT_SECONDS = 120
_LONGEST_REASON = 300
# States of a job that has ended and does not come back by itself.
ENDED = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT")
)


@dataclass(frozen=True)
class QueuedJob:
    """A job as squeue lists it."""

    number: str
    state: str
    """PENDING, RUNNING, COMPLETING, REQUEUE_HOLD, ..."""
    reason: str
    """Why it is pending, or the nodes that it runs on."""


class SlurmError(MoseError):
    """One of SLURM's commands is missing, did not answer, or refused."""


def call(words: Sequence[str], seconds: float = CALL_SECONDS) -> str:
    """The output of one of SLURM's commands.

    Raises:
        SlurmError: the command is not on this machine, did not answer within `seconds`, or refused; the message is SLURM's own.
    """
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise SlurmError(f"{words[0]}: not found on this machine") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{words[0]}: no answer within {seconds:g} s: the controller is down or overloaded") from None
    if done.returncode != 0:
        reason = " ".join(done.stderr.split())[:_LONGEST_REASON]
        raise SlurmError(f"{words[0]}: {reason or f'exit code {done.returncode}'}")
    return done.stdout


def require_sbatch() -> None:
    """Check that jobs can be submitted from this machine.

    Raises:
        SlurmError: sbatch is missing.
    """
    if shutil.which("sbatch") is None:
        raise SlurmError(
            "sbatch: not found on this machine; expected a SLURM login node (--print-only shows the script anywhere)"
        )


def submit(command: Sequence[str]) -> str:
    """Run an sbatch command with `--parsable`; returns the job number.

    Raises:
        SlurmError: see `call`; an unknown partition or account is named by sbatch itself.
    """
    # On a federated cluster, sbatch --parsable prints "number;cluster".
    return call(command, SUBMIT_SECONDS).strip().partition(";")[0]


def queued(numbers: Sequence[str] = ()) -> dict[str, QueuedJob]:
    """The user's jobs in the queue by number, or those of `numbers`; of an array, its elements together under its number.

    Raises:
        SlurmError: see `call`.
    """
    # Not `-j`: squeue refuses the whole question if SLURM has forgotten one of the jobs.
    lines = call(["squeue", "--noheader", "--me", "--format=%F|%T|%r|%N"]).splitlines()
    fields = [line.split("|", 3) for line in lines if line.count("|") >= 3]
    jobs = [QueuedJob(number, state, nodes or reason) for number, state, reason, nodes in fields]
    # Elements that run come first, so that an array counts as running while one of them does.
    ordered = sorted(jobs, key=lambda job: job.state == "RUNNING")
    return {job.number: job for job in ordered if not numbers or job.number in numbers}


def ended_state(number: str) -> str:
    """The state in which a job ended, by accounting or by what the controller remembers; empty where neither knows it."""
    for words in (
        ["sacct", "--noheader", "--parsable2", "--allocations", "--format=State", f"--jobs={number}"],
        ["scontrol", "--oneliner", "show", "job", number],
    ):
        try:
            text = call(words)
        except SlurmError:
            continue
        found = re.search(r"JobState=(\w+)", text) if words[0] == "scontrol" else re.match(r"\s*(\w+)", text)
        if found:
            return found.group(1)
    return ""


def steps(number: str) -> list[str]:
    """The steps of a running job that srun started, e.g. `12.0`; the batch script is none of them."""
    lines = call(["squeue", "--noheader", "--steps", f"--jobs={number}", "--format=%i"]).split()
    return [line for line in lines if line.rpartition(".")[2].isdigit()]


def excluded(number: str) -> list[str]:
    """The nodes on which a job must not run.

    Raises:
        SlurmError: see `call`.
    """
    found = re.search(r"\bExcNodeList=(\S+)", call(["scontrol", "--oneliner", "show", "job", number]))
    return expand_nodes(found.group(1)) if found and found.group(1) != "(null)" else []


def expand_nodes(text: str) -> list[str]:
    """The names in SLURM's short form: `a1,b[01-03,7]` gives a1, b01, b02, b03, b7.

    Raises:
        MoseError: brackets or ranges are broken.
    """
    names: list[str] = []
    # Commas inside brackets belong to their part.
    parts = re.findall(r"(?:[^,\[\]\s]|\[[\d,-]+\])+", text)
    if not text or ",".join(parts) != text:
        raise MoseError(f"node list {text!r}: expected names such as n1,n[02-05]")
    for part in parts:
        head, bracket, rest = part.partition("[")
        numbers, _, tail = rest.partition("]")
        if "[" in tail:
            raise MoseError(f"node list {text!r}: {part!r}, expected one pair of brackets per name")
        names += (
            [f"{head}{number}{tail}" for span in numbers.split(",") for number in _numbers(span, text)] if bracket else [part]
        )
    return names


def _numbers(span: str, text: str) -> list[str]:
    first, _, last = span.partition("-")
    if not first.isdigit() or (last and not last.isdigit()) or int(last or first) - int(first) > 100_000:
        raise MoseError(f"node list {text!r}: {span!r}, expected a number or a range such as 02-05")
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1)]


def in_job() -> bool:
    """Whether this process is part of a job."""
    return bool(os.environ.get("SLURM_JOB_ID"))

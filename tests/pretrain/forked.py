"""`mose-pretrain` in processes forked from one that has imported everything, so that a test can start, starve and kill many.

Importing the trainer takes ten seconds or more; a fork takes milliseconds. Each process is one rank alone, runs the real
command line, and can be told to kill itself at a named moment of saving.
"""

import io
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

WAIT_SECONDS = 240
POINTS = (
    "before the parts",
    "inside a part",
    "between parts",
    "before the checksums",
    "before the manifest",
    "before the rename",
    "after the rename",
    "before latest",
    "before pruning",
    "inside pruning",
)
# Where a signal that asks a run to stop must not break anything.
ACCUMULATION = "inside accumulation"
# The last two are imported by deepspeed when it needs them, which takes seconds.
PRELOADED = (
    "pretrain.cli",
    "pretrain.train",
    "pretrain.checkpoints.export",
    "tests.pretrain.forked",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.checkpoint.ds_to_universal",
)


@dataclass(frozen=True)
class Trouble:
    """What shall happen to a process: a signal at the n-th passing of a point of saving, or no file over so many bytes."""

    point: str = ""
    passing: int = 1
    largest_file: int = 0
    signal: int = signal.SIGKILL
    rows_log: str = ""
    """File to which each step appends its number and the rows that it trains on."""


@dataclass(frozen=True)
class Outcome:
    """How a process ended."""

    code: int
    output: str
    seconds: float


def run_forked(*words: object, trouble: Trouble | None = None, kill_after_seconds: float | None = None) -> Outcome:
    """Run `mose-pretrain WORDS` to its end, or until it is killed."""
    with tempfile.TemporaryDirectory() as folder:
        return _run([str(word) for word in words], trouble or Trouble(), kill_after_seconds, Path(folder) / "output.txt")


def call_forked(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own: DeepSpeed and megatron keep groups for the life of a process."""
    here, there = multiprocessing.Pipe(duplex=False)
    process = _context().Process(target=_answer, args=(there, function, arguments))
    process.start()
    there.close()
    try:
        fine, value = here.recv()
    except EOFError:
        fine, value = False, "the process ended without an answer"
    process.join(WAIT_SECONDS)
    if not fine:
        raise RuntimeError(value)
    return value


def _answer(pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        pipe.send((True, function(*arguments)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))


def succeeds(*words: object) -> str:
    """Run a command that must succeed; returns all it printed."""
    outcome = run_forked(*words)
    assert outcome.code == 0, outcome.output[-3000:]
    return outcome.output


def refuses(*words: object, trouble: Trouble | None = None) -> str:
    """Run a command that must end in one line and exit code 2, without a traceback; returns the line."""
    outcome = run_forked(*words, trouble=trouble)
    assert outcome.code == 2, outcome.output[-3000:]
    lines = [line for line in outcome.output.splitlines() if ": error: " in line]
    assert len(lines) == 1, outcome.output[-3000:]
    assert "Traceback" not in outcome.output
    return lines[0]


def _run(words: list[str], trouble: Trouble, kill_after_seconds: float | None, log: Path) -> Outcome:
    process = _context().Process(target=_serve, args=(words, trouble, str(log)))
    began = time.monotonic()
    process.start()
    process.join(kill_after_seconds if kill_after_seconds is not None else WAIT_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
    code = process.exitcode
    assert code is not None
    return Outcome(code, log.read_text("utf-8") if log.exists() else "", time.monotonic() - began)


def _context() -> Any:
    os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", COLUMNS="160")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED])
    return context


def _serve(words: list[str], trouble: Trouble, log: str) -> None:
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    if trouble.largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (trouble.largest_file, resource.RLIM_INFINITY))
    if trouble.point:
        _arm(trouble)
    if trouble.rows_log:
        _log_rows(Path(trouble.rows_log))
    from mose.command import run_command
    from pretrain.cli import commands

    os._exit(run_command("mose-pretrain", "", commands(), words))


def _arm(trouble: Trouble) -> None:
    """Put the signal before or after the n-th call of what happens at the point."""
    import torch

    from pretrain.checkpoints import store as checkpoint_store
    from pretrain.parallel.engine import Engine

    store = checkpoint_store.CheckpointStore
    places: dict[str, tuple[Any, str, bool]] = {
        "before the parts": (Engine, "save", False),
        "inside a part": (torch, "save", False),
        "between parts": (torch, "save", True),
        "before the checksums": (store, "_described", False),
        "before the manifest": (checkpoint_store, "write_json", False),
        "before the rename": (Path, "rename", False),
        "after the rename": (Path, "rename", True),
        "before latest": (store, "_point_at", False),
        "before pruning": (store, "prune", False),
        "inside pruning": (shutil, "rmtree", False),
        ACCUMULATION: (Engine, "backward", False),
    }
    owner, name, after = places[trouble.point]
    original, left = getattr(owner, name), [trouble.passing]

    def deadly(*arguments: Any, **named: Any) -> Any:
        if _concerns(trouble.point, arguments):
            left[0] -= 1
        if left[0] or not _concerns(trouble.point, arguments):
            return original(*arguments, **named)
        if after:
            original(*arguments, **named)
        elif trouble.point == "inside a part":
            _write_half(original, *arguments)
        elif trouble.point == "inside pruning":
            next(path for path in Path(arguments[0]).rglob("*") if path.is_file()).unlink()
        os.kill(os.getpid(), trouble.signal)
        assert trouble.signal != signal.SIGKILL, "a dead process cannot get here"
        return original(*arguments, **named)

    setattr(owner, name, deadly)


def _log_rows(path: Path) -> None:
    """Append a line of JSON per step before it is done: [step, rows in ascending order]."""
    from pretrain import train

    original = train.train_step

    def logged(engine: Any, batches: Any, rate: float, seed: int, step: int, *more: Any) -> Any:
        rows = sorted(row for batch in batches for row in batch.row_numbers_B.tolist())
        with path.open("a") as file:
            file.write(json.dumps([step, rows]) + "\n")
        return original(engine, batches, rate, seed, step, *more)

    train.train_step = logged


def _concerns(point: str, arguments: tuple[Any, ...]) -> bool:
    """Whether this call of a function that others use, too, belongs to saving."""
    if point.endswith("the rename"):
        return str(arguments[0]).endswith(".partial") and Path(arguments[0]).is_dir()
    if point == "inside pruning":
        return Path(arguments[0]).name.startswith("step-")
    return True


def _write_half(save: Callable[..., Any], value: Any, path: Any, *_: Any) -> None:
    whole = io.BytesIO()
    save(value, whole)
    Path(path).write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])

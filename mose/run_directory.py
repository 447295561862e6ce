"""The run directory: the names of the files that a training run writes, and the append-only logs of metrics and skipped steps."""

import importlib.metadata
import json
import math
import os
import platform
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mose.errors import MoseError
from mose.files.atomic_file import named_errors, write_json, write_text
from mose.files.json_file import parse_json
from mose.files.lock import Holder, Lock, living_holder, lock_file
from mose.files.records import from_plain
from mose.files.streams import without_credentials

PACKAGES = ("torch", "deepspeed", "megatron-core", "transformers", "numpy", "flash-attn", "mose-at-scale")
EVALUATION_NAME = "evaluation.json"
VALIDATION = "validation/"
LOSS_TOTAL = "loss/total"
_ONE_WRITER = "one process at a time per run directory"


def exit_scalar(kind: str, exit_layer: int, term: str) -> str:
    """The name of a scalar of one exit, e.g. `loss/exit_04/mlm`: kind `loss` or `accuracy`, and the term of the loss."""
    return f"{kind}/exit_{exit_name(exit_layer)}/{term}"


def exit_name(exit_layer: int) -> str:
    """The name of an exit in results: `04` for layer 4."""
    return f"{exit_layer:02d}"


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after `step` steps; it sorts by step. The trainer writes it, `cluster` waits for it."""
    return f"step-{step:06d}"


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run below `path`."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config, written before anything runs."""
        return self.path / "config.yaml"

    @property
    def versions(self) -> Path:
        """Packages and threads that the numbers depend on."""
        return self.path / "versions.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per line, append-only."""
        return self.path / "metrics.jsonl"

    @property
    def skipped(self) -> Path:
        """Skipped steps, one JSON object per line; the file appears with the first."""
        return self.path / "skipped.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def heartbeat(self) -> Path:
        """Time of the last heartbeat, and the step and stage at that time."""
        return self.path / "heartbeat.json"

    @property
    def lock(self) -> Path:
        """The process that writes into this directory, with a heartbeat; only while it does."""
        return self.path / "lock.json"

    @property
    def saved(self) -> Path:
        """The newest checkpoint that the run has written, or null: it outlives `checkpoints/`, so that a run whose checkpoints
        are gone is told apart from one that was killed before its first."""
        return self.path / "saved.json"

    @property
    def launch(self) -> Path:
        """What a cluster job writes: its frozen config, its script, and the history of its starts."""
        return self.path / "launch"

    @property
    def stacks(self) -> Path:
        """One file per rank, into which it writes its stacks when the job's supervisor asks for them."""
        return self.path / "stacks"

    @property
    def checkpoints(self) -> Path:
        """One folder per checkpoint, `step-000100`."""
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint after `step` steps."""
        return self.checkpoints / checkpoint_name(step)

    def hold(self) -> Lock[Holder]:
        """A lock for a `with` block, in which no other process trains, fine-tunes or exports into the directory.

        Entering it makes the directory, and raises MoseError where another process holds it.

        Raises:
            MoseError: the directory is a link to one that is not there.
        """
        self._require_target()
        return lock_file(self.lock, str(self.path), _ONE_WRITER)

    def require_free(self) -> None:
        """Check that no living process holds the directory; writes nothing.

        Raises:
            MoseError: one does; the message names it.
        """
        if holder := living_holder(self.lock):
            raise MoseError(f"{self.path}: {holder}: works on it; expected {_ONE_WRITER}")

    def write_saved(self, checkpoint: str | None) -> None:
        """Record the name of the newest checkpoint, or that there is none yet."""
        write_json(self.saved, {"checkpoint": checkpoint})

    def read_saved(self) -> tuple[bool, str | None]:
        """Whether saved.json says anything, and the checkpoint that it names; runs of early versions have no such file."""
        try:
            values = from_plain(dict[str, str | None], parse_json(self.saved.read_bytes()))
        except (FileNotFoundError, ValueError):
            return False, None
        return "checkpoint" in values, values.get("checkpoint")

    def _require_target(self) -> None:
        if self.path.is_symlink() and not self.path.exists():
            raise MoseError(f"{self.path}: is a link to {self.path.readlink()}, which is not there; expected it mounted")

    def create(self, resume: bool = False) -> None:
        """Make the directory. With `resume` it may hold a run, which then continues; otherwise a new run starts.

        Raises:
            MoseError: it holds a run and `resume` was not asked for, or it is not a directory.
        """
        self._require_target()
        if self.path.exists() and not self.path.is_dir():
            raise MoseError(f"{self.path}: is a file, expected a run directory or a name that is free")
        held = [path.name for path in (self.config, self.metrics, self.checkpoints) if os.path.lexists(path)]
        held = held or [path.name for path in (self.heartbeat, self.skipped, self.saved) if path.exists()]
        if held and not resume:
            raise MoseError(f"{self.path}: holds another run ({', '.join(held)}); expected a new directory, or resume")
        self.path.mkdir(parents=True, exist_ok=True)

    def write_versions(self, **more: str) -> None:
        """Write versions.json: together with the layout and the config, it must match for a bit-equal resume.

        `more` is what only the caller knows, such as the attention back end.
        """
        torch = sys.modules.get("torch")
        values = {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": {name: _installed(name) for name in PACKAGES},
            "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
            "torch_threads": torch.get_num_threads() if torch is not None else None,
            "cuda": torch.version.cuda if torch is not None else None,
            **more,
        }
        write_text(self.versions, without_credentials(json.dumps(values, indent=1, sort_keys=True)) + "\n")

    def append_metrics(self, values: Mapping[str, Any]) -> None:
        """Append one line; `values` has a `step`, the number of optimiser steps done. NaN and infinities become null."""
        _append_line(self.metrics, values)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every line, in order; none when there is no file yet. A last line that a killed process left unfinished is left out.

        Raises:
            MoseError: a finished line is not a JSON object with a `step`.
        """
        if not self.metrics.exists():
            return []
        *lines, _ = self.metrics.read_text("utf-8").split("\n")
        return [_parse(self.metrics, number, line) for number, line in enumerate(lines, start=1)]

    def append_skipped(self, values: Mapping[str, Any]) -> None:
        """Append one line to skipped.jsonl, as `append_metrics` does."""
        _append_line(self.skipped, values)

    def trim(self, step: int) -> None:
        """Drop lines of later steps and an unfinished last line, atomically; the run resumed after `step` writes them again.

        Raises:
            MoseError: see `read_metrics`.
        """
        for path in (self.metrics, self.skipped):
            if path.exists():
                *lines, _ = path.read_text("utf-8").split("\n")
                kept = [line for number, line in enumerate(lines, start=1) if _parse(path, number, line)["step"] <= step]
                write_text(path, "".join(f"{line}\n" for line in kept))

    def write_heartbeat(self, step: int, **more: str | float | None) -> None:
        """Replace heartbeat.json: steps done, seconds since 1970, host and process, and whatever the caller adds.

        The trainer adds `stage` and `stage_seconds`: a process that still writes may be stuck in one stage.
        """
        values = {"step": step, "unix_seconds": time.time(), "host": socket.gethostname(), "process_id": os.getpid()}
        write_json(self.heartbeat, {**values, **more})


def finite_or_none(value: Any) -> Any:
    """The value, or None where it is NaN or infinite, which JSON cannot represent."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _append_line(path: Path, values: Mapping[str, Any]) -> None:
    plain = {name: finite_or_none(value) for name, value in values.items()}
    line = json.dumps({"step": plain.pop("step"), **plain}, allow_nan=False)
    with named_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        values = parse_json(line.encode("utf-8"))
    except ValueError:
        values = None
    if not isinstance(values, dict) or not isinstance(values.get("step"), int):
        raise MoseError(f"{path}: line {number}: expected a JSON object with a whole number `step`")
    return values


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

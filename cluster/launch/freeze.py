"""The frozen copy of what a job runs: the resolved config, the job, the version of the code, and the environment."""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

import cluster
from cluster.jobs.stages import Stage
from mose.config import save_config
from mose.errors import MoseError
from mose.files.atomic_file import write_text
from mose.files.json_file import parse_json
from mose.files.streams import without_credentials
from mose.files.yaml_file import read_yaml

CONFIG_NAME, JOB_NAME, ENVIRONMENT_NAME, CHANGES_NAME, SCRIPT_NAME = (
    "config.yaml",
    "job.yaml",
    "environment.json",
    "changes.patch",
    "job.sbatch",
)
_FROZEN = (CONFIG_NAME, JOB_NAME, ENVIRONMENT_NAME, CHANGES_NAME, SCRIPT_NAME)
JOBS_NAME = "jobs.jsonl"
# What decides how a run behaves; everything else in an environment is the user's own business, or a secret.
_VARIABLES = re.compile(
    r"(CUDA|NCCL|GLOO|OMP|MKL|TORCH|PYTORCH|TRITON|HF|DS|MOSE|UCX|FI)_\w+|PYTHONPATH|VIRTUAL_ENV|LD_LIBRARY_PATH"
)
# Options of the commands themselves, which --print_config prints among the fields of the config: no part of a run.
_COMMAND_OPTIONS = frozenset(
    ("allow_change", "debug", "dry_run", "mock_step", "profile_ranks", "profile_steps", "resume", "task", "trust_checkpoint")
)
_CHECK_SECONDS = 300
_LARGEST_CHANGES = 1_000_000


def stage_command(stage: Stage) -> list[str]:
    """The words that run a stage on this machine: its installed command, or this Python's own module."""
    program = shutil.which(stage.program) or str(Path(sys.executable).with_name(stage.program))
    words = [program] if Path(program).exists() else [sys.executable, "-m", stage.module]
    return [*words, stage.command]


def resolved_config(stage: Stage, path: Path, words: Sequence[str]) -> dict[str, Any]:
    """A stage's config with all defaults and options, as the stage's own command resolves it.

    Raises:
        MoseError: the file is missing, or the stage refuses it; the message is the stage's own.
    """
    if not path.is_file():
        raise MoseError(f"{path}: no such file, expected the config of the run to launch")
    text = _ask([*stage_command(stage), "--config", str(path), *words, "--print_config"])
    values = yaml.safe_load(text)
    if not isinstance(values, dict):
        raise MoseError(f"{path}: {stage.program} {stage.command} --print_config printed no config")
    return {name: value for name, value in values.items() if name not in _COMMAND_OPTIONS}


def check_layout(path: Path, stage: Stage, ranks: int) -> None:
    """Let the trainer check the frozen config for this many ranks, without devices.

    Raises:
        MoseError: it refuses; the message is its own.
    """
    _ask([*stage_command(stage), "--config", str(path), "--dry-run", "--ranks", str(ranks)])


def _ask(command: Sequence[str]) -> str:
    # The command must not take this process for one of a job's ranks.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_CHECK_SECONDS, check=False, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MoseError(f"{command[0]}: {' '.join(str(error).split())}") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if ": error: " in line] or done.stderr.splitlines()[-1:]
        raise MoseError((lines or [f"{command[0]}: exit code {done.returncode}"])[0].partition(": error: ")[2] or lines[0])
    return done.stdout


def require_same_config(folder: Path, values: dict[str, Any]) -> None:
    """Check that a launch folder holds no other config; a run goes on only with its own.

    Raises:
        MoseError: it does; the message names the first field that differs.
    """
    frozen = folder / CONFIG_NAME
    if not frozen.exists():
        return
    before = read_yaml(frozen)
    if before == values:
        return
    name, old, new = next(_differences(before if isinstance(before, dict) else {}, values))
    raise MoseError(
        f"{folder.parent}: holds a run of another config: {name} is {old!r} there and {new!r} here; expected the same config, "
        f"another run directory, or --replace-config"
    )


def _differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> Any:
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name}", old, new


@contextlib.contextmanager
def frozen(folder: Path, values: dict[str, Any], job: Any, script: str) -> Iterator[None]:
    """Freeze a launch while the block submits it; if the block fails, the launch folder is again as it was before.

    A config that stayed behind would count as that of a run, and the next launch with a mended one would be refused.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    before = {path: path.read_text("utf-8") for path in (folder / name for name in _FROZEN) if path.exists()}
    try:
        write_frozen(folder, values, job, script)
        yield
    except BaseException:
        for path in (folder / name for name in _FROZEN):
            if path in before:
                write_text(path, before[path])
            else:
                path.unlink(missing_ok=True)
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def write_frozen(folder: Path, values: dict[str, Any], job: Any, script: str) -> None:
    """Write the resolved config, the job's own config, its script, the version of the code and the environment."""
    write_text(folder / CONFIG_NAME, yaml.safe_dump(values, sort_keys=False))
    save_config(job, folder / JOB_NAME)
    write_text(folder / SCRIPT_NAME, script)
    root = Path(cluster.__file__).resolve().parents[1]
    commit, changes = _git(root, "rev-parse", "HEAD").strip(), _git(root, "diff", "HEAD")
    if changes:
        write_text(folder / CHANGES_NAME, changes[:_LARGEST_CHANGES])
    packages = {found.metadata["Name"]: found.version for found in importlib.metadata.distributions()}
    facts = {
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": commit or None,
        "changed": bool(changes),
        "python": platform.python_version(),
        "packages": dict(sorted(packages.items(), key=lambda item: str(item[0]).lower())),
        "variables": {name: os.environ[name] for name in sorted(os.environ) if _VARIABLES.fullmatch(name)},
    }
    write_text(folder / ENVIRONMENT_NAME, without_credentials(json.dumps(facts, indent=1)) + "\n")


def _git(root: Path, *words: str) -> str:
    """The output of a git command on the code; empty where it is no checkout or git is missing."""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


@dataclasses.dataclass(frozen=True)
class SubmittedJob:
    """A job that was submitted for a launch folder."""

    job: str
    submitted: float
    """Seconds since 1970."""


def record_job(folder: Path, number: str) -> None:
    """Add a job to the launch folder's list."""
    path = folder / JOBS_NAME
    before = path.read_text("utf-8") if path.exists() else ""
    write_text(path, before + json.dumps({"job": number, "submitted": time.time()}) + "\n")


def submitted_jobs(folder: Path) -> list[SubmittedJob]:
    """Every job that was submitted for a launch folder, in order."""
    found = []
    try:
        lines = (folder / JOBS_NAME).read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            values = parse_json(line)
            found.append(SubmittedJob(str(values["job"]), float(values["submitted"])))
        except (ValueError, KeyError, TypeError):
            continue
    return found

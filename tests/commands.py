"""Runs the project's commands as a user would: in a process of their own, judged by exit code and what they print."""

import os
import subprocess
import sys
from pathlib import Path

from tests.distributed import free_port

WAIT_SECONDS = 240


def environment(**more: str) -> dict[str, str]:
    """The test's own environment, on the CPU with one thread, without what a launcher would set."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    return {**kept, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "COLUMNS": "160", **more}


def command_line(package: str, *words: object) -> list[str]:
    """`mose-PACKAGE WORDS...` as this Python's own module."""
    return [sys.executable, "-m", f"{package}.cli", *map(str, words)]


def launcher_line(ranks: int, *words: object) -> list[str]:
    """`deepspeed --module pretrain.cli WORDS...` on this many local ranks."""
    launcher = str(Path(sys.executable).parent / "deepspeed")
    options = ["--num_accelerators", str(ranks), "--master_port", str(free_port()), "--no_local_rank", "--module"]
    return [sys.executable, launcher, *options, "pretrain.cli", *map(str, words)]


def run(line: list[str], cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        line, cwd=cwd, env=environment(**more), capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
    )


def run_well(line: list[str], cwd: Path | None = None, **more: str) -> str:
    """Run a command that must succeed; returns its standard output."""
    done = run(line, cwd, **more)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def refused(line: list[str], cwd: Path | None = None, **more: str) -> str:
    """Run a command that must refuse its input: exit code 2, one line on standard error, no traceback; returns the line."""
    done = run(line, cwd, **more)
    assert done.returncode == 2, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    lines = [text for text in done.stderr.splitlines() if ": error: " in text]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]

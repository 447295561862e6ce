"""The rows that a run's steps were trained on, as the traced trainer recorded them, against an undisturbed run named `calm`."""

import itertools
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.supervise.history import Start
from mose.run_directory import RunDirectory
from pretrain.checkpoints.files import latest_checkpoint, read_checkpoint_manifest
from pretrain.config.frozen import load_frozen_config
from pretrain.data.order import rows_of_run
from tests.cluster.drills.launched import ROOT, starts

RANKS = 2
Rows = list[list[int]]


def install_trainer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `mose-pretrain`, and what the deepspeed launcher starts, the traced trainer."""
    (folder / "tools").mkdir()
    traced, launcher = ROOT / "tests/cluster/drills/traced_trainer.py", Path(sys.executable).with_name("deepspeed")
    for name, command in {
        "mose-pretrain": f'exec {sys.executable} {traced} "$@"',
        "deepspeed": f'exec {launcher} "${{@/pretrain.cli/tests.cluster.drills.traced_trainer}}"',
    }.items():
        (folder / "tools" / name).write_text(f"#!/bin/bash\n{command}\n")
        (folder / "tools" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'tools'}:{os.environ['PATH']}")


def lines_by_rank(output: str) -> list[list[dict[str, Any]]]:
    """What each rank recorded: a line per step that it did."""
    paths = sorted(Path(f"{output}.rows").glob("rank-*.jsonl"))
    assert len(paths) == RANKS
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]


def rows_by_rank(output: str) -> list[dict[tuple[int, int], list[int]]]:
    """Per rank, the rows of each (restart, step) that was done."""
    found = []
    for rank, lines in enumerate(lines_by_rank(output)):
        keys = [(line["restart"], line["step"]) for line in lines]
        assert len(set(keys)) == len(keys), f"{output}: rank {rank} did a step twice in one start"
        found.append({key: line["rows"] for key, line in zip(keys, lines, strict=True)})
    return found


def seconds_to_first_step(output: str) -> list[float]:
    """Per start, from its first line, which is when SLURM gave the job to it, until every rank had done a step."""
    lines = lines_by_rank(output)
    done = [{line["restart"]: line["unix_seconds"] for line in reversed(rank)} for rank in lines]
    return [max(first[start.restarts] for first in done) - start.started for start in starts(output)]


def kept_rows(output: str, history: list[Start], last: int) -> Rows:
    """The rows, ascending, of each step whose result the run kept: of a start, those before the first step of the next.

    Steps that were done again after a failure must have had the same rows on the same ranks.
    """
    ranks, ends_at = rows_by_rank(output), [start.first_step for start in history[1:]] + [last]
    for rows in ranks:
        by_step: dict[int, list[int]] = {}
        for (_, step), numbers in rows.items():
            assert by_step.setdefault(step, numbers) == numbers, f"step {step} was done again with other rows"
    kept = []
    for start, end in zip(history, ends_at, strict=True):
        for step in range(start.first_step + 1, end + 1):
            kept.append(sorted(itertools.chain.from_iterable(rows[start.restarts, step] for rows in ranks)))
    return kept


def check_rows(output: str, steps: int, dataset_rows: int) -> None:
    """Every step's rows are those of the undisturbed run and of the order of rows; over epochs, none is lost or repeated."""
    kept = kept_rows(output, starts(output), steps)
    assert len(kept) == steps
    assert kept == kept_rows("calm", starts("calm"), steps)
    config = load_frozen_config(RunDirectory(Path(output)))
    count, order = config.batch.global_rows, (config.data.block_rows, config.data.window_rows)
    rows, _ = rows_of_run(config.seed, 0, steps * count, dataset_rows, *order)
    assert kept == np.sort(rows.reshape(steps, count)).tolist()
    counts = Counter(itertools.chain.from_iterable(kept))
    epochs = sum(counts.values()) // dataset_rows
    assert set(counts.values()) <= {epochs, epochs + 1} and (len(counts) == dataset_rows or not epochs)


def files_of_last_checkpoint(output: str) -> dict[str, str]:
    """The SHA-256 of each file: weights, optimiser states, random states."""
    latest = latest_checkpoint(RunDirectory(Path(output)).checkpoints)
    assert latest is not None
    files: dict[str, str] = read_checkpoint_manifest(latest)["files"]
    return files

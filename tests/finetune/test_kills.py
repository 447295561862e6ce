"""Covers SIGKILL at random moments of both stages' commands: resumed, they end with the undisturbed run's metrics and weights.

`MOSE_DATA=FOLDER` takes the texts from its `triplets_train.parquet` and `eval/bigclonebench_*`, and `MOSE_CHECKPOINT=FOLDER` the
model from a converted checkpoint; without them, made pairs and a tiny random model serve. `MOSE_KILLS_RESULT=FILE` writes what
was hit to FILE.
"""

import datetime
import os
import platform
import random
import shutil
import subprocess
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from finetune.retrieval.examples import text_key
from mose.dataset.pairs import read_pairs, write_pairs
from mose.files.atomic_file import write_json
from mose.run_directory import RunDirectory
from tests.commands import command_line, environment
from tests.finetune.classification.conftest import make_examples, write_examples
from tests.finetune.conftest import make_pairs
from tests.finetune.interruptions import lines_but_speed

KILLS, STEPS = 5, 40
INTERVALS = {"log_every_steps": 1, "checkpoint_every_steps": 3, "validate_every_steps": 7}
SIZES = {
    "retrieval": {"batch_pairs": 12, "chunk_pairs": 4, "learning_rate": 1e-3, "validation_queries": 100, "max_length": 96},
    "classification": {"batch_rows": 8, "learning_rate": 1e-3, "max_length": 96},
}


@dataclass(frozen=True)
class Kill:
    """When the process was killed: the newest checkpoint (empty: none), lines of metrics.jsonl, half-written checkpoints."""

    checkpoint: str
    lines: int
    partial: int


def retrieval_files(folder: Path) -> dict[str, Path]:
    """Pairs with a held-out seventh of the descriptions."""
    real = os.environ.get("MOSE_DATA")
    pairs = read_pairs(Path(real) / "triplets_train.parquet")[:4000] if real else make_pairs(100, second=True)
    write_pairs(folder / "pairs.parquet", [replace(p, split="train" if text_key(p.nl) % 7 else "held_out") for p in pairs])
    return {"pairs": folder / "pairs.parquet"}


def classification_files(folder: Path) -> dict[str, Path]:
    """Training, validation and test examples."""
    if "MOSE_DATA" not in os.environ:
        return {
            n: write_examples(folder / f"{n}.jsonl", make_examples(120, seed)) for seed, n in enumerate(("train", "validation"))
        }
    source = Path(os.environ["MOSE_DATA"]) / "eval"
    lines = (source / "bigclonebench_valid_pairs.txt").read_text().splitlines(keepends=True)
    for name, first in (("validation", 0), ("test", 100)):
        (folder / f"{name}.txt").write_text("".join(lines[first : first + 100]))
    files = {name: folder / f"{name}.txt" for name in ("validation", "test")}
    return files | {
        "train": source / "bigclonebench_train_pairs.txt",
        "functions": source / "bigclonebench_functions.jsonl.gz",
    }


def ends(path: Path) -> tuple[Any, ...]:
    """What must be equal: every line but its speed, the scores, and the weights of both exported folders."""
    scores = path / "evaluation.json"
    weights = [(path / name / "model.safetensors").read_bytes() for name in ("checkpoint", "best")]
    return lines_but_speed(RunDirectory(path)), scores.read_text() if scores.exists() else "", weights


def run_to_its_end(line: list[str]) -> None:
    """Without a limit of time: the test is about kills, and a busy machine is none."""
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def kill_once(line: list[str], output: Path, wanted: int, delay: float) -> Kill | None:
    """Kill the command `delay` seconds after it has written its line `wanted`; None if it ended before."""
    run = RunDirectory(output)
    process = subprocess.Popen(line, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and lines_of(run) < wanted:
        time.sleep(0.002)
    try:
        assert process.wait(delay) == 0
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    else:
        return None
    newest = sorted(path.name for path in run.checkpoints.glob("step-*"))
    partial = len(list(run.checkpoints.glob(".step-*.partial")))
    return Kill(newest[-1] if newest else "", lines_of(run), partial)


def lines_of(run: RunDirectory) -> int:
    return run.metrics.read_bytes().count(b"\n") if run.metrics.exists() else 0


def killed_course(line: list[str], output: Path, seconds: float, draw: random.Random) -> list[Kill]:
    """Kill the command KILLS times on its way from the first step to the last, at moments drawn over all its steps."""
    while True:
        shutil.rmtree(output, ignore_errors=True)
        # The first kill falls into the start, before any step.
        moments = [(0, draw.uniform(0.2, 1.0) * seconds / 2)]
        moments += [(lines, draw.uniform(0, 0.3)) for lines in sorted(draw.sample(range(1, STEPS - 4), KILLS - 1))]
        kills = [kill_once(line, output, *moment) for moment in moments]
        # A kill after the end is none: the course is made again.
        if None not in kills:
            return [kill for kill in kills if kill is not None]


@pytest.mark.soak
def test_both_stages_killed_at_random_moments_and_resumed_are_bit_equal(checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = Path(os.environ.get("MOSE_CHECKPOINT", checkpoint))
    draw, hit = random.Random(3), {}
    began = time.monotonic()
    for stage, files in (("retrieval", retrieval_files(tmp_path)), ("classification", classification_files(tmp_path))):
        values = {
            "checkpoint": checkpoint,
            **files,
            "steps": STEPS,
            "warmup_steps": 0,
            "device": "cpu",
            **INTERVALS,
            **SIZES[stage],
        }
        words = [f"--{name}={value}" for name, value in values.items()]
        started = time.monotonic()
        run_to_its_end(command_line("finetune", stage, *words, f"--output={tmp_path / stage}"))
        seconds = time.monotonic() - started
        line = command_line("finetune", stage, *words, f"--output={tmp_path / 'killed' / stage}")
        hit[stage] = killed_course(line, tmp_path / "killed" / stage, seconds, draw)
        run_to_its_end(line)
        assert ends(tmp_path / "killed" / stage) == ends(tmp_path / stage)
    if "MOSE_KILLS_RESULT" in os.environ:
        result = {
            "date": datetime.date.today().isoformat(),
            "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
            "model": "MOSE_CHECKPOINT" if "MOSE_CHECKPOINT" in os.environ else "tiny, random",
            "data": "MOSE_DATA" if "MOSE_DATA" in os.environ else "made",
            "steps": STEPS,
            "intervals": INTERVALS,
            "kills": {stage: [asdict(kill) for kill in kills] for stage, kills in hit.items()},
            "metrics_scores_and_weights_equal": True,
            "seconds": round(time.monotonic() - began),
        }
        write_json(Path(os.environ["MOSE_KILLS_RESULT"]), result)

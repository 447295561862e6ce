"""Covers SIGKILL at random moments of both stages' commands: resumed, they end with the undisturbed run's metrics and weights.

`MOSE_DATA=FOLDER` takes the texts from its `triplets_train.parquet` and `eval/bigclonebench_*`, and `MOSE_CHECKPOINT=FOLDER` the
model from a converted checkpoint; without them, made pairs and a tiny random model serve. `MOSE_KILLS_RESULT=FILE` writes what
was hit to FILE.
"""

import datetime
import multiprocessing
import os
import platform
import random
import shutil
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.retrieval.examples import text_key
from mose.dataset.pairs import read_pairs, write_pairs
from mose.files.atomic_file import write_json
from mose.run_directory import RunDirectory
from tests.finetune.classification.conftest import make_examples, write_examples
from tests.finetune.conftest import make_pairs
from tests.finetune.interruptions import lines_but_speed
from tests.finetune.test_cli import run

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


def start(words: list[str]) -> Any:
    """The command in a process of its own, forked from this one, so that it does not import torch again."""
    process = multiprocessing.get_context("fork").Process(target=work, args=(words,))
    process.start()
    return process


def work(words: list[str]) -> None:
    torch.set_num_threads(1)
    sys.exit(run(*words))


def run_to_its_end(words: list[str]) -> None:
    """Without a limit of time: the test is about kills, and a busy machine is none."""
    process = start(words)
    process.join()
    assert process.exitcode == 0


def kill_once(words: list[str], output: Path, wanted: int, delay: float) -> Kill | None:
    """Kill the command `delay` seconds after it has written its line `wanted`; None if it ended before."""
    directory = RunDirectory(output)
    process = start(words)
    while process.is_alive() and lines_of(directory) < wanted:
        time.sleep(0.01)
    process.join(delay)
    if not process.is_alive():
        assert process.exitcode == 0
        return None
    process.kill()
    process.join()
    newest = sorted(path.name for path in directory.checkpoints.glob("step-*"))
    partial = len(list(directory.checkpoints.glob(".step-*.partial")))
    return Kill(newest[-1] if newest else "", lines_of(directory), partial)


def lines_of(directory: RunDirectory) -> int:
    return directory.metrics.read_bytes().count(b"\n") if directory.metrics.exists() else 0


def killed_course(words: list[str], output: Path, seconds: float, draw: random.Random) -> list[Kill]:
    """Kill the command KILLS times on its way from the first step to the last, at moments drawn over all its steps."""
    while True:
        shutil.rmtree(output, ignore_errors=True)
        # The first kill falls into the start, before any step.
        moments = [(0, draw.uniform(0.2, 1.0) * seconds / 2)]
        moments += [(lines, draw.uniform(0, 0.3)) for lines in sorted(draw.sample(range(1, STEPS - 4), KILLS - 1))]
        kills = [kill_once(words, output, *moment) for moment in moments]
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
        words = [stage, *(f"--{name}={value}" for name, value in values.items())]
        started = time.monotonic()
        run_to_its_end([*words, f"--output={tmp_path / stage}"])
        seconds = time.monotonic() - started
        words.append(f"--output={tmp_path / 'killed' / stage}")
        hit[stage] = killed_course(words, tmp_path / "killed" / stage, seconds, draw)
        run_to_its_end(words)
        assert ends(tmp_path / "killed" / stage) == ends(tmp_path / stage)
    if "MOSE_KILLS_RESULT" in os.environ:
        result = {
            "date": datetime.date.today().isoformat(),
            "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
            "model": "a converted checkpoint" if "MOSE_CHECKPOINT" in os.environ else "tiny, random",
            "data": "triplets_train, BigCloneBench" if "MOSE_DATA" in os.environ else "made",
            "steps": STEPS,
            "intervals": INTERVALS,
            "kills": {stage: [asdict(kill) for kill in kills] for stage, kills in hit.items()},
            "metrics_scores_and_weights_equal": True,
            "seconds": round(time.monotonic() - began),
        }
        write_json(Path(os.environ["MOSE_KILLS_RESULT"]), result)

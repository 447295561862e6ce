"""Covers SIGKILL of `mose-finetune benchmark` at random moments: resumed, it writes the bytes of a run that was never disturbed.

`MOSE_BENCHMARK=FILE` takes models and tasks from a config; without it, a tiny random model and made files serve.
`MOSE_KILLS_RESULT=FILE` writes what was hit to FILE.
"""

import datetime
import multiprocessing
import os
import platform
import random
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mose.files.atomic_file import write_json
from tests.finetune.evaluation.benchmark.test_command import run

KILLS = 7


@dataclass(frozen=True)
class Kill:
    """When the process was killed: seconds after its start, blocks of embeddings, files of values, half-written files then."""

    seconds: float
    blocks: int
    values: int
    partial: int


def work(output: Path, values: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    sys.exit(run(output, **values))


def start(output: Path, values: dict[str, Any]) -> Any:
    """The command in a process of its own, forked from this one, so that it does not import torch again."""
    process = multiprocessing.get_context("fork").Process(target=work, args=(output, values))
    process.start()
    return process


def found(output: Path) -> tuple[int, int, int]:
    """Blocks of embeddings, files of values, half-written files."""
    return len(list(output.rglob("block-*.npy"))), len(list(output.rglob("*.npz"))), len(list(output.rglob(".*.partial")))


def kill_once(output: Path, values: dict[str, Any], wanted: int, delay: float) -> Kill | None:
    """Kill the command `delay` seconds after it has made its result file `wanted`; None if it ended before."""
    began = time.monotonic()
    process = start(output, values)
    while process.is_alive() and sum(found(output)[:2]) < wanted:
        time.sleep(0.002)
    process.join(delay)
    if not process.is_alive():
        assert process.exitcode == 0
        return None
    process.kill()
    process.join()
    return Kill(round(time.monotonic() - began, 3), *found(output))


def killed_course(
    folder: Path, values: dict[str, Any], files: int, seconds: float, draw: random.Random
) -> tuple[Path, list[Kill]]:
    """Kill the command KILLS times on its way from the first block to the last value; the folder and what was hit."""
    for attempt in range(100):
        output = folder / f"attempt-{attempt}"
        # The first kill falls into the start, before anything is embedded.
        moments = [(0, draw.uniform(0, 0.1) * seconds)]
        moments += [(wanted, draw.uniform(0, seconds / files)) for wanted in sorted(draw.sample(range(1, files), KILLS - 1))]
        kills = [kill_once(output, values, *moment) for moment in moments]
        # A kill after the end is none: the course is made again, in a new folder.
        if None not in kills:
            return output, [kill for kill in kills if kill is not None]
    raise AssertionError("the command always ended before it was killed")


@pytest.mark.soak
def test_a_benchmark_killed_at_random_moments_and_resumed_writes_the_same_bytes(
    files: dict[str, list[str]], retriever: Path, sentence_folder: Path, tmp_path: Path
) -> None:
    config = os.environ.get("MOSE_BENCHMARK")
    values: dict[str, Any] = {
        "models": {"Ours": str(retriever), "BM25": "bm25", "Peer": f"sentence-transformers:{sentence_folder}"},
        "tasks": files,
        "block_texts": 4,
    }
    if config:
        values = yaml.safe_load(Path(config).read_text())
        values.pop("output")
    draw, began = random.Random(11), time.monotonic()
    process = start(tmp_path / "whole", values)
    process.join()
    assert process.exitcode == 0
    seconds = time.monotonic() - began
    output, kills = killed_course(tmp_path, values, sum(found(tmp_path / "whole")[:2]), seconds, draw)
    process = start(output, values)
    process.join()
    assert process.exitcode == 0
    for name in ("benchmark.json", "benchmark.md"):
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    # Files that a killed process left half-written are no part of a result.
    assert found(output)[:2] == found(tmp_path / "whole")[:2]
    if "MOSE_KILLS_RESULT" in os.environ:
        result = {
            "date": datetime.date.today().isoformat(),
            "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
            "models": sorted(values["models"]),
            "tasks": sorted(values["tasks"]),
            "data": "published files" if config else "made",
            "seed_of_kills": 11,
            "undisturbed_seconds": round(seconds, 1),
            "files_of_results": sum(found(output)[:2]),
            "kills": [asdict(kill) for kill in kills],
            "bytes_equal": True,
            "seconds": round(time.monotonic() - began, 1),
        }
        write_json(Path(os.environ["MOSE_KILLS_RESULT"]), result)

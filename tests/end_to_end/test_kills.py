"""Covers SIGKILL anywhere between repositories and a fine-tuned folder: the rows, weights and bytes of an undisturbed course.

`MOSE_SOAK_KILLS` (default 100) is the number of kills: 40 % while packing, 45 % while training and saving, 15 % in fine-tuning.
`MOSE_KILLS_RESULT=FILE` writes what was hit to FILE. A kill that comes when the work is done does not count.
"""

import datetime
import hashlib
import itertools
import json
import os
import platform
import random
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from data_prep.execution.pack import pack_dataset
from data_prep.pipeline.config import PackConfig
from finetune.config import RetrievalConfig
from mose.config import save_config
from mose.dataset.pairs import Pair, write_pairs
from mose.files.atomic_file import write_json
from mose.run_directory import RunDirectory
from pretrain.checkpoints.files import latest_checkpoint, read_checkpoint_manifest
from pretrain.monitoring.metrics import TIMING_KEYS
from tests.data_prep.kills import kill_and_restart
from tests.data_prep.repositories import checksums, make_config
from tests.pretrain.cells import tiny_config
from tests.pretrain.forked import POINTS, WAIT_SECONDS, Trouble, _context, run_forked, succeeds

KILLED = -9
STEPS = 24
TUNING_STEPS = 8
Rows = dict[int, list[int]]


def pack_course(folder: Path, kills: int) -> tuple[PackConfig, dict[str, Any]]:
    """Pack under kills; every data set that got complete has the bytes, and so the rows, of one packed in peace."""
    config = make_config(folder, 60, num_tasks=4, num_workers=2)
    calm = PackConfig(**{**config.__dict__, "output": str(folder / "calm")})
    pack_dataset(calm)
    report = kill_and_restart(config, folder, checksums(folder / "calm"), kills, seed=7)
    assert report.differences == []
    assert report.equal_data_sets == report.data_sets
    return calm, asdict(report)


def rows_by_step(log: Path) -> Rows:
    """The rows of each step; a step that was done again after a kill must have had the same."""
    rows: Rows = {}
    for line in log.read_text().splitlines():
        step, numbers = json.loads(line)
        assert rows.setdefault(step, numbers) == numbers, f"step {step} was done again with other rows"
    return rows


def end_of(run: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Every metric but those of speed, and the SHA-256 of each file of the last checkpoint."""
    lines = [{k: v for k, v in line.items() if k not in TIMING_KEYS} for line in RunDirectory(run).read_metrics()]
    latest = latest_checkpoint(run / "checkpoints")
    assert latest is not None
    return lines, read_checkpoint_manifest(latest)["files"]


def train_course(folder: Path, dataset: Path, kills: int) -> tuple[Path, dict[str, int]]:
    """Train under kills, half at random moments and half at each point of saving in turn."""
    save_config(tiny_config(dataset, micro_batch_rows=2), folder / "run.yaml")
    every = ("--intervals.log_every_steps", 1, "--intervals.checkpoint_every_steps", 2, "--intervals.keep_last_checkpoints", 2)

    def words(output: Path) -> tuple[object, ...]:
        return ("train", "--config", folder / "run.yaml", "--output", output, "--max_steps", STEPS, *every)

    calm = run_forked(*words(folder / "calm-run"), trouble=Trouble(rows_log=str(folder / "calm.rows")))
    assert calm.code == 0, calm.output[-2000:]
    rng, points, hit = random.Random(11), itertools.cycle(POINTS), {"anywhere": 0}
    for course in itertools.count():
        output, log, finished = folder / f"run-{course}", folder / f"{course}.rows", False
        while not finished and sum(hit.values()) < kills:
            point, delay = "", None
            if rng.random() < 0.5:
                delay = rng.uniform(0.2, 1) * calm.seconds
            else:
                point = next(points)
            trouble = Trouble(point, rng.randint(1, 3), rows_log=str(log))
            outcome = run_forked(*words(output), trouble=trouble, kill_after_seconds=delay)
            assert outcome.code in (0, KILLED), outcome.output[-2000:]
            finished = outcome.code == 0
            if not finished:
                hit[point or "anywhere"] = hit.get(point or "anywhere", 0) + 1
        assert run_forked(*words(output), trouble=Trouble(rows_log=str(log))).code == 0
        assert end_of(output) == end_of(folder / "calm-run")
        assert rows_by_step(log) == rows_by_step(folder / "calm.rows")
        if sum(hit.values()) >= kills:
            break
    return output, hit


def _tune(config: RetrievalConfig, log: str) -> None:
    from finetune.retrieval import train

    original = train.Examples.at

    def logged(examples: Any, step: int) -> Any:
        batch = original(examples, step)
        with Path(log).open("a") as file:
            file.write(json.dumps([step, [hashlib.sha256(repr(batch).encode()).hexdigest()]]) + "\n")
        return batch

    train.Examples.at = logged  # type: ignore[method-assign]
    train.train(config)


def tune(config: RetrievalConfig, log: Path, kill_after_seconds: float | None = None) -> tuple[int, float]:
    process = _context().Process(target=_tune, args=(config, str(log)))
    began = time.monotonic()
    process.start()
    process.join(kill_after_seconds or WAIT_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode, time.monotonic() - began


def tuning_course(folder: Path, model: Path, kills: int) -> int:
    """Fine-tune under kills. It keeps no checkpoints: a killed run leaves no folder that looks finished, and is done again."""
    pairs = [Pair(f"return the value number {n}", f"def f_{n}(x):\n    return {n}", "Python") for n in range(24)]
    write_pairs(folder / "pairs.parquet", pairs)

    def config(output: str) -> RetrievalConfig:
        places = {"checkpoint": str(model), "pairs": str(folder / "pairs.parquet"), "output": str(folder / output)}
        return RetrievalConfig(**places, steps=TUNING_STEPS, batch_pairs=8, chunk_pairs=2, log_every_steps=1, device="cpu")

    code, seconds = tune(config("calm-tuned"), folder / "calm.batches")
    assert code == 0
    rng, done = random.Random(13), 0
    weights = "checkpoint/model.safetensors"
    while True:
        output = folder / "tuned"
        shutil.rmtree(output, ignore_errors=True)
        code, _ = tune(config("tuned"), folder / "tuned.batches", rng.uniform(0.1, 1) * seconds if done < kills else None)
        assert code in (0, KILLED)
        done += code == KILLED
        if code == KILLED and (output / "checkpoint").exists():
            assert (output / weights).read_bytes() == (folder / "calm-tuned" / weights).read_bytes()
        if code == 0:
            assert (output / weights).read_bytes() == (folder / "calm-tuned" / weights).read_bytes()
            assert rows_by_step(folder / "tuned.batches") == rows_by_step(folder / "calm.batches")
            if done >= kills:
                return done


@pytest.mark.soak
def test_kills_from_repositories_to_a_fine_tuned_folder(tmp_path: Path) -> None:
    total = int(os.environ.get("MOSE_SOAK_KILLS", "100"))
    packing, tuning = round(0.4 * total), round(0.15 * total)
    began = time.monotonic()
    config, packed = pack_course(tmp_path, packing)
    run, trained = train_course(tmp_path, Path(config.output), total - packing - tuning)
    succeeds("export", run, "--output", tmp_path / "exported")
    tuned = tuning_course(tmp_path, tmp_path / "exported", tuning)
    kills = packed["kills"] + sum(trained.values()) + tuned
    assert kills >= total
    if "MOSE_KILLS_RESULT" in os.environ:
        values = {
            "date": datetime.date.today().isoformat(),
            "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
            "kills": kills,
            "pack": packed,
            "train": trained,
            "fine_tune": tuned,
            "row_ids_equal": True,
            "seconds": round(time.monotonic() - began),
        }
        write_json(Path(os.environ["MOSE_KILLS_RESULT"]), values)

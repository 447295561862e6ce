"""Clone detection at each exit from pre-trained and from random weights of the same shape, over seeds, on BigCloneBench's files.

Both have the same recipe, steps and batches; F1 of always "clone" is the baseline. The validation file is halved: odd lines
choose the threshold, even lines are scored. A finished run is not repeated, so the same command continues where it was killed.

python -m benchmarks.classification_parts.clones --checkpoint FOLDER --data FOLDER --work FOLDER [--output FILE.json]
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from finetune.checkpoints import AUTO
from finetune.classification.train import train
from finetune.config import ClassificationConfig
from mose.checkpoint.converted_checkpoint import read_model_config
from mose.command import STOPPED
from mose.files.atomic_file import write_json, write_text
from mose.files.json_file import parse_json
from mose.run_directory import EVALUATION_NAME

SCORES = ("precision", "recall", "f1", "accuracy")
STARTS = {"pre-trained": False, "random": True}
PLACES = ("checkpoint", "train", "validation", "test", "functions", "output", "seed", "from_random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="converted pre-training checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="folder with bigclonebench_{functions.jsonl.gz,*_pairs.txt}")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch_rows", type=int, default=32)
    parser.add_argument("--max_length", type=int, default=256)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = recipe_of(arguments)
    found: dict[str, list[dict[str, Any]]] = {start: [] for start in STARTS}
    # Seed after seed, so that a command that is killed leaves whole comparisons behind.
    for seed in range(arguments.seeds):
        for start, from_random in STARTS.items():
            found[start].append(run(replace(recipe, seed=seed, from_random=from_random), arguments.work))
        figures = report(found, arguments, recipe)
        if arguments.output:
            write_json(arguments.output, figures)
    print(json.dumps(figures, indent=1))


def recipe_of(arguments: argparse.Namespace) -> ClassificationConfig:
    """The sizes of the command, and the two halves of the validation file."""
    lines = (arguments.data / "bigclonebench_valid_pairs.txt").read_text("utf-8").splitlines(keepends=True)
    halves = {"validation": lines[::2], "test": lines[1::2]}
    arguments.work.mkdir(parents=True, exist_ok=True)
    for name, half in halves.items():
        write_text(arguments.work / f"{name}.txt", "".join(half))
    return ClassificationConfig(
        checkpoint=str(arguments.checkpoint),
        train=str(arguments.data / "bigclonebench_train_pairs.txt"),
        functions=str(arguments.data / "bigclonebench_functions.jsonl.gz"),
        output="",
        **{name: str(arguments.work / f"{name}.txt") for name in halves},
        steps=arguments.steps,
        batch_rows=arguments.batch_rows,
        learning_rate=arguments.learning_rate,
        warmup_steps=arguments.steps // 10,
        decay="linear",
        max_length=arguments.max_length,
        checkpoint_every_steps=0,
        validate_every_steps=0,
        device="cpu",
    )


def run(config: ClassificationConfig, work: Path) -> dict[str, Any]:
    """The scores of the test half after the last step, by exit, as evaluation.json has them."""
    folder = work / f"seed{config.seed}_{'random' if config.from_random else 'pretrained'}"
    if not (folder / EVALUATION_NAME).exists() or (folder / "checkpoints").exists():
        if not train(replace(config, output=str(folder)), AUTO):
            sys.exit(STOPPED)
        # Only the scores are read again.
        shutil.rmtree(folder / "checkpoints")
    scores: dict[str, Any] = parse_json((folder / EVALUATION_NAME).read_bytes())["test"]
    return scores


def report(found: dict[str, list[dict[str, Any]]], arguments: argparse.Namespace, recipe: ClassificationConfig) -> dict[str, Any]:
    """Mean, deviation and each seed's value of every score, start and exit, and the differences of the starts by seed."""
    exits = list(found["pre-trained"][0]["exits"])

    def values(start: str, exit_name: str, kind: str, score: str) -> list[float]:
        return [scores["exits"][exit_name][kind][score] for scores in found[start]]

    table = {
        kind: {start: {name: {s: summary(values(start, name, kind, s)) for s in SCORES} for name in exits} for start in STARTS}
        for kind in ("argmax", "with_threshold")
    }
    starts = {name: [values(start, name, "argmax", "f1") for start in STARTS] for name in exits}
    config = read_model_config(arguments.checkpoint)
    return {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores (1 thread used), {platform.processor() or platform.machine()}, no GPU",
        "seeds": len(found["pre-trained"]),
        "test_rows": found["pre-trained"][0]["rows"],
        "recipe": {name: value for name, value in asdict(recipe).items() if name not in PLACES},
        "model": {name: getattr(config, name) for name in ("hidden_size", "num_hidden_layers")},
        "scores": table,
        "always_clone": found["pre-trained"][0]["constant"],
        "f1_pre_trained_minus_random": {
            name: summary([a - b for a, b in zip(*both, strict=True)]) for name, both in starts.items()
        },
    }


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean over seeds, the deviation of one seed, and each."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": deviation, "seeds": list(values)}


if __name__ == "__main__":
    main()

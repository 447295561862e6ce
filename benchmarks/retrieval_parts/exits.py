"""MRR of each exit fine-tuned with all others, beside the same exit fine-tuned alone, and both from random weights; over seeds.

Every fine-tuning has the same recipe, steps and texts. Descriptions, not pairs, are held out. A finished run is not repeated,
so the same command continues where it was killed.

python -m benchmarks.retrieval_parts.exits --checkpoint FOLDER --pairs FILE.parquet --work FOLDER [--output FILE.json]
"""

import argparse
import datetime
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.checkpoints import AUTO
from finetune.config import RetrievalConfig
from finetune.evaluation.embedding import embed_rows
from finetune.evaluation.metrics import Score, bootstrap_over_seeds
from finetune.retrieval.prompts import encode_prompts
from finetune.retrieval.train import CHECKPOINT_NAME, train
from finetune.retrieval.validation import Validation
from mose.checkpoint.converted_checkpoint import load_retrieval, read_model_config
from mose.command import STOPPED
from mose.dataset.pairs import read_pairs, write_pairs
from mose.files.atomic_file import write_json
from mose.files.json_file import parse_json
from mose.seeding import generator
from mose.tokenizer import load_tokenizer

HELD_OUT_SHARE = 0.15
RUN_FIELDS = ("checkpoint", "pairs", "output", "seed")
CPU = torch.device("cpu")
STARTS = {"pre-trained": False, "random": True}
ALL, TOGETHER, BETWEEN_STARTS = "all exits", "all exits minus the exit alone", "pre-trained minus random, all exits"
Values = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="converted pre-training checkpoint")
    parser.add_argument("--pairs", type=Path, required=True, help="parquet file of pairs or triplets")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch_pairs", type=int, default=96)
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--queries", type=int, default=1000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    split = split_by_description(arguments.pairs, arguments.work)
    recipe = recipe_of(arguments, split)
    held_out = Validation.of(read_pairs(split, "held_out"), arguments.queries, seed=0)
    exits = list(read_model_config(arguments.checkpoint).exit_layers)
    # Seed after seed, so that a command that is killed leaves whole comparisons behind.
    values: dict[str, list[dict[str, Values]]] = {}
    for seed in range(arguments.seeds):
        for start, from_random in STARTS.items():
            for exit_layer in (0, *exits):
                config = replace(recipe, seed=seed, from_random=from_random, exit_layer=exit_layer)
                name = alone(start, exit_layer) if exit_layer else f"{start}, {ALL}"
                values.setdefault(name, []).append(run(config, arguments.work, held_out))
        figures = report(values, arguments, recipe, held_out)
        if arguments.output:
            write_json(arguments.output, figures)
    print("\n".join(table_lines(figures)))


def split_by_description(pairs: Path, work: Path) -> Path:
    """The pairs with a share of the descriptions, and all their codes, held out."""
    path = work / "pairs.parquet"
    if not path.exists():
        found = read_pairs(pairs)
        texts = sorted({pair.nl for pair in found})
        drawn = generator(0, "held-out descriptions").permutation(len(texts))[: round(HELD_OUT_SHARE * len(texts))]
        held_out = {texts[index] for index in drawn.tolist()}
        work.mkdir(parents=True, exist_ok=True)
        write_pairs(path, [replace(pair, split="held_out" if pair.nl in held_out else "train") for pair in found])
    return path


def recipe_of(arguments: argparse.Namespace, pairs: Path) -> RetrievalConfig:
    """The quickstart's recipe (configs/quickstart/retrieval.yaml) with the sizes of the command."""
    return RetrievalConfig(
        checkpoint=str(arguments.checkpoint),
        pairs=str(pairs),
        output="",
        steps=arguments.steps,
        batch_pairs=arguments.batch_pairs,
        chunk_pairs=arguments.batch_pairs,
        learning_rate=arguments.learning_rate,
        warmup_steps=min(10, arguments.steps // 4),
        decay="linear",
        embedding_learning_rate_factor=5.0,
        head_learning_rate_factor=0.1,
        head_start="whitening",
        logit_scale=20.0,
        max_length=arguments.max_length,
        log_every_steps=20,
        checkpoint_every_steps=0,
        validate_every_steps=0,
        device="cpu",
    )


def run(config: RetrievalConfig, work: Path, held_out: Validation) -> dict[str, Values]:
    """Reciprocal rank of each held-out query [Q] at each exit, by the exit's layer."""
    start = "random" if config.from_random else "pretrained"
    folder = work / f"seed{config.seed}_{start}_{f'exit{config.exit_layer:02d}' if config.exit_layer else 'all'}"
    scores = folder / "reciprocal_ranks.json"
    if not scores.exists():
        if not train(replace(config, output=str(folder)), AUTO):
            sys.exit(STOPPED)
        model, tokenizer = load_retrieval(folder / CHECKPOINT_NAME), load_tokenizer(folder / CHECKPOINT_NAME)
        rows = encode_prompts(tokenizer, [*held_out.queries, *held_out.codes], config.max_length)
        tables = embed_rows(model, rows, 16_384, CPU, bf16=False)
        ranked = {
            str(layer): held_out.reciprocal_ranks(torch.from_numpy(table)).tolist()
            for layer, table in zip(model.config.exit_layers, tables, strict=True)
        }
        write_json(scores, ranked)
        # Only the scores are read again; weights and optimiser of dozens of runs would fill a disk.
        shutil.rmtree(folder / "checkpoints")
    return {layer: np.array(values) for layer, values in parse_json(scores.read_bytes()).items()}


def report(
    values: dict[str, list[dict[str, Values]]], arguments: argparse.Namespace, recipe: RetrievalConfig, held_out: Validation
) -> dict[str, Any]:
    """MRR of every way and exit with its interval over seeds and descriptions, and the paired differences of the ways."""
    texts = [query.text for query in held_out.queries]

    def score(values_SQ: Values) -> dict[str, Any]:
        found: Score = bootstrap_over_seeds(values_SQ, 0, texts)
        return asdict(found) | {"seeds": values_SQ.mean(axis=1).tolist()}

    together = {name: stacked(runs) for name, runs in values.items()}
    table = {name: {layer: score(values_SQ) for layer, values_SQ in by_exit.items()} for name, by_exit in together.items()}
    differences: dict[str, dict[str, Any]] = {BETWEEN_STARTS: {}}
    for start in STARTS:
        differences[f"{start}, {TOGETHER}"] = {
            layer: score(whole_SQ - together[alone(start, layer)][layer])
            for layer, whole_SQ in together[f"{start}, {ALL}"].items()
        }
    for layer, whole_SQ in together[f"pre-trained, {ALL}"].items():
        differences[BETWEEN_STARTS][layer] = score(whole_SQ - together[f"random, {ALL}"][layer])
    return {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores (1 thread used), {platform.processor() or platform.machine()}, no GPU",
        "seeds": len(next(iter(values.values()))),
        "queries": len(held_out.queries),
        "descriptions": len(set(texts)),
        "codes": len(held_out.codes),
        "recipe": {
            name: value for name, value in asdict(recipe).items() if name not in ("checkpoint", "pairs", "output", "seed")
        },
        "model": {name: getattr(read_model_config(arguments.checkpoint), name) for name in ("hidden_size", "num_hidden_layers")},
        "mrr": table,
        "differences": differences,
    }


def alone(start: str, exit_layer: int | str) -> str:
    """The name of a single-exit fine-tuning."""
    return f"{start}, exit {exit_layer} alone"


def table_lines(figures: dict[str, Any]) -> list[str]:
    """The table of docs/finetuning.md."""
    head = ["start", "exit", "all exits at once", "this exit alone", "difference"]
    rows = [head, ["---"] * len(head)]
    for start in STARTS:
        for layer, whole in figures["mrr"][f"{start}, {ALL}"].items():
            single, difference = figures["mrr"][alone(start, layer)][layer], figures["differences"][f"{start}, {TOGETHER}"][layer]
            rows.append([start, layer, cell(whole), cell(single), cell(difference, "+")])
    for layer, difference in figures["differences"][BETWEEN_STARTS].items():
        rows.append(["pre-trained minus random", layer, cell(difference, "+"), "", ""])
    return [f"| {' | '.join(row)} |" for row in rows]


def cell(score: dict[str, Any], sign: str = "") -> str:
    """A score with its interval."""
    low, high = score["interval"]
    return f"{score['value']:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def stacked(runs: Sequence[dict[str, Values]]) -> dict[str, Values]:
    """[S, Q] of each exit from each seed's [Q]."""
    return {layer: np.stack([run[layer] for run in runs]) for layer in runs[0]}


if __name__ == "__main__":
    main()

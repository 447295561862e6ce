"""What `mose-finetune choose-exit` finds: time and size of each exit, and the exit for some budgets. One thread, wall time,
medians of passes in which the exits take turns.

python -m benchmarks.choose_exit --checkpoint FINE_TUNED --evaluation SCORES [--width 256] [--output benchmarks/results/FILE.json]
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.embedding import write_deep
from finetune.embedding.encoder import Encoder
from finetune.embedding.exit_costs import ExitCost, measure_exits, recommend, with_scores
from mose.checkpoint.converted_checkpoint import read_model_config

TOKENS, BATCH_TEXTS = 128, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="A fine-tuned folder; also gives the tokenizer.")
    parser.add_argument("--evaluation", type=Path, required=True, help="Its evaluation.json.")
    parser.add_argument("--width", type=int, default=256, help="Of the 36-layer model; the 1B model has 1,024.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    settings = {"threads": 1, "tokens": TOKENS, "batch_texts": BATCH_TEXTS, "repeats": options.repeats, "seed": 0}
    found: dict[str, Any] = {"date": str(datetime.date.today()), "machine": machine, **settings}
    scored = with_scores(costs_of(options.checkpoint, options.repeats), options.evaluation, "mrr")
    found["fine_tuned_folder"] = result(scored)
    with tempfile.TemporaryDirectory() as place:
        write_deep(Path(place) / "deep", options.checkpoint, options.width)
        deep = costs_of(Path(place) / "deep", options.repeats)
    found["deep_model"] = {"shape": f"36 layers of width {options.width}, random weights, no scores", **result(deep)}
    print(json.dumps(found, indent=1))
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")


def costs_of(folder: Path, repeats: int) -> list[ExitCost]:
    """The costs of all exits of a fine-tuned folder, on one thread."""
    encoder = Encoder.from_pretrained(folder, read_model_config(folder).computed_exit_layers, device="cpu", threads=1)
    return measure_exits(encoder, TOKENS, BATCH_TEXTS, repeats)


def result(costs: list[ExitCost]) -> dict[str, Any]:
    """The costs, and what is recommended without a budget and for the time of each exit."""
    budgets = {"none": 0.0} | {f"{cost.query_ms * 1.01:.3f} ms per query": cost.query_ms * 1.01 for cost in costs}
    choices = {name: dataclasses.asdict(recommend(costs, budget, 0.0)) for name, budget in budgets.items()}
    return {"exits": [dataclasses.asdict(cost) for cost in costs], "recommendation_by_budget": choices}


if __name__ == "__main__":
    main()

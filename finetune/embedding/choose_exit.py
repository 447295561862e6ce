"""`mose-finetune choose-exit`: time and size of each exit on this machine, and the exit for a budget."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from finetune.embedding.config import ChooseExitConfig
from finetune.embedding.encoder import Encoder
from finetune.embedding.exit_costs import ExitCost, Recommendation, measure_exits, recommend, with_scores
from mose.checkpoint.converted_checkpoint import read_model_config


def choose_exit(config: ChooseExitConfig) -> None:
    """Measure, recommend, and print a table or JSON.

    Raises:
        MoseError: the checkpoint or the evaluation cannot be used.
    """
    known = read_model_config(Path(config.checkpoint)).computed_exit_layers
    encoder = Encoder.from_pretrained(
        config.checkpoint, config.exits or known, device=config.device, dtype=config.dtype, threads=config.threads
    )
    tokens = config.tokens or min(128, encoder.max_length)
    costs = measure_exits(encoder, tokens, config.batch_texts, config.repeats)
    if config.evaluation:
        costs = with_scores(costs, Path(config.evaluation), config.score)
    choice = recommend(costs, config.budget_ms, config.queries_per_second)
    threads = config.threads or torch.get_num_threads()
    if config.json:
        values = {"device": str(encoder.device), "threads": threads, "tokens": tokens, "batch_texts": config.batch_texts}
        found = {**values, "exits": [dataclasses.asdict(cost) for cost in costs], "recommendation": dataclasses.asdict(choice)}
        print(json.dumps(found, indent=1))
        return
    print(f"{encoder.device}, {threads} threads, {config.dtype}; texts of {tokens} tokens, batches of {config.batch_texts}")
    print("\n".join(_lines(costs, choice, config.score)))


def _lines(costs: Sequence[ExitCost], choice: Recommendation, score: str) -> Iterator[str]:
    scored = costs[0].score is not None
    yield f"{'exit':>4}  {'parameters':>11}  {'MB':>8}  {'GFLOPs':>8}  {'ms/query':>9}  {'p95':>8}  {'texts/s':>9}" + (
        f"  {score}" if scored else ""
    )
    for cost in costs:
        interval = f" [{cost.score_interval[0]:.3f}, {cost.score_interval[1]:.3f}]" if cost.score_interval else ""
        yield (
            f"{cost.layer:>4}  {cost.parameters / 1e6:>10.2f}M  {cost.megabytes:>8.1f}  {cost.gflops_per_text:>8.3f}  "
            f"{cost.query_ms:>9.2f}  {cost.query_ms_p95:>8.2f}  {cost.texts_per_second:>9,.0f}"
            f"{f'  {cost.score:.3f}{interval}' if cost.score is not None else ''}"
        )
    yield f"exit {choice.layer}: {choice.reason}" if choice.layer is not None else choice.reason

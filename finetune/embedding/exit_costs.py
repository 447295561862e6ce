"""What each exit of a model costs on this machine: time for one query, texts per second, size; and its score, if one is known."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.batches import PackedBatch, pack_rows
from finetune.embedding.encoder import Encoder
from finetune.retrieval.forward import embed_batch
from mose.errors import MoseError
from mose.files.json_file import parse_json
from mose.model.size import encoder_parameters, flops_per_row
from mose.seeding import generator


@dataclass(frozen=True)
class ExitCost:
    """One exit: its size, its cost by the shape, and its times on this machine."""

    layer: int
    parameters: int
    """Of the model that ends at this exit, its head included."""
    megabytes: float
    """Of its weights in memory."""
    gflops_per_text: float
    query_ms: float
    """Median time of one text, model only: tokenising takes microseconds."""
    query_ms_p95: float
    texts_per_second: float
    score: float | None = None
    score_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Recommendation:
    """The exit that fits the budget best, and why; None where no exit fits."""

    layer: int | None
    reason: str


def measure_exits(encoder: Encoder, tokens: int, batch_texts: int, repeats: int) -> list[ExitCost]:
    """Time each of the encoder's exits on texts of `tokens` random tokens."""
    draw = generator(0, "exit costs")
    ids = encoder.tokenizer.ordinary_ids()
    rows = [draw.choice(ids, size=tokens) for _ in range(batch_texts)]
    one, batch = pack_rows(rows[:1]).to(encoder.device), pack_rows(rows).to(encoder.device)
    alone: dict[int, list[float]] = {layer: [] for layer in encoder.exits}
    together: dict[int, list[float]] = {layer: [] for layer in encoder.exits}
    # The first round warms caches and kernels up, and is not counted.
    for turn in range(repeats + 1):
        for layer in encoder.exits:
            times = [_seconds(encoder, each, layer) for each in (one, batch)]
            if turn:
                alone[layer].append(times[0])
                together[layer].append(times[1])
    config, size = encoder.model.config, next(encoder.model.parameters()).element_size()
    costs = []
    for layer in encoder.exits:
        width = encoder.width
        parameters = encoder_parameters(config, layer) + 2 * (width * width + width)
        gflops = flops_per_row(config, layer, tokens) / 1e9
        query, p95 = np.percentile(alone[layer], [50, 95]) * 1e3
        rate = batch_texts / float(np.median(together[layer]))
        costs.append(ExitCost(layer, parameters, parameters * size / 1e6, gflops, float(query), float(p95), rate))
    return costs


def _seconds(encoder: Encoder, batch: PackedBatch, layer: int) -> float:
    with torch.inference_mode(), encoder.limited_threads():
        started = time.perf_counter()
        for embeddings_BD in embed_batch(encoder.model, batch, (layer,)):
            embeddings_BD.cpu()  # waits for a GPU
        return time.perf_counter() - started


def with_scores(costs: Sequence[ExitCost], path: Path, score: str) -> list[ExitCost]:
    """The costs with each exit's score from an evaluation.json.

    Raises:
        MoseError: the file cannot be read, has no such score, or lacks an exit.
    """
    try:
        values: Any = parse_json(path.read_bytes())
    except ValueError as error:
        raise MoseError(f"{path}: not JSON: {error}") from None
    exits = values.get("exits") if isinstance(values, dict) else None
    rows = [row for row in exits.values() if isinstance(row, dict)] if isinstance(exits, dict) else []
    found = []
    for cost in costs:
        row = next((row for row in rows if row.get("layer") == cost.layer), None)
        if row is None:
            there = [row.get("layer") for row in rows]
            raise MoseError(f"{path}: exits: {there}, expected exit {cost.layer} among them: an evaluation of another model?")
        entry = row.get(score)
        value = entry.get("value") if isinstance(entry, dict) else entry
        if isinstance(value, bool) or not isinstance(value, int | float):
            names = ", ".join(sorted(name for name in row if isinstance(row[name], dict)))
            raise MoseError(f"{path}: exit {cost.layer}: {score}: {str(value)[:60]}, expected a number; it has: {names}")
        interval = entry.get("interval") if isinstance(entry, dict) else None
        bounds = tuple(interval) if isinstance(interval, list) and len(interval) == 2 else None
        found.append(dataclasses.replace(cost, score=float(value), score_interval=bounds))
    return found


def recommend(costs: Sequence[ExitCost], budget_ms: float, queries_per_second: float) -> Recommendation:
    """The best exit within the budget: by score where there is one, else the deepest; 0 sets no limit."""
    fits = [
        cost
        for cost in costs
        if (not budget_ms or cost.query_ms <= budget_ms)
        and (not queries_per_second or cost.texts_per_second >= queries_per_second)
    ]
    if not fits:
        least = costs[0]
        cheapest = f"exit {least.layer} needs {least.query_ms:.1f} ms and embeds {least.texts_per_second:,.0f} texts per second"
        return Recommendation(None, f"no exit fits: {cheapest}")
    scored = [cost for cost in fits if cost.score is not None]
    if not scored:
        return Recommendation(
            fits[-1].layer, "the deepest that fits; an evaluation.json would tell whether a shallower one is as good"
        )
    best = max(scored, key=lambda cost: (cost.score or 0.0, -cost.layer))
    low = best.score_interval[0] if best.score_interval else best.score
    cheaper = next(cost for cost in scored if cost is best or (cost.score or 0.0) >= (low or 0.0))
    reason = f"the best score that fits, {best.score:.3f}"
    if cheaper.layer < best.layer:
        share = f"exit {cheaper.layer} takes {cheaper.query_ms / best.query_ms:.0%} of its time"
        reason += f"; {share}, and its score, {cheaper.score:.3f}, lies within the interval of the best"
    return Recommendation(best.layer, reason)

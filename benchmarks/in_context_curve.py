"""How many repositories the in-context task needs before rows of new repositories are distinguished: a learning curve.

Child folders of one folder are the repositories. 15 % of them are held out, the same for every point of the curve; the others
are taken in a fixed order, 50, 100, ... of them, each cut so that all points have about equally many tokens. Three things are
scored on rows of the held-out repositories: cosines of TF-IDF vectors with one threshold, which know no repository; a model of
row means, all that an `averaging` encoder sees at its start; and, with --encoder_steps, the quickstart's encoder itself.

python -m benchmarks.in_context_curve --folder FOLDER --tokenizer quickstart/tokenizer --work DIR
    [--counts 50,100,200,400,800] [--seeds 0,1,2] [--encoder_steps 3000 --encoder_counts 100,800]
    [--output benchmarks/results/FILE.json] [--plot FILE.png]

Letters: R rows, T slots, V vocabulary, D width, B rows of a batch, P snippets of a row.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot
from torch import Tensor, nn
from torch.nn import functional

from data_prep.execution.pack import pack_dataset
from data_prep.packing.config import PackingConfig
from data_prep.pipeline.config import PackConfig
from data_prep.sources.registry import SourcesConfig
from data_prep.sources.repositories import HELD_OUT, split_of
from mose.dataset.packed_sequence import TOKENS, SpecialTokens, snippet_bounds
from mose.files.atomic_file import write_json
from mose.seeding import derive_key
from mose.tokenizer import load_tokenizer
from pretrain.storage.local_rows import LocalRows

HELD_OUT_FRACTION, HELD_OUT_BYTES, SMALLEST_BYTES = 0.15, 60_000, 20_000
BATCH_ROWS, RATE, WARMUP_STEPS = 8, 2e-4, 60
# Options that name files of the machine, which a result leaves out.
PLACES = ("folder", "tokenizer", "work", "output", "plot")


@dataclass(frozen=True)
class Split:
    """Rows of one split: tokens [R, T], and whether each row mixes two repositories [R]."""

    tokens_RT: TOKENS
    mixed_R: np.ndarray[Any, np.dtype[np.bool_]]


class RowMeans(nn.Module):
    """An encoder's first layer under uniform attention, as `<cls>` sees it: token means, feed-forward layer, the task's head."""

    def __init__(self, vocabulary_size: int, width: int, seed: int):
        """Normal weights as the encoder's: deviation .577 / sqrt(width); an orthogonal map of the mean."""
        super().__init__()
        torch.manual_seed(seed)
        deviation = 0.577 * width**-0.5
        self.embedding_VD = nn.Parameter(torch.randn(vocabulary_size, width) * deviation)
        self.classification_D = nn.Parameter(torch.randn(width) * deviation)
        self.mean = nn.Linear(width, width)
        nn.init.orthogonal_(self.mean.weight)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        nn.init.normal_(self.narrow.weight, std=0.01 * (4 * width) ** -0.5)
        self.norm, self.last_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.pooler, self.classifier = nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, shares_BV: Tensor) -> Tensor:
        """Logits [B, 2] of unmixed and mixed, from the share of each token in its row."""
        tokens_VD = functional.layer_norm(self.embedding_VD, self.embedding_VD.shape[1:])
        state_BD = self.classification_D + self.mean(shares_BV @ tokens_VD)
        state_BD = state_BD + self.narrow(functional.gelu(self.wide(self.norm(state_BD))))
        logits_B2: Tensor = self.classifier(torch.tanh(self.pooler(self.last_norm(state_BD))))
        return logits_B2


def token_shares(tokens_RT: TOKENS, special: SpecialTokens, vocabulary_size: int) -> Tensor:
    """The share of each ordinary token in each row [R, V]."""
    counts_RV = np.stack([np.bincount(row_T, minlength=vocabulary_size) for row_T in tokens_RT]).astype(np.float32)
    counts_RV[:, [special.pad, special.sep, special.cls]] = 0
    return torch.from_numpy(counts_RV / np.maximum(counts_RV.sum(1, keepdims=True), 1))


def train_means(train_RV: Tensor, mixed_R: Tensor, width: int, rows: int, seed: int) -> RowMeans:
    """A model of row means after `rows` rows in random order: warm-up, then a line to zero."""
    model = RowMeans(train_RV.shape[1], width, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    order_R = torch.randperm(len(train_RV), generator=torch.Generator().manual_seed(seed))
    for step in range(rows // BATCH_ROWS):
        batch_B = order_R[torch.arange(step * BATCH_ROWS, (step + 1) * BATCH_ROWS) % len(order_R)]
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / WARMUP_STEPS) * (1 - step * BATCH_ROWS / rows)
        optimizer.zero_grad()
        functional.cross_entropy(model(train_RV[batch_B]), mixed_R[batch_B]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


@torch.no_grad()
def accuracy(model: RowMeans, shares_RV: Tensor, mixed_R: Tensor) -> float:
    """Share of rows whose label the model gives."""
    return float((model(shares_RV).argmax(1) == mixed_R).float().mean())


def lexical_features(split: Split, special: SpecialTokens, weights_V: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Mean TF-IDF cosine of neighbouring snippets, and of all pairs, for each row [R]."""
    found: dict[str, list[float]] = {"neighbouring snippets": [], "all pairs of snippets": []}
    for row_T in split.tokens_RT:
        bounds = snippet_bounds(row_T, int((row_T != special.pad).sum()), special)
        counts_PV = np.stack([np.bincount(row_T[start:stop], minlength=len(weights_V)) for start, stop in bounds])
        vectors_PV = np.log1p(counts_PV) * weights_V
        vectors_PV /= np.maximum(np.linalg.norm(vectors_PV, axis=1, keepdims=True), 1e-9)
        cosines_PP = vectors_PV @ vectors_PV.T
        several = len(bounds) > 1
        found["neighbouring snippets"].append(float(np.diag(cosines_PP, 1).mean()) if several else 0.0)
        found["all pairs of snippets"].append(float(cosines_PP[np.triu_indices(len(bounds), 1)].mean()) if several else 0.0)
    return {name: np.array(values) for name, values in found.items()}


def threshold_accuracy(train_R: Any, mixed_R: Any, held_out_R: Any, held_out_mixed_R: Any) -> float:
    """Held-out accuracy of "mixed if below", with the threshold that is best on training rows."""
    candidates = np.quantile(train_R, np.linspace(0.02, 0.98, 97))
    best = max(candidates, key=lambda value: float(np.mean((train_R < value) == mixed_R)))
    return float(np.mean((held_out_R < best) == held_out_mixed_R))


def repositories_of(folder: Path) -> tuple[list[Path], list[Path]]:
    """Training and held-out folders with enough Python text, in the order of a hash of their names."""
    found: dict[bool, list[Path]] = {True: [], False: []}
    for child in sorted(folder.iterdir(), key=lambda path: derive_key(0, "in_context_curve", path.name)):
        if sum(path.stat().st_size for path in child.rglob("*.py")) >= SMALLEST_BYTES:
            found[split_of(child.name, 0, HELD_OUT_FRACTION) == HELD_OUT].append(child)
    return found[False], found[True]


def pack(output: Path, tokenizer: str, folders: Sequence[Path], most_bytes: int, packing: PackingConfig) -> Split:
    """Rows of these repositories, at most `most_bytes` of each; a folder packed before is read again."""
    sources = SourcesConfig(repositories=tuple(map(str, folders)), include_suffixes=(".py",), max_repository_bytes=most_bytes)
    pack_dataset(PackConfig(str(output), tokenizer, sources=sources, packing=packing, num_tasks=1, held_out_fraction=0.0))
    rows = LocalRows(output, "train")
    numbers_R = np.arange(len(rows))
    split = Split(rows.tokens(numbers_R), np.asarray(rows.labels(numbers_R).mixed, dtype=bool))
    rows.close()
    return split


def encoder_scores(work: Path, dataset: Path, held_out: Path, length: int, steps: int, seed: int) -> dict[str, Any]:
    """Pre-train the quickstart's encoder on one point of the curve and evaluate it on the held-out repositories."""
    run, exported, result = work / "run", work / "exported", work / "held_out.json"
    command = [sys.executable, "-m", "pretrain.cli"]
    options = {
        "config": "configs/quickstart/pretrain.yaml",
        "data.dataset": dataset,
        "model.max_length": length,
        "max_steps": steps,
        "schedule.zero_at_step": steps,
        "batch.micro_batch_rows": 16,
        "intervals.validate_every_steps": 0,
        "intervals.validation_rows": 0,
        "output": run,
        "seed": seed,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    subprocess.run([*command, "train", *words], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*command, "export", str(run), "--output", str(exported)], check=True, stdout=subprocess.DEVNULL)
    evaluate = ["evaluate", "--checkpoint", str(exported), "--dataset", str(held_out), "--split", "train"]
    subprocess.run([*command, *evaluate, "--max-rows", "4096", "--output", str(result)], check=True, stdout=subprocess.DEVNULL)
    scores: dict[str, Any] = json.loads(result.read_text())
    return scores


def measure_point(arguments: argparse.Namespace, folders: Sequence[Path], held_out: Split) -> dict[str, Any]:
    """Every score with `folders` as the training repositories, their text cut so that all points have equally much."""
    tokenizer = load_tokenizer(Path(arguments.tokenizer))
    special, size, work = tokenizer.special, tokenizer.vocabulary_size, Path(arguments.work)
    packing = PackingConfig(sequence_length=arguments.sequence_length, piece_tokens=arguments.piece_tokens)
    dataset = work / f"train_{len(folders)}"
    train = pack(dataset, arguments.tokenizer, folders, arguments.text_bytes // len(folders), packing)
    shares_RV, held_out_RV = (token_shares(split.tokens_RT, special, size) for split in (train, held_out))
    labels_R, held_out_labels_R = (torch.from_numpy(split.mixed_R.astype(np.int64)) for split in (train, held_out))
    sample = Split(train.tokens_RT[:8000], train.mixed_R[:8000])
    weights_V = np.log(1 / np.maximum((shares_RV > 0).float().mean(0).numpy(), 1 / len(shares_RV)))
    features, held_out_features = (lexical_features(split, special, weights_V) for split in (sample, held_out))
    point: dict[str, Any] = {
        "repositories": len(folders),
        "rows": len(train.mixed_R),
        "tf_idf": {
            name: threshold_accuracy(features[name], sample.mixed_R, held_out_features[name], held_out.mixed_R)
            for name in features
        },
        "row_means": {},
        "encoder": {},
    }
    for seed in arguments.seeds:
        model = train_means(shares_RV, labels_R, arguments.width, arguments.rows, seed)
        point["row_means"][str(seed)] = {
            "training_rows": accuracy(model, shares_RV[:8000], labels_R[:8000]),
            "held_out": accuracy(model, held_out_RV, held_out_labels_R),
        }
        if len(folders) in arguments.encoder_counts and seed == arguments.seeds[0]:
            place = work / f"encoder_{len(folders)}_{seed}"
            scores = encoder_scores(place, dataset, work / "held_out", arguments.sequence_length, arguments.encoder_steps, seed)
            point["encoder"][str(seed)] = scores
        print(json.dumps({"repositories": len(folders), "seed": seed, **point["row_means"][str(seed)]}), flush=True)
    return point


def draw(result: dict[str, Any], path: Path) -> None:
    """Held-out accuracy by the number of repositories: each seed a dot, the median a line."""
    matplotlib.use("Agg")
    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    points = result["points"]
    counts = [point["repositories"] for point in points]
    for name, style in (("neighbouring snippets", ":"), ("all pairs of snippets", "--")):
        axes.plot(counts, [point["tf_idf"][name] for point in points], style, color="gray", label=f"TF-IDF, {name}")
    by_seed = [[scores["held_out"] for scores in point["row_means"].values()] for point in points]
    axes.plot(counts, [float(np.median(values)) for values in by_seed], color="tab:blue", label="model of row means")
    for count, values in zip(counts, by_seed, strict=True):
        axes.plot([count] * len(values), values, ".", color="tab:blue")
    for point in points:
        for scores in point["encoder"].values():
            deepest = list(scores["exits"].values())[-1]
            low, high = deepest["icc_interval"]
            middle = deepest["icc_accuracy"]
            label = "encoder, deepest exit (95 % of rows)" if "encoder" not in str(axes.get_legend_handles_labels()[1]) else None
            axes.errorbar(point["repositories"], middle, [[middle - low], [high - middle]], fmt="o", color="tab:red", label=label)
    axes.axhline(result["majority"], color="black", linewidth=0.8, label="more frequent label")
    axes.set(xscale="log", xlabel="training repositories (equal tokens)", ylabel="in-context accuracy on new repositories")
    axes.set_xticks(counts, [str(count) for count in counts], minor=False)
    axes.minorticks_off()
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def numbers(text: str) -> list[int]:
    """Numbers separated by commas; an empty text has none."""
    return [int(word) for word in text.split(",") if word]


def main() -> None:
    """Measure every point, then write the result and its plot."""
    parser = argparse.ArgumentParser(description="Learning curve of the in-context task over the number of repositories.")
    parser.add_argument("--folder", required=True, help="Its child folders are the repositories.")
    parser.add_argument("--tokenizer", required=True, help="Folder of a tokenizer, e.g. quickstart/tokenizer.")
    parser.add_argument("--work", required=True, help="Folder for data sets and runs; packed data sets in it are used again.")
    parser.add_argument("--counts", type=numbers, default=[50, 100, 200, 400], help="Training repositories of each point.")
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2], help="Seeds of weights and order.")
    parser.add_argument("--text_bytes", type=int, default=26_000_000, help="Python text of each point.")
    parser.add_argument("--sequence_length", type=int, default=256, help="Slots of a row.")
    parser.add_argument("--piece_tokens", type=int, default=30, help="Most tokens of a snippet.")
    parser.add_argument("--width", type=int, default=64, help="Width of the model of row means.")
    parser.add_argument("--rows", type=int, default=48_000, help="Rows that the model of row means is trained on.")
    parser.add_argument("--encoder_counts", type=numbers, default=[], help="Points at which the encoder is trained too.")
    parser.add_argument("--encoder_steps", type=int, default=3000, help="Optimiser steps of the encoder.")
    parser.add_argument("--output", default="", help="JSON file for the result.")
    parser.add_argument("--plot", default="", help="PNG file for the plot.")
    arguments = parser.parse_args()
    train, held_out = repositories_of(Path(arguments.folder))
    if max(arguments.counts) > len(train):
        parser.error(
            f"--counts: {max(arguments.counts)}, expected at most {len(train)}, the training repositories of {arguments.folder}"
        )
    packing = PackingConfig(sequence_length=arguments.sequence_length, piece_tokens=arguments.piece_tokens)
    rows = pack(Path(arguments.work) / "held_out", arguments.tokenizer, held_out, HELD_OUT_BYTES, packing)
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, no GPU",
        "settings": {name: value for name, value in vars(arguments).items() if name not in PLACES},
        "held_out_repositories": len(held_out),
        "held_out_rows": len(rows.mixed_R),
        "majority": float(max(rows.mixed_R.mean(), 1 - rows.mixed_R.mean())),
        "points": [],
    }
    for count in arguments.counts:
        result["points"].append(measure_point(arguments, train[:count], rows))
        if arguments.output:
            write_json(Path(arguments.output), result)
    if arguments.plot:
        draw(result, Path(arguments.plot))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

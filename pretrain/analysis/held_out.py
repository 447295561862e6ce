"""Evaluation of a converted checkpoint on held-out rows: each exit's losses beside what token frequencies alone reach.

Letters: V vocabulary, M masked tokens.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mose.checkpoint.converted_checkpoint import load_pretrained
from mose.dataset.manifest import read_manifest
from mose.files.atomic_file import write_json
from mose.run_directory import exit_scalar
from mose.tokenizer import load_tokenizer
from pretrain.analysis.count_baselines import count_rows, cross_entropy_of_frequencies, entropy, left_bigram_cross_entropy
from pretrain.config.objective import NONE, ObjectiveConfig, SequenceTask, sequence_task
from pretrain.data.loader import BatchPlan, validation_batches
from pretrain.model.terms.registry import COLUMNS, terms_of
from pretrain.model.terms.term import Denominators, RowTerm
from pretrain.model.terms.vocabulary import whole_vocabulary
from pretrain.model.training_model import TrainingModel
from pretrain.step import exit_metrics
from pretrain.storage.run_data import open_split

# Enough tokens for the counts of neighbours: 2^25 pairs take 256 MiB while they are sorted.
COUNTED_TOKENS = 2**25
# 97.5 % quantile of the normal distribution, for 95 % intervals.
NORMAL_QUANTILE = 1.959964


def wilson_interval(successes: float, trials: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); it stays inside [0, 1] for small counts, too."""
    if trials == 0:
        return 0.0, 1.0
    z, share = NORMAL_QUANTILE, successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


@torch.inference_mode()
def evaluate_held_out(checkpoint: Path, dataset: Path, split: str, max_rows: int, seed: int) -> dict[str, Any]:
    """Losses and accuracies of every exit on up to `max_rows` rows (0: all), and what they are compared with.

    The task on whole rows stands under its name (`icc_accuracy`), and is left out where the model was trained on another.

    Raises:
        MoseError: the checkpoint or the data set cannot be read, or their tokenizers differ.
    """
    encoder, tokenizer = load_pretrained(checkpoint), load_tokenizer(checkpoint)
    rows = open_split(dataset, split, tokenizer.fingerprint())
    plan = BatchPlan(seed, 8, 8, tokenizer.special, tokenizer.ordinary_ids())
    model = TrainingModel(encoder, whole_vocabulary(tokenizer.vocabulary_size)).eval()
    layers = encoder.config.exit_layers
    totals = torch.zeros(len(layers), len(COLUMNS), dtype=torch.float64)
    counts_V = np.zeros(tokenizer.vocabulary_size, dtype=np.int64)
    num_rows, mixed = 0, 0
    for batch in validation_batches(rows, plan, max_rows or None):
        _, sums = model(batch, Denominators(1, 1))
        totals += sums
        counts_V += np.bincount(batch.labels_M.numpy(), minlength=len(counts_V))
        num_rows, mixed = num_rows + batch.num_rows, mixed + int(batch.mixed_B.clamp(min=0).sum())
    objective = ObjectiveConfig(sequence_task=task_of_rows(encoder.config.sequence_task, dataset))
    report = _exits(totals, Denominators(int(counts_V.sum()), num_rows), layers, objective)
    train, size = open_split(dataset, "train", tokenizer.fingerprint()), tokenizer.vocabulary_size
    train_rows = max(1, COUNTED_TOKENS // train.sequence_length)
    ordinary_V = np.isin(np.arange(size), tokenizer.ordinary_ids())
    frequencies_V, train_P = count_rows(train, size, train_rows, ordinary_V)
    _, held_out_P = count_rows(rows, size, num_rows, ordinary_V)
    task = objective.sequence_task
    majority = {} if task == NONE else {f"{task}_majority_rate": max(mixed, num_rows - mixed) / max(num_rows, 1)}
    return report | {
        "rows": num_rows,
        "masked_tokens": int(counts_V.sum()),
        "unigram_cross_entropy": entropy(counts_V),
        "unigram_cross_entropy_by_training_frequencies": cross_entropy_of_frequencies(counts_V, frequencies_V),
        "left_bigram_cross_entropy": left_bigram_cross_entropy(train_P, held_out_P, size),
        "sequence_task": task,
        **majority,
    }


def task_of_rows(trained: str, dataset: Path) -> SequenceTask:
    """The task on whole rows that a model was trained on, or `none` where the labels of these rows mean another."""
    task = sequence_task(trained)
    return task if task == read_manifest(dataset).packing_mode.task else NONE


def _exits(totals: torch.Tensor, denominators: Denominators, layers: list[int], objective: ObjectiveConfig) -> dict[str, Any]:
    values, exits = exit_metrics(totals, denominators, layers, objective), {}
    for layer, row in zip(layers, totals.tolist(), strict=True):
        found: dict[str, Any] = {}
        for term in terms_of(objective):
            name = term.name(objective)
            found[name] = values[exit_scalar("loss", layer, name)]
            if term.correct is not None:
                found[f"{name}_accuracy"] = values[exit_scalar("accuracy", layer, name)]
            # Masked tokens of one row depend on each other, so that only rows make independent trials.
            if term.correct is not None and isinstance(term, RowTerm):
                right = row[COLUMNS.index(term.correct_key)]
                found[f"{name}_interval"] = wilson_interval(right, term.denominator(denominators))
        exits[f"{layer:02d}"] = found
    return {"exits": exits}


def write_held_out(report: dict[str, Any], path: Path) -> None:
    """Write the report as JSON, atomically."""
    write_json(path, report)

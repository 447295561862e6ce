"""`mose-pretrain diagnose`: what a run has learnt, and gradients of a checkpoint's exits on the shared trunk with a heat map."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mose.config import load_config
from mose.errors import MoseError
from mose.files.atomic_file import write_json
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.modeling_mose import ModularStarEncoder
from mose.run_directory import RunDirectory, checkpoint_name
from pretrain.analysis.exit_gradients import ExitGradients, exit_gradients
from pretrain.analysis.learning_report import LEVEL_ROWS, Finding, Levels, learning_findings, levels_of
from pretrain.analysis.plot import plot_exit_gradients
from pretrain.checkpoints.export import open_source
from pretrain.config.run import PretrainConfig
from pretrain.data.loader import BatchPlan, validation_batches
from pretrain.data.micro_batch import MicroBatch
from pretrain.model.terms.term import Denominators
from pretrain.model.terms.vocabulary import whole_vocabulary
from pretrain.model.training_model import TrainingModel
from pretrain.step import exit_metrics
from pretrain.storage.run_data import open_run_data

FOLDER, JSON_NAME, PICTURE_NAME = "diagnose", "exit_gradients.json", "exit_gradients.png"


@dataclass(frozen=True)
class Diagnosis:
    """The folder that was written, the gradients, and what the learning watch finds."""

    folder: Path
    gradients: ExitGradients
    learning: list[Finding]


def diagnose(run_folder: Path, step: int | None, num_rows: int, split: str | None) -> Diagnosis:
    """Compute the exits' gradients at a checkpoint of any layout (default: the latest) on the first rows of a split
    (default: the run's held-out one), dropout off, float32; write RUN/diagnose/step-000100/ and return it.

    On a GPU where there is one. The weights, one block's gradients for each exit, and the rows' states must fit.

    Raises:
        MoseError: there is no such checkpoint or split, or one is damaged.
    """
    run = RunDirectory(run_folder)
    config = load_config(PretrainConfig, run.config)
    batch, levels = _first_rows(config, num_rows, split or config.data.validation_split)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with open_source(run_folder, step) as source:
        encoder, vocabulary = _filled(source.config, source.read), whole_vocabulary(source.config.vocab_size)
        model = TrainingModel(encoder, vocabulary, config.objective).to(device)
        step = int(source.facts["progress"]["step"])
    found = exit_gradients(model, batch.to(device), config.model.exit_layers)
    folder = run_folder / FOLDER / checkpoint_name(step)
    folder.mkdir(parents=True, exist_ok=True)
    learning = learning_findings(config, [line for line in run.read_metrics() if line["step"] <= step], levels)
    report = {"step": step, "split": split or config.data.validation_split, **_report(found, batch)}
    write_json(folder / JSON_NAME, {**report, "learning": [dataclasses.asdict(finding) for finding in learning]})
    plot_exit_gradients(found, folder / PICTURE_NAME, f"{run_folder.resolve().name}, step {step:,}, {batch.num_rows} rows")
    return Diagnosis(folder, found, learning)


def _filled(shape: ModularStarEncoderConfig, read: Any) -> ModularStarEncoder:
    with torch.device("meta"):
        encoder = ModularStarEncoder(shape)
    encoder.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            parameter.copy_(read(name))
    return encoder


def _first_rows(config: PretrainConfig, num_rows: int, split: str) -> tuple[MicroBatch, Levels]:
    """The first rows of a split of the run's data as one micro-batch, masked as in validation, and the levels of more rows."""
    if num_rows < 1:
        raise MoseError(f"--rows: {num_rows}, expected 1 or more")
    chosen = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, validation_split=split),
        intervals=dataclasses.replace(config.intervals, validation_rows=max(num_rows, LEVEL_ROWS)),
    )
    data = open_run_data(chosen)
    try:
        if data.held_out is None:
            raise MoseError(f"--split: {split} of the run's data has no rows, expected a split such as {config.data.split}")
        special, ordinary = data.tokenizer.special, data.tokenizer.ordinary_ids()
        plan = BatchPlan(config.seed, num_rows, num_rows, special, ordinary, masked_share=config.data.masking_share)
        many = dataclasses.replace(plan, micro_batch_rows=64)
        levels = levels_of(data.held_out, many, config.model.vocabulary_size)
        return next(validation_batches(data.held_out, plan, num_rows)), levels
    finally:
        data.close()


def _report(found: ExitGradients, batch: MicroBatch) -> dict[str, Any]:
    names = [f"{layer:02d}" for layer in found.exit_layers]
    losses = exit_metrics(torch.from_numpy(found.sums_EC), Denominators(batch.num_masked, batch.num_rows), found.exit_layers)
    norms = dict(zip(names, found.norms_EP.tolist(), strict=True))
    return {
        "rows": batch.num_rows,
        "real_tokens": batch.num_tokens,
        "masked_tokens": batch.num_masked,
        "blocks": list(found.blocks),
        "trunk_norm": dict(zip(names, found.trunk_norms_E.tolist(), strict=True)),
        "norm_by_block": norms,
        "cosine_on_shared_blocks": _square(names, found.cosines_EE.tolist()),
        "cosine_by_block": {
            block: _square(names, cosines) for block, cosines in zip(found.blocks, found.cosines_PEE.tolist(), strict=True)
        },
        **losses,
    }


def _square(names: list[str], values: list[list[float]]) -> dict[str, dict[str, float | None]]:
    """A table by exit and exit; NaN (one of the two does not reach the block) becomes null."""
    return {
        name: {other: None if math.isnan(value) else value for other, value in zip(names, row, strict=True)}
        for name, row in zip(names, values, strict=True)
    }

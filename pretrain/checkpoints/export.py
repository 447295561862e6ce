"""A training checkpoint of any layout, or a converted one -> folders that others open: whole, or one per chosen exit.

Weights are streamed: each is read once, whatever the number of folders, and forgotten when it is written.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mose.checkpoint.card_facts import FACTS_NAME, CardFacts, read_card_facts, with_card
from mose.checkpoint.converted_checkpoint import copy_tokenizer, describe, read_model_config
from mose.checkpoint.exit_selection import ExitSlice, ModelClass, select_exit, write_weights
from mose.checkpoint.model_card import write_card
from mose.checkpoint.published_checkpoint import PUBLISHED_DTYPE, describe_published, published_selection
from mose.checkpoint.safetensors_file import WEIGHTS_NAME, WeightFiles
from mose.errors import MoseError
from mose.files.atomic_file import atomic_folder, named_errors, write_json
from mose.files.lock import Holder, Lock, lock_file
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.modeling_mose import ModularStarEncoder, ModularStarEncoderForRetrieval
from mose.model.sharding import Sharding, sharding_of
from mose.model.tasks_mose import ModularStarEncoderForSequenceClassification
from mose.run_directory import RunDirectory, checkpoint_name
from pretrain.checkpoints.files import (
    LATEST_NAME,
    PROBE_NAME,
    checkpoint_folders,
    first_fault,
    latest_checkpoint,
    misnamed,
    read_checkpoint_manifest,
)
from pretrain.checkpoints.merged_weights import MergedWeights
from pretrain.checkpoints.model_card import RunFacts, card_facts, data_lineage, last_metrics
from pretrain.checkpoints.parity import PARITY_NAME, parity_report
from pretrain.config.frozen import load_frozen_config
from pretrain.parallel.zero import STATE_TAG
from pretrain.storage.run_data import named_sources

OURS, PUBLISHED = "ours", "published"
LAYOUTS = (OURS, PUBLISHED)


@dataclass(frozen=True)
class ExportSource:
    """A model that is exported: its shape, its weights one at a time, and its metadata."""

    model_class: ModelClass
    config: ModularStarEncoderConfig
    read: Callable[[str], Tensor]
    tokenizer: Path
    facts: dict[str, Any]
    card: RunFacts | CardFacts
    """Facts for the card: of a run, or those that a converted checkpoint has, which is copied exactly."""
    probe: Path | None = None


@dataclass(frozen=True)
class ExportRequest:
    """Which checkpoint, exits and layout to export."""

    step: int | None = None
    """Step of the checkpoint; None: the latest."""
    exits: tuple[int, ...] = ()
    """Exits to cut at; empty: one folder with all exits."""
    all_exits: bool = False
    """Cut at each exit."""
    layout: str = OURS
    """`ours` (float32) or `published` (names, fields and bfloat16 of the released checkpoints)."""


def export_run(run_folder: Path, output: Path, request: ExportRequest) -> dict[str, dict[str, Any] | None]:
    """Export a run's checkpoint, or a converted checkpoint; returns each folder's parity report by folder name.

    One exit or none is written to `output` itself, several to `output/exit_04` and so on. A copy of a converted checkpoint
    has no parity report.

    Raises:
        MoseError: no such run, step or exit; `output` exists, or another process writes it or the run directory that it lies in;
            the checkpoint is damaged; or an exported model disagrees.
    """
    if output.exists():
        raise MoseError(f"{output}: already exists; a checkpoint is never overwritten")
    with (
        named_errors(output),
        _held(output),
        open_source(run_folder, request.step) as source,
        atomic_folder(output) as temporary,
    ):
        exits = tuple(source.config.exit_layers) if request.all_exits else request.exits
        several = request.all_exits or len(exits) > 1
        selections = {
            temporary / f"exit_{layer:02d}" if several else temporary: select_exit(source.model_class, source.config, layer)
            for layer in exits or (None,)
        }
        if request.layout == PUBLISHED:
            selections = {folder: published_selection(one, source.config) for folder, one in selections.items()}
        dtype = PUBLISHED_DTYPE if request.layout == PUBLISHED else torch.float32
        for folder in selections:
            folder.mkdir(exist_ok=True)
        write_weights([(folder / WEIGHTS_NAME, selection) for folder, selection in selections.items()], source.read, dtype)
        reports = {}
        for folder, selection in selections.items():
            name = folder.name if several else output.name
            reports[name] = _complete(folder, selection, source, request.layout, dtype)
    return reports


def _held(output: Path) -> Lock[Holder]:
    """The lock of the run directory that `output` lies in; where there is none, a lock beside `output`."""
    for folder in output.absolute().parents:
        run = RunDirectory(folder)
        if run.config.is_file() and (run.checkpoints.exists() or run.lock.exists()):
            return run.hold()
    return lock_file(output.with_name(f".{output.name}.lock.json"), str(output), "one export at a time per folder")


def _complete(folder: Path, selection: ExitSlice, source: ExportSource, layout: str, dtype: torch.dtype) -> dict[str, Any] | None:
    """Write all but the weights, then run the folder's exits against the live model's."""
    config = selection.config
    if layout == PUBLISHED:
        describe_published(folder, selection)
    else:
        describe(folder, selection.model_class, config)
    # Users of the released layout write <sep> and <cls> themselves.
    copy_tokenizer(source.tokenizer, folder, config.max_position_embeddings, framed=layout == OURS)
    exit_layer = config.exit_layers[0] if selection.exit_index is not None else None
    card = card_facts(config, source.card) if isinstance(source.card, RunFacts) else source.card
    if exit_layer is not None:
        card = dataclasses.replace(card, title=f"{card.title}, exit {exit_layer}")
    write_json(folder / FACTS_NAME, with_card({**source.facts, "exit": exit_layer, "layout": layout}, card))
    write_card(folder, config, selection.model_class.__name__, card, framed=layout == OURS)
    if not isinstance(source.card, RunFacts) or source.probe is None:
        return None
    report = parity_report(folder, source.probe, source.card.precision, dtype)
    write_json(folder / PARITY_NAME, report)
    return report


@contextmanager
def open_source(folder: Path, step: int | None) -> Iterator[ExportSource]:
    """Open a run directory or a converted checkpoint.

    Raises:
        MoseError: it is neither, a file is missing or damaged, or a step is asked of a converted checkpoint.
    """
    if (folder / "config.json").is_file():
        if step is not None:
            raise MoseError(f"{folder}: is a converted checkpoint, which has no steps; expected a run directory with --step")
        with WeightFiles(folder) as weights:
            yield _converted_source(folder, weights)
    else:
        yield _run_source(folder, step)


def _converted_source(folder: Path, weights: WeightFiles) -> ExportSource:
    config = read_model_config(folder)
    kinds: tuple[ModelClass, ...] = (
        ModularStarEncoder,
        ModularStarEncoderForRetrieval,
        ModularStarEncoderForSequenceClassification,
    )
    classes: dict[str, ModelClass] = {kind.__name__: kind for kind in kinds}
    found = (config.architectures or [None])[0]
    if found not in classes:
        raise MoseError(f"{folder / 'config.json'}: architectures is {found}, expected one of {', '.join(classes)}")
    return ExportSource(classes[found], config, weights.read_finite, folder, {"converted": folder.name}, read_card_facts(folder))


def _run_source(folder: Path, step: int | None) -> ExportSource:
    run = RunDirectory(folder)
    config = load_frozen_config(run)
    checkpoint = find_checkpoint(run, step)
    manifest = read_checkpoint_manifest(checkpoint)
    if fault := first_fault(checkpoint, manifest, sorted(manifest["files"]), checksums=False):
        raise MoseError(fault)
    if wrong := misnamed(checkpoint, manifest):
        raise MoseError(wrong)
    progress, weights = manifest["progress"], MergedWeights(checkpoint / STATE_TAG)
    card = RunFacts(
        name=folder.resolve().name,
        step=progress["step"],
        consumed_rows=progress["consumed_rows"],
        consumed_tokens=progress["consumed_tokens"],
        dataset=Path(config.data.dataset).name,
        dataset_fingerprint=str(manifest["identity"].get("data.fingerprint", "not recorded")),
        precision=config.parallel.precision,
        metrics=last_metrics(run.read_metrics(), progress["step"]),
        data=data_lineage(named_sources(config.data)),
    )

    def read(name: str) -> Tensor:
        tensor = weights.read(name)
        return tensor[: config.model.vocabulary_size] if sharding_of(name) is Sharding.VOCABULARY else tensor

    shape = ModularStarEncoderConfig(**config.model.hugging_face(), sequence_task=config.objective.sequence_task)
    facts = {"run": card.name, "progress": progress, "identity": manifest["identity"]}
    return ExportSource(ModularStarEncoder, shape, read, folder, facts, card, checkpoint / PROBE_NAME)


def find_checkpoint(run: RunDirectory, step: int | None) -> Path:
    """The checkpoint of `step`, or the latest one."""
    checkpoint = run.checkpoint(step) if step is not None else latest_checkpoint(run.checkpoints)
    if checkpoint is None or not checkpoint.is_dir():
        pointer = run.checkpoints / LATEST_NAME
        if step is None and pointer.is_file():
            held = ", ".join(path.name for path in checkpoint_folders(run.checkpoints)) or "none"
            raise MoseError(f"{pointer}: names a checkpoint that is not there; expected one of: {held} (--step takes it)")
        wanted = "complete checkpoint" if step is None else checkpoint_name(step)
        raise MoseError(f"{run.checkpoints}: holds no {wanted}; expected one written by `mose-pretrain train`")
    return checkpoint

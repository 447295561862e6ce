"""The checkpoints of a run directory, each with its layout, size and loss, and whether it is damaged."""

from dataclasses import dataclass
from pathlib import Path

from mose.config import load_config
from mose.errors import MoseError
from mose.run_directory import LOSS_TOTAL, RunDirectory
from pretrain.checkpoints.files import (
    ABANDONED_MARK,
    DAMAGED_MARK,
    checkpoint_bytes,
    checkpoint_folders,
    first_fault,
    latest_checkpoint,
    misnamed,
    read_checkpoint_manifest,
    step_of,
)
from pretrain.config.identity import describe_layout
from pretrain.config.run import PretrainConfig


@dataclass(frozen=True)
class Listed:
    """One checkpoint of the list; `fault` is None if it is complete, `loss` is None if the step was not logged."""

    name: str
    step: int
    num_bytes: int
    layout: str
    fault: str | None
    loss: float | None
    permanent: bool
    latest: bool


def list_checkpoints(run_folder: Path, checksums: bool = False) -> list[Listed]:
    """Every checkpoint of a run, oldest first, with those that were set aside; `checksums` reads every byte.

    Raises:
        MoseError: `run_folder` is no run directory.
    """
    run = RunDirectory(run_folder)
    if not run.config.is_file():
        raise MoseError(f"{run.config}: no such file; expected a run directory written by `mose-pretrain train`")
    every = load_config(PretrainConfig, run.config).intervals.permanent_every_steps
    losses = {line["step"]: line.get(LOSS_TOTAL) for line in run.read_metrics() if LOSS_TOTAL in line}
    latest = latest_checkpoint(run.checkpoints)
    aside = [path for mark in (DAMAGED_MARK, ABANDONED_MARK) for path in run.checkpoints.glob(f"{mark}step-*")]
    return [
        _listed(path, checksums, losses, every, path == latest)
        for path in sorted([*checkpoint_folders(run.checkpoints), *aside], key=lambda path: (step_of(path), path.name))
    ]


def _listed(path: Path, checksums: bool, losses: dict[int, float | None], every: int, latest: bool) -> Listed:
    step = step_of(path)
    layout, fault = "", None
    try:
        manifest = read_checkpoint_manifest(path)
        layout = describe_layout(manifest["identity"])
        fault = first_fault(path, manifest, sorted(manifest["files"]), checksums) or misnamed(path, manifest)
    except MoseError as error:
        fault = str(error)
    fault = fault.removeprefix(f"{path}: ") if fault else None
    permanent = bool(every) and step % every == 0
    return Listed(path.name, step, checkpoint_bytes(path), layout, fault, losses.get(step), permanent, latest)

"""Compare the tensors of two checkpoints: training ones of any layout, and converted ones."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from mose.checkpoint.safetensors_file import WeightFiles
from mose.errors import MoseError
from mose.model.sharding import Sharding, sharding_of
from mose.run_directory import RunDirectory
from pretrain.checkpoints.files import MANIFEST_NAME, first_fault, latest_checkpoint, read_checkpoint_manifest
from pretrain.checkpoints.merged_weights import MergedWeights
from pretrain.config.frozen import load_frozen_config
from pretrain.parallel.zero import STATE_TAG


@dataclass(frozen=True)
class Difference:
    """The largest difference of one tensor in two checkpoints; `relative` divides it by the larger of their largest values."""

    name: str
    largest: float
    relative: float


@dataclass(frozen=True)
class Comparison:
    """All tensors of two checkpoints: those that are equal, those that differ (largest relative difference first), and names
    that only one of them has."""

    identical: int
    differing: tuple[Difference, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether no tensor differs or is missing."""
        return not (self.differing or self.only_first or self.only_second)


class Tensors(Protocol):
    """The weights of one checkpoint, by name."""

    def names(self) -> set[str]:
        """Every parameter."""

    def read(self, name: str) -> Tensor:
        """One whole parameter without the vocabulary's padding."""


class _Converted:
    def __init__(self, weights: WeightFiles):
        self._weights = weights

    def names(self) -> set[str]:
        return set(self._weights.entries)

    def read(self, name: str) -> Tensor:
        return self._weights.read(name)


class _Training:
    def __init__(self, state: Path, vocabulary_size: int):
        self._weights = MergedWeights(state)
        self._vocabulary_size = vocabulary_size

    def names(self) -> set[str]:
        return self._weights.names

    def read(self, name: str) -> Tensor:
        tensor = self._weights.read(name)
        return tensor[: self._vocabulary_size] if sharding_of(name) is Sharding.VOCABULARY else tensor


def compare_checkpoints(first: Path, second: Path) -> Comparison:
    """Compare the weights (of training checkpoints: the optimiser's float32 ones), one parameter at a time.

    Each is a run directory (its latest checkpoint), a training checkpoint of any layout, or a converted checkpoint.

    Raises:
        MoseError: one of them is none of these, is damaged, or a parameter has another shape in each.
    """
    with _opened(first) as a, _opened(second) as b:
        both = sorted(a.names() & b.names())
        differences = [_difference(name, a.read(name), b.read(name)) for name in both]
        alone = tuple(sorted(a.names() - b.names())), tuple(sorted(b.names() - a.names()))
    differing = [difference for difference in differences if difference is not None]
    ordered = sorted(differing, key=lambda difference: -difference.relative)
    return Comparison(len(both) - len(differing), tuple(ordered), *alone)


def _difference(name: str, a: Tensor, b: Tensor) -> Difference | None:
    if a.shape != b.shape:
        raise MoseError(f"{name}: {list(a.shape)} in the first, {list(b.shape)} in the second; expected one model's checkpoints")
    a, b = a.flatten().double(), b.flatten().double()
    if torch.equal(a, b):
        return None
    # NaN compares unequal to everything. Where both values are NaN they count as equal, where one is, the difference is infinite.
    both = torch.isnan(a) & torch.isnan(b)
    apart = torch.where(both, 0.0, (a - b).abs()).nan_to_num(nan=float("inf"), posinf=float("inf"))
    largest = float(apart.max())
    scale = float(torch.maximum(a.abs(), b.abs()).nan_to_num(nan=0.0).max())
    return Difference(name, largest, largest / scale if scale else float("inf")) if largest else None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Tensors]:
    run = RunDirectory(path)
    checkpoint = latest_checkpoint(run.checkpoints) or path
    if checkpoint != path:
        load_frozen_config(run)
    if (checkpoint / MANIFEST_NAME).is_file():
        manifest = read_checkpoint_manifest(checkpoint)
        if fault := first_fault(checkpoint, manifest, sorted(manifest["files"])):
            raise MoseError(fault)
        yield _Training(checkpoint / STATE_TAG, manifest["identity"]["model.vocabulary_size"])
    elif (path / "config.json").is_file():
        with WeightFiles(path) as weights:
            yield _Converted(weights)
    else:
        raise MoseError(f"{path}: expected a run directory, a training checkpoint or a converted checkpoint")

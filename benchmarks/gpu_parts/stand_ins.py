"""Stand-ins for packages that a bare machine lacks: the suite runs with torch and numpy alone.

Modules that the suite imports name these packages, and use none of their functions in a measurement, except for two base
classes and a decorator of transformers, whose small part that the encoder uses is written out here.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from torch import nn

NAMES = (
    "transformers",
    "yaml",
    "jsonargparse",
    "rich",
    "tensorboard",
    "pyarrow",
    "safetensors",
    "tokenizers",
    "upath",
    "megatron",
)


# Part of torch, but no more than a door to tensorboard, which brings packages that this repository does not name.
_DOORS = {"torch.utils.tensorboard": "tensorboard"}


class _Named(type):
    """Any name looked up on a stand-in is a stand-in, as modules do at import with constants of a package."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Named(name, (StandIn,), {})


class StandIn(metaclass=_Named):
    """Takes the place of a class or function of an absent package; it can be a base class, and does nothing else."""


class PretrainedConfig:
    """As transformers' class, where the encoder uses it: keeps its arguments as attributes."""

    # The encoder then chooses its own attention.
    _attn_implementation = "sdpa"

    def __init__(self, **values: Any):
        self.__dict__.update(values)


class PreTrainedModel(nn.Module):
    """As transformers' class, where the encoder uses it."""

    def __init__(self, config: PretrainedConfig, *_: Any, **__: Any):
        super().__init__()
        self.config = config

    def post_init(self) -> None:
        """Weights are drawn by their modules."""


def can_return_tuple(function: Any) -> Any:
    """As transformers' decorator for callers that ask for no tuple."""
    return function


_WRITTEN_OUT = {one.__name__: one for one in (PretrainedConfig, PreTrainedModel, can_return_tuple)}


class _StandInModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name == "__version__":
            return "99.0"
        if name.startswith("__"):
            raise AttributeError(name)
        return _WRITTEN_OUT.get(name) or getattr(StandIn, name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: Sequence[str]):
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """A package of its own for each absent name and for all below it."""
        if not any(name == absent or name.startswith(f"{absent}.") for absent in self.names):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """A module that has every name."""
        return _StandInModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


def install_stand_ins() -> list[str]:
    """Let absent packages be imported; returns their names. Call it before anything else of this repository is imported."""
    absent = [name for name in NAMES if importlib.util.find_spec(name) is None]
    doors = [door for door, package in _DOORS.items() if package in absent]
    # In front of the other finders, which know torch's own modules.
    sys.meta_path.insert(0, _Finder([*absent, *doors]))
    return absent

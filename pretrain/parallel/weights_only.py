"""Makes DeepSpeed's loader read tensors and plain values only: a pickle in a checkpoint can otherwise run any code.

DeepSpeed calls `torch.load(weights_only=False)` in a dozen places and has no option for it. torch has one: its environment
variable forces weights-only loading in every call of the process, and only classes on an allow-list are made.
"""

import contextlib
import os
import pickle
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

_FORCE, _FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


# What DeepSpeed 0.19 writes into our checkpoints besides tensors and plain values; `getattr` is how Python 3.11.2 pickles an
# enumeration member, and is never the real one. None of these runs code of the file.
ALLOWED_NAMES = (
    "deepspeed.utils.tensor_fragment.fragment_address",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "builtins.getattr",
)


@contextlib.contextmanager
def weights_only(allowed: Sequence[Any]) -> Iterator[None]:
    """Force every `torch.load` of this process to make tensors, plain values and objects of `ALLOWED_NAMES` only.

    `allowed` has the object that is used for each of these names.
    """
    before = {name: os.environ.pop(name, None) for name in (_FORCE, _FORCE_NOT)}
    os.environ[_FORCE] = "1"
    try:
        with torch.serialization.safe_globals(list(zip(allowed, ALLOWED_NAMES, strict=True))):
            yield
    finally:
        del os.environ[_FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def foreign_classes(path: Path) -> list[str]:
    """Functions and classes that a file of `torch.save` names and that weights-only loading refuses, sorted.

    Reads the file's opcodes and makes nothing. A file that is no archive of `torch.save` gives an empty list: what it holds
    is refused when it is loaded.
    """
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except (ValueError, EOFError, RuntimeError, LookupError, pickle.UnpicklingError):
        return []
    return sorted(set(found) - set(ALLOWED_NAMES))


def first_foreign_class(paths: Iterable[Path]) -> str | None:
    """What is wrong with the first of these files in which `foreign_classes` finds one; None if it finds none."""
    for path in paths:
        if found := foreign_classes(path):
            return f"{path}: names {found[0]}, and a pickle that makes more than tensors can run code"
    return None

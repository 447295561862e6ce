"""The host never waits in a forward and backward pass of the 1B model, and no tensor of another device enters: traced on `meta`.

On CUDA an operation whose result decides a shape or a Python value makes the host wait for every kernel before it, and the
device then idles until the host has caught up.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mose.model import attention_mose
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.model_config import ModelConfig
from mose.model.modeling_mose import ModularStarEncoder
from pretrain.data.micro_batch import MicroBatch
from pretrain.model.terms.term import Denominators
from pretrain.model.terms.vocabulary import whole_vocabulary
from pretrain.model.training_model import TrainingModel
from pretrain.step import _one_or_nan

# Operations whose result the host needs: values, and shapes that depend on values.
WAITING = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "masked_select", "_unique", "unique", "equal.default")

INDEXING = ("index.", "index_put", "_index_put")


def has_mask(indices: object) -> bool:
    """Whether a tensor is indexed by a mask: its true elements are counted, so the host waits for the shape."""
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in tree_leaves(indices))


class Watch(TorchDispatchMode):
    """Counts operations, and keeps the names of those that wait and of those that see another device than `meta`."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.waiting: list[str] = []
        self.mixed: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        self.count += 1
        name = str(function).removeprefix("aten.")
        if name.startswith(WAITING) or (name.startswith(INDEXING) and has_mask(arguments[1])):
            self.waiting.append(name)
        inputs = [leaf for leaf in tree_leaves((arguments, named)) if isinstance(leaf, Tensor)]
        if any(tensor.device.type != "meta" for tensor in inputs):
            self.mixed.append(name)
        return function(*arguments, **(named or {}))


def on_meta(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def micro_batch(tokens: int = 8000, rows: int = 4, masked: int = 1200) -> MicroBatch:
    row, token = on_meta(rows), on_meta(tokens)
    bounds = on_meta(rows + 1, dtype=torch.int32)
    return MicroBatch(token, token, bounds, 2048, on_meta(masked), on_meta(masked), row, row, 0)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> TrainingModel:
    monkeypatch.setattr(attention_mose, "choose_backend", lambda *_: attention_mose.TORCH_VARLEN)
    config = ModelConfig(vocabulary_size=49156, attention_dropout=0.0)
    shape = ModularStarEncoderConfig(**{**config.hugging_face(), "vocab_size": config.padded_vocabulary_size})
    with torch.device("meta"):
        encoder = ModularStarEncoder(shape).to(torch.bfloat16)
    return TrainingModel(encoder, whole_vocabulary(config.vocabulary_size)).train()


def trace(model: TrainingModel) -> Watch:
    with Watch() as watch:
        share, _ = model(micro_batch(), Denominators(100_000, 2048))
        assert isinstance(share, Tensor)
        (share * _one_or_nan(share, 10.0) * 512.0).backward()
    return watch


def test_a_step_of_the_1b_model_waits_for_nothing(model: TrainingModel) -> None:
    watch = trace(model)
    assert watch.count > 5000
    assert (watch.waiting, watch.mixed) == ([], [])
    assert all(parameter.grad is not None for parameter in model.parameters())


PLANTED: list[tuple[str, Callable[[Tensor], object]]] = [
    ("waiting", lambda state_ND: float(state_ND.sum())),
    ("waiting", lambda state_ND: state_ND[state_ND[:, 0] > 0]),
    ("waiting", torch.unique),
    ("mixed", lambda state_ND: state_ND * torch.tensor(2.0)),
    ("mixed", lambda state_ND: torch.arange(3).to(state_ND.device)),
]


@pytest.mark.parametrize(("kind", "fault"), PLANTED)
def test_a_planted_fault_is_seen(kind: str, fault: Callable[[Tensor], object]) -> None:
    state_ND = torch.empty(8, 4, device="meta")
    # `meta` has no values, so what needs them fails after it was seen.
    with Watch() as watch, contextlib.suppress(RuntimeError, NotImplementedError):
        fault(state_ND)
    assert getattr(watch, kind) != []

"""After each way to load, every state tensor of the optimiser lies on its parameter's device; `meta` stands in for CUDA."""

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from pretrain.parallel import engine as engine_module
from pretrain.parallel.engine import Engine, place_state


def optimizer_on_meta() -> torch.optim.Optimizer:
    parameter = nn.Parameter(torch.empty(4, device="meta"))
    optimizer = torch.optim.AdamW([parameter], lr=1.0)
    # What DeepSpeed's universal loader leaves: the step as it was read from the file, the moments beside the weights.
    optimizer.state[parameter] = {"step": torch.tensor(3.0), "exp_avg": torch.empty(4, device="meta"), "note": 1}
    return optimizer


def devices(optimizer: torch.optim.Optimizer) -> set[str]:
    return {value.device.type for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)}


@pytest.mark.parametrize("wrapped", [False, True])
def test_state_follows_its_parameter(wrapped: bool) -> None:
    optimizer = optimizer_on_meta()
    assert devices(optimizer) == {"cpu", "meta"}
    place_state(SimpleNamespace(optimizer=optimizer) if wrapped else optimizer)
    assert devices(optimizer) == {"meta"}
    assert next(iter(optimizer.state.values()))["note"] == 1


@pytest.mark.parametrize("unpickle", [False, True])
def test_every_load_of_the_engine_places_the_state(unpickle: bool, tmp_path: Path) -> None:
    """Both kinds of checkpoint go through `Engine.load`, the only place that calls DeepSpeed's loader."""
    zero: Any = SimpleNamespace(optimizer=optimizer_on_meta(), param_groups=[{"params": [], "lr": 1.0}], clip_grad=1.0)
    engine = Engine.__new__(Engine)
    engine.deepspeed = SimpleNamespace(optimizer=zero, load_checkpoint=lambda *_, **__: None)
    engine.load(tmp_path, unpickle)
    assert devices(zero.optimizer) == {"meta"}
    assert inspect.getsource(engine_module).count(".load_checkpoint(") == 1

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


def load_with(unpickle: bool, folder: Path) -> torch.optim.Optimizer:
    """The optimiser after `Engine.load`, whose DeepSpeed engine has just read a checkpoint."""
    optimizer = optimizer_on_meta()
    zero: Any = SimpleNamespace(optimizer=optimizer, param_groups=[{"params": [], "lr": 1.0}], clip_grad=1.0)
    engine = Engine.__new__(Engine)
    engine.deepspeed = SimpleNamespace(optimizer=zero, load_checkpoint=lambda *_, **__: None)
    engine.load(folder, unpickle)
    return optimizer


@pytest.mark.parametrize("unpickle", [False, True])
def test_every_load_of_the_engine_places_the_state(unpickle: bool, tmp_path: Path) -> None:
    """Both kinds of checkpoint go through `Engine.load`, the only place that calls DeepSpeed's loader."""
    assert devices(load_with(unpickle, tmp_path)) == {"meta"}
    assert inspect.getsource(engine_module).count(".load_checkpoint(") == 1


def test_a_step_that_stays_on_the_cpu_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engine_module, "place_state", lambda _: None)
    assert devices(load_with(False, tmp_path)) == {"cpu", "meta"}

"""What a rank does in tests of the engine's gradients and of the order of its weights."""

import os
from pathlib import Path
from typing import Any

import torch
from torch._C._distributed_c10d import HashStore

from pretrain.config.run import PretrainConfig
from pretrain.model.terms.term import Denominators
from tests.pretrain.cells import context_of, loader_of, tiny_config


def join_alone() -> None:
    """A process group of one rank, without a socket."""
    from pretrain.parallel.engine import join_process_group
    from pretrain.parallel.launch import ALONE

    os.environ.update(ALONE)
    torch.set_num_threads(1)
    join_process_group(60, HashStore())


def accumulate(dataset: Path, zero_stage: int, in_fp32: bool, times: int = 64) -> dict[str, Any]:
    """The gradient norm of one micro-batch at once, and as so many equal shares that are added up; and the sums' type."""
    from pretrain.parallel import engine as engine_module
    from pretrain.parallel import zero
    from pretrain.train import build_engine

    if not in_fp32:
        engine_module.accumulates_in_fp32 = lambda config, layout: False
        engine_module.deepspeed_config = lambda config, layout: _without_types(zero.deepspeed_config(config, layout))
    join_alone()
    config = tiny_config(dataset, zero_stage=zero_stage, precision="bf16")
    engine = build_engine(config, context_of(config))
    (batch, *_) = loader_of(config, 0, 1).share(0)
    norms, types = [], set()
    for parts in (1, times):
        for number in range(parts):
            share, _ = engine(batch, Denominators(batch.num_masked, batch.num_rows))
            engine.backward(share / parts, last=number == parts - 1)
            if number < parts - 1:
                types |= {str(p.grad.dtype) for p in engine.module.parameters() if p.grad is not None}
        # A learning rate of 0 leaves the weights as they are, so that the gradients of both are the same.
        norms.append(engine.step(0.0))
    return {"once": norms[0], "added": norms[1], "types": types}


def _without_types(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "data_types"}


def resume_other_order(dataset: Path, folder: Path) -> dict[str, Any]:
    """Save with the model's order of weights, as before the aligned one, and resume: the losses after it, and undisturbed."""
    from pretrain.config import identity
    from pretrain.parallel import engine as engine_module
    from tests.pretrain.elastic_cells import resume_cell, save_cell

    join_alone()
    config: PretrainConfig = tiny_config(dataset, micro_batch_rows=2)
    aligned = identity.is_aligned
    identity.is_aligned = engine_module.is_aligned = lambda zero_stage: False
    undisturbed = save_cell(config, folder)
    identity.is_aligned = engine_module.is_aligned = aligned
    return {"undisturbed": undisturbed, **resume_cell(config, folder)}


def resume_same_order(dataset: Path, folder: Path) -> dict[str, Any]:
    """Save and resume in one layout; the engine starts from weights that are no numbers."""
    from tests.pretrain.elastic_cells import resume_cell, save_cell

    join_alone()
    config = tiny_config(dataset, micro_batch_rows=2)
    return {"undisturbed": save_cell(config, folder), **resume_cell(config, folder)}

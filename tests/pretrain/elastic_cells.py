"""What a rank does in tests of elastic resume: train and save in one layout, go on in another, and report."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

from mose.schedule import learning_rate
from pretrain.checkpoints.run_state import Progress
from pretrain.checkpoints.store import CheckpointStore, ResumeRequest
from pretrain.config.identity import config_values
from pretrain.config.run import PretrainConfig
from pretrain.parallel.context import ParallelContext
from pretrain.step import train_step
from tests.distributed import RankPools
from tests.pretrain.cells import context_of, loader_of, tiny_config

SAVED_STEP = 3
STEPS = 5
LAYOUTS = tuple((data, tensor, stage) for (data, tensor), stage in itertools.product(((1, 1), (2, 1), (1, 2), (2, 2)), (1, 2)))
Cell = tuple[int, int, int]


def cell_name(cell: Cell) -> str:
    """E.g. `2x1z2`: two data ranks, one tensor rank, ZeRO 2."""
    return "{}x{}z{}".format(*cell)


def cell_config(dataset: Path, cell: Cell, precision: str = "fp32") -> PretrainConfig:
    """The tiny run at one layout; the micro-batch differs with the data ranks, too."""
    data, tensor, stage = cell
    return tiny_config(dataset, tensor, micro_batch_rows=2 if data == 1 else 1, zero_stage=stage, precision=precision)


def _store(config: PretrainConfig, folder: Path, context: ParallelContext) -> CheckpointStore:
    return CheckpointStore(folder / "checkpoints", context, config_values(config, "data", context.layout.world_size))


def _train(engine: Any, config: PretrainConfig, context: ParallelContext, first: int, last: int) -> list[float]:
    loader = loader_of(config, context.data_rank, context.layout.data_ranks)
    losses = []
    for step in range(first, last):
        batches = loader.share(step * config.batch.global_rows)
        losses.append(train_step(engine, batches, learning_rate(step, config.schedule), config.seed, step, context).loss)
    return losses


def save_cell(config: PretrainConfig, folder: Path) -> list[float]:
    """Train to `SAVED_STEP`, save, and go on undisturbed; the losses of the steps after saving."""
    from pretrain.train import build_engine

    context = context_of(config)
    engine = build_engine(config, context)
    _train(engine, config, context, 0, SAVED_STEP)
    _store(config, folder, context).save(engine, Progress(SAVED_STEP, SAVED_STEP * config.batch.global_rows, 0))
    return _train(engine, config, context, SAVED_STEP, SAVED_STEP + STEPS)


def resume_cell(config: PretrainConfig, folder: Path, allowed: tuple[str, ...] = ()) -> dict[str, Any]:
    """Resume from `folder` in this config's layout and train on; losses, and what the optimiser was restored with."""
    from pretrain.train import build_engine

    context = context_of(config)
    store = _store(config, folder, context)
    selection = store.select(ResumeRequest(allowed=allowed))
    assert selection is not None
    engine = build_engine(config, context, selection)
    progress = store.load(engine, selection)
    optimizer = engine.deepspeed.optimizer
    inner = getattr(optimizer, "optimizer", optimizer)
    restored = {
        "weight_decay": [group["weight_decay"] for group in optimizer.param_groups],
        "factors": [group["factor"] for group in optimizer.param_groups],
        "betas": [tuple(group["betas"]) for group in optimizer.param_groups],
        "clipping": optimizer.clip_grad,
        "steps": [float(state["step"]) for state in inner.state.values()],
        "moments": [float(state["exp_avg_sq"].sum()) for state in inner.state.values()],
        "consumed_rows": progress.consumed_rows,
        "converted": selection.converts,
    }
    return {"losses": _train(engine, config, context, progress.step, progress.step + STEPS), **restored}


def largest_difference(resumed: list[float], undisturbed: list[float]) -> float:
    """The largest relative difference of two courses of losses."""
    return max(abs(a - b) / abs(b) for a, b in zip(resumed, undisturbed, strict=True))


def resume_everywhere(dataset: Path, saved: Cell, targets: tuple[Cell, ...], folder: Path, pools: RankPools) -> dict[Cell, float]:
    """Save in one layout, resume in each of the others: the largest relative loss difference over `STEPS` steps."""
    undisturbed = pools.of(saved[0] * saved[1]).run(save_cell, cell_config(dataset, saved), folder)[0]
    found = {}
    for cell in targets:
        outcomes = pools.of(cell[0] * cell[1]).run(resume_cell, cell_config(dataset, cell), folder)
        found[cell] = max(largest_difference(outcome["losses"], undisturbed) for outcome in outcomes)
    return found


def with_decay(config: PretrainConfig, weight_decay: float, clipping: float) -> PretrainConfig:
    """The same run with another weight decay and clipping."""
    optimizer = dataclasses.replace(config.optimizer, weight_decay=weight_decay, gradient_clipping=clipping)
    return dataclasses.replace(config, optimizer=optimizer)

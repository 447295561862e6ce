"""What a rank does in tests of merged weights: train a tiny model for two steps in one layout and save DeepSpeed's state."""

from pathlib import Path
from typing import Any

from mose.schedule import learning_rate
from pretrain.config.run import PretrainConfig
from pretrain.step import train_step
from tests.pretrain.cells import context_of, loader_of


def save_state(config: PretrainConfig, folder: Path) -> dict[str, Any]:
    """Write `folder/state`; returns the parameters' names."""
    from pretrain.train import build_engine

    context = context_of(config)
    engine = build_engine(config, context)
    loader = loader_of(config, context.data_rank, context.layout.data_ranks)
    for step in range(2):
        batches = loader.share(step * config.batch.global_rows)
        train_step(engine, batches, learning_rate(step, config.schedule), config.seed, step, context)
    engine.save(folder)
    return {"names": {name for name, _ in engine.module.named_parameters()}}

"""What a rank does in tests of saved states: train a tiny model for two steps, save DeepSpeed's state, or load a hostile one."""

from pathlib import Path
from typing import Any

from mose.errors import MoseError
from mose.schedule import learning_rate
from pretrain.config.run import PretrainConfig
from pretrain.step import train_step
from tests.pretrain.cells import context_of, loader_of
from tests.pretrain.hostile import HOSTILE


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


def load_hostile(config: PretrainConfig, folder: Path) -> dict[str, str | None]:
    """Save a state, put each hostile file in place of the optimiser's part and load: the error's line by the kind of file."""
    from pretrain.train import build_engine

    engine = build_engine(config, context_of(config))
    engine.save(folder)
    (part,) = (folder / "state").glob("*_optim_states.pt")
    untouched, found = part.read_bytes(), {}
    for hostile in HOSTILE:
        hostile(part, folder / "mark")
        found[hostile.__name__] = _error_of_loading(engine, folder)
    part.write_bytes(untouched)
    return {**found, "untouched": _error_of_loading(engine, folder)}


def _error_of_loading(engine: Any, folder: Path) -> str | None:
    try:
        engine.load(folder)
    except MoseError as error:
        return str(error)
    return None

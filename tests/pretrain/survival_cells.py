"""What a rank does in tests of skipped steps, stop wishes and late ranks."""

import dataclasses
import datetime
import time
from typing import Any

import torch
from torch import distributed as dist

from mose.schedule import learning_rate
from pretrain.config.run import PretrainConfig
from pretrain.parallel.stage import COUNT, LOAD_ROWS
from pretrain.parallel.watchdog import Watchdog, is_collective_failure
from pretrain.step import Guard, count_globally, train_step
from pretrain.train import build_engine
from tests.pretrain.cells import context_of, loader_of

STEPS, BAD_STEP = 4, 2
LEFT_OUT, NAN_LOSS, NAN_GRADIENT, OUTLIER = "left out", "loss not a number", "gradient not a number", "outlier"


class Faulty:
    """Stands between the step and the engine, and spoils the first micro-batch of rank 1 in one step."""

    def __init__(self, engine: Any, kind: str, rank: int):
        self._engine, self._kind, self._rank = engine, kind, rank
        self.step_number, self._micro_batch = 0, 0

    def __call__(self, *inputs: Any) -> Any:
        share, sums = self._engine(*inputs)
        return (share * float("nan") if self._spoils(NAN_LOSS) else share), sums

    def backward(self, share: torch.Tensor, last: bool) -> None:
        self._engine.backward(share * float("nan") if self._spoils(NAN_GRADIENT) else share, last)
        self._micro_batch += 1

    def step(self, rate: float) -> float:
        return self._engine.step(rate)  # type: ignore[no-any-return]

    def begin(self, step: int) -> None:
        self.step_number, self._micro_batch = step, 0

    def _spoils(self, kind: str) -> bool:
        return self._kind == kind and self._rank == 1 and self.step_number == BAD_STEP and self._micro_batch == 0


def skip_cell(config: PretrainConfig, kind: str) -> dict[str, Any]:
    """Four steps with something wrong in the third: norms, and every parameter and this rank's optimiser states at the end."""
    from deepspeed.utils import safe_get_full_fp32_param

    context = context_of(config)
    engine = build_engine(config, context)
    faulty, norms = Faulty(engine, kind, context.rank), []
    loader = loader_of(config, context.data_rank, context.layout.data_ranks)
    for step in range(STEPS):
        faulty.begin(step)
        batches = loader.share(step * config.batch.global_rows)
        if kind == LEFT_OUT and step == BAD_STEP:
            continue
        limit = -1.0 if kind == OUTLIER and step == BAD_STEP else 1e9
        rate = learning_rate(step, config.schedule)
        result = train_step(faulty, batches, rate, config.seed, step, context, guard=Guard(limit))
        norms.append(result.gradient_norm)
    states = [safe_get_full_fp32_param(parameter) for parameter in engine.module.parameters()]
    states += [value for state in engine.deepspeed.optimizer.optimizer.state.values() for value in state.values()]
    return {"norms": norms, "states": [state.detach().numpy().copy() for state in states]}


def stop_wishes(config: PretrainConfig, wishing: int) -> dict[str, Any]:
    """What count_globally says when one rank wants to stop, and when none does."""
    context = context_of(config)
    batches = loader_of(config, context.data_rank, context.layout.data_ranks).share(0)
    wished = count_globally(batches, context, context.rank == wishing)
    calm = count_globally(batches, context)
    return {"wished": wished.stop, "calm": calm.stop, "counts": dataclasses.astuple(calm)}


def late_rank(timeout_seconds: float) -> str:
    """Rank 1 stays in `load rows` while rank 0 waits for it in a collective with a short limit; what rank 0 then says."""
    from pretrain.parallel.engine import join_process_group

    join_process_group(120, None)
    rank = dist.get_rank()
    group = dist.new_group(timeout=datetime.timedelta(seconds=timeout_seconds))
    dist.barrier()
    said = ""
    with Watchdog(rank, dist.get_world_size(), 1, timeout_seconds) as watchdog:
        watchdog.enter(LOAD_ROWS, step=811)
        if rank == 0:
            watchdog.enter(COUNT)
            try:
                dist.all_reduce(torch.zeros(1), group=group)
            except RuntimeError as error:
                said = watchdog.explain_failure() if is_collective_failure(error) else f"no collective: {error}"
        else:
            time.sleep(3 * timeout_seconds)
        dist.barrier()
    return said

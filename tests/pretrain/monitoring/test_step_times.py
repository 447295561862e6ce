"""Covers ranks compared by their own time: percentiles, the straggler by name, and a rank that sleeps in a real engine."""

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pretrain.config.run import PretrainConfig
from pretrain.monitoring.metrics import STEP_SECONDS, STRAGGLER_RATIO, TIMING_KEYS
from pretrain.monitoring.step_times import ForwardTimer, RankTimes, StepTimes
from tests.distributed import RankPools
from tests.pretrain.cells import tiny_config


class Clock:
    """A clock that stands still until it is moved, so that no busy machine decides a test."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Sleeper(nn.Module):
    """A module whose pass takes two seconds of the clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.clock.now += 2.0
        return x


def times(*seconds: float) -> RankTimes:
    return RankTimes(np.array(seconds), tuple(f"node{rank // 2:02d}" for rank in range(len(seconds))))


def test_training_passes_are_timed_and_no_others() -> None:
    clock = Clock()
    module = Sleeper(clock)
    timer = ForwardTimer(module, torch.device("cpu"), clock)
    module(torch.zeros(1))
    clock.now += 100.0
    module(torch.zeros(1))
    assert timer.take() == 4.0
    module.eval()(torch.zeros(1))
    assert timer.take() == 0.0


def test_percentiles_are_times_of_ranks() -> None:
    values = times(*range(1, 11)).scalars()
    assert [values[name] for name in STEP_SECONDS] == [5.0, 9.0, 10.0]
    assert values[STRAGGLER_RATIO] == 2.0
    assert set(values) <= set(TIMING_KEYS)


def test_only_a_rank_far_from_the_median_is_named() -> None:
    assert times(1.0, 1.0, 1.0, 1.3).straggler == "straggler rank 3 (node01) 1.30x"
    assert times(1.0, 1.1, 1.0, 1.15).straggler == ""
    assert times(0.5).straggler == ""


def sleeping_rank(config: PretrainConfig, sleeper: int) -> dict[str, Any]:
    """Two steps of a real engine; `sleeper`'s clock moves by 3 s in each pass and 2 s of waiting, the others' by 1 s."""
    from pretrain.step import train_step
    from tests.pretrain.cells import _engine_of, loader_of

    engine, context = _engine_of(config)
    clock = Clock()
    step_times = StepTimes(engine.module, context, clock)
    slow = context.rank == sleeper

    def sleep(*_: Any) -> None:
        clock.now += 3.0 if slow else 1.0

    engine.module.pooler.register_forward_hook(sleep)
    loader = loader_of(config, context.data_rank, context.layout.data_ranks)
    for step in range(2):
        train_step(engine, loader.share(8 * step), 1e-3, config.seed, step, context)
        step_times.add(2.0 if slow else 0.0)
    passes = context.layout.micro_batches * len(config.model.exit_layers)
    found = step_times.gather()
    return {"passes": passes, "values": found.scalars(), "straggler": found.straggler, "again": step_times.gather().scalars()}


@pytest.mark.parametrize("sleeper", [0, 1])
def test_the_rank_that_sleeps_is_named_on_all_ranks(sleeper: int, pools: RankPools, dataset: Path) -> None:
    results = pools.of(2).run(sleeping_rank, tiny_config(dataset, micro_batch_rows=2), sleeper)
    assert results[0] == results[1]
    found = results[0]
    quick, slow = found["passes"] * 1.0, found["passes"] * 3.0 + 2.0
    assert [found["values"][name] for name in STEP_SECONDS] == [quick, slow, slow]
    assert found["straggler"] == f"straggler rank {sleeper} ({socket.gethostname()}) {slow / quick:.2f}x"
    assert found["again"][STEP_SECONDS[2]] == 0.0

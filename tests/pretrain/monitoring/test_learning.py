"""Covers what a run says of its own learning: unigram level, a task at chance, clipping, large steps, update ratios."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mose.dataset.packed_sequence import SpecialTokens
from mose.run_directory import VALIDATION, exit_scalar
from mose.schedule import ScheduleConfig
from pretrain.config.run import PretrainConfig
from pretrain.data.micro_batch import MicroBatch, placeholder
from pretrain.model.terms.registry import COLUMNS
from pretrain.model.terms.term import Denominators
from pretrain.monitoring import learning
from pretrain.monitoring.learning import UPDATE_RATIO, LearningWatch, UpdateRatios, layer_groups, unigram_entropy
from pretrain.step import BatchCounts, StepResult
from tests.pretrain.cells import tiny_config

STEPS = 60


def config_of(dataset: Path) -> PretrainConfig:
    return dataclasses.replace(tiny_config(dataset), max_steps=STEPS, schedule=ScheduleConfig(1e-3, 5, (), ()))


def step_of(mlm: float, task_correct: float = 60.0, norm: float = 0.5) -> StepResult:
    """A step of 1,000 masked tokens and 100 rows."""
    values = {"mlm": mlm * 1000, "task": 69.0, "distillation": 0.0, "mlm_correct": 0.0, "task_correct": task_correct}
    sums = torch.tensor([[values[name] for name in COLUMNS]] * 3, dtype=torch.float64)
    return StepResult(1.0, sums, Denominators(1000, 100), norm, BatchCounts(0, 0, 0))


def batch_of_64_tokens() -> MicroBatch:
    """Labels are the tokens 100 to 163, one of two rows is mixed."""
    batch = placeholder(SpecialTokens(0, 1, 2, 3, 4), 0)
    return dataclasses.replace(batch, labels_M=torch.arange(100, 164), mixed_B=torch.tensor([0, 1]))


def said(dataset: Path, result: StepResult, ratio: float = 0.01) -> dict[int, list[str]]:
    """What a run of equal steps says, by step."""
    watch, found = LearningWatch(config_of(dataset), nn.Module()), {}
    for step in range(1, STEPS + 1):
        watch.add(step, result, [batch_of_64_tokens()])
        if step % 5 == 0 and (lines := watch.lines(step, {f"{UPDATE_RATIO}exit_02": ratio})):
            found[step] = lines
    return found


def test_a_run_that_learns_says_nothing(dataset: Path) -> None:
    assert said(dataset, step_of(mlm=3.0)) == {}


def test_masked_tokens_at_the_unigram_level_are_told_once_after_the_warm_up_and_at_the_end(dataset: Path) -> None:
    level = math.log(64)
    found = said(dataset, step_of(mlm=level))
    assert list(found) == [10, STEPS]
    assert f"masked tokens at {level:.2f} nats, token frequencies alone give" in found[10][0]


def test_a_task_at_chance_is_told_once_enough_rows_were_seen(dataset: Path) -> None:
    found = said(dataset, step_of(mlm=3.0, task_correct=51.0))
    assert list(found) == [25, STEPS]
    assert "icc accuracy 0.510 +- 0.022 over 2,000 rows, chance is 0.500" in found[25][0]


def test_a_task_that_fits_the_training_repositories_alone_is_told_once_and_at_the_end(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watch, name = LearningWatch(config_of(dataset), nn.Module()), VALIDATION + exit_scalar("loss", 4, "icc")
    for step, loss in ((10, 0.70), (20, 0.77), (30, 0.80), (STEPS, 0.78)):
        watch.read_validation(step, {name: loss})
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 20", f"step {STEPS}"]
    assert "icc loss 0.77 nats on held-out rows, a coin has 0.69" in lines[0]


def test_clipping_at_every_step_is_told(dataset: Path) -> None:
    found = said(dataset, step_of(mlm=3.0, norm=3.0))
    assert list(found) == [20, STEPS]
    assert found[20][0].startswith("clipped at each of 20 steps")


def test_large_steps_are_told_with_their_group(dataset: Path) -> None:
    found = said(dataset, step_of(mlm=3.0), ratio=0.08)
    assert list(found) == [10, STEPS]
    assert "one step changes the weights of exit_02 by 8.0%" in found[10][0]


def test_a_skipped_step_counts_nothing_and_other_ranks_are_silent(dataset: Path) -> None:
    assert said(dataset, step_of(mlm=9.0, norm=math.inf)) == {}
    watch = LearningWatch(config_of(dataset), nn.Linear(2, 2), is_main=False)
    watch.before(is_logged=True)
    watch.add(10, step_of(mlm=9.0), [])
    assert watch.read(10) == {}


def test_entropy_of_few_tokens_is_near_that_of_their_source() -> None:
    random = np.random.default_rng(0)
    chances = random.dirichlet(np.full(500, 0.3))
    truth = -(chances[chances > 0] * np.log(chances[chances > 0])).sum()
    counts = random.multinomial(5000, chances)
    plain = -(counts[counts > 0] / 5000 * np.log(counts[counts > 0] / 5000)).sum()
    assert abs(unigram_entropy(counts) - truth) < abs(plain - truth)
    assert abs(unigram_entropy(counts) - truth) < 0.02
    assert unigram_entropy(np.zeros(4, dtype=np.int64)) == 0.0


def test_groups_are_embedding_heads_and_the_exit_that_a_layer_leads_to() -> None:
    names = ["starEncoder2.embed_tokens.weight", "starEncoder2.layers.0.mlp.c_fc.weight", "starEncoder2.layers.2.mlp.c_fc.weight"]
    groups = layer_groups([*names, "cls.predictions.decoder.weight", "pooler.dense.weight"], (1, 2, 4))
    assert list(groups.values()) == ["embedding", "exit_01", "exit_04", "heads", "heads"]


def test_ratio_is_the_change_of_one_step_over_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "_VALUES_PER_WEIGHT", 50)
    module = nn.ModuleDict({"embed_tokens": nn.Embedding(30, 20), "other": nn.Linear(10, 10)})
    ratios = UpdateRatios(module, (1,))
    assert ratios.read() == {}
    ratios.remember()
    with torch.no_grad():
        module["embed_tokens"].weight.mul_(0.99)
    found = ratios.read()
    assert found[f"{UPDATE_RATIO}embedding"] == pytest.approx(0.01 / 0.99, rel=1e-4)
    assert found[f"{UPDATE_RATIO}heads"] == 0.0

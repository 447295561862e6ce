"""Covers the divergence from the deepest exit: equal to torch's kl_div, gradients too, with padding columns, and cut over ranks.

Letters: M masked tokens, V vocabulary columns.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.initialization import initialize
from mose.model.modeling_mose import ModularStarEncoder
from pretrain.config.objective import ObjectiveConfig
from pretrain.config.run import BatchConfig, PretrainConfig
from pretrain.model.terms.distillation import divergence
from pretrain.model.terms.registry import COLUMNS
from pretrain.model.terms.term import Denominators
from pretrain.model.terms.vocabulary import log_probabilities, whole_vocabulary
from pretrain.model.training_model import TrainingModel
from tests.datasets import make_dataset
from tests.distributed import RankPools
from tests.pretrain.cells import loader_of, run_cell, tiny_config

WEIGHT, TEMPERATURE = 0.7, 2.0
OBJECTIVE = ObjectiveConfig(distillation_weight=WEIGHT, distillation_temperature=TEMPERATURE)


def torchs_divergence(student_MV: Tensor, teacher_MV: Tensor, temperature: float) -> Tensor:
    """The same by torch's own functions, [M]."""
    student, teacher = (F.log_softmax(logits / temperature, dim=1) for logits in (student_MV, teacher_MV))
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1) * temperature**2


@given(st.integers(0, 5), st.integers(2, 9), st.floats(0.3, 5), st.integers(0, 99))
def test_value_and_gradient_equal_torchs(tokens: int, columns: int, temperature: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ours_MV, teacher_MV = (3 * torch.randn(tokens, columns, generator=generator) for _ in range(2))
    theirs_MV = ours_MV.clone()
    ours = divergence(ours_MV.requires_grad_(), log_probabilities(teacher_MV, temperature), temperature)
    theirs = torchs_divergence(theirs_MV.requires_grad_(), teacher_MV, temperature)
    weights_M = torch.rand(tokens, generator=generator)
    (ours * weights_M).sum().backward()
    (theirs * weights_M).sum().backward()
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert torch.allclose(ours_MV.grad, theirs_MV.grad, rtol=1e-4, atol=1e-5)


def test_padding_columns_take_no_part() -> None:
    logits_MV, teacher_MV = torch.randn(4, 7), torch.randn(4, 7)
    padded, teacher = (F.pad(logits, (0, 3), value=float("-inf")) for logits in (logits_MV, teacher_MV))
    padded.requires_grad_()
    value_M = divergence(padded, log_probabilities(teacher, 1.0), 1.0)
    value_M.sum().backward()
    assert torch.allclose(value_M, torchs_divergence(logits_MV, teacher_MV, 1.0), atol=1e-6)
    assert not padded.grad[:, 7:].any()


def test_an_exit_that_agrees_with_the_teacher_has_nothing_to_learn() -> None:
    logits_MV = torch.randn(4, 7, requires_grad=True)
    value_M = divergence(logits_MV, log_probabilities(logits_MV, 3.0), 3.0)
    value_M.sum().backward()
    assert float(value_M.detach().abs().max()) < 1e-6
    assert float(logits_MV.grad.abs().max()) < 1e-6


def test_small_divergences_are_not_lost_in_rounding() -> None:
    teacher_MV = 0.3 * torch.randn(50, 320)
    student_MV = teacher_MV + 0.03 * torch.randn(50, 320)
    exact_M = torchs_divergence(student_MV.double(), teacher_MV.double(), 1.0)
    ours_M = divergence(student_MV, log_probabilities(teacher_MV, 1.0), 1.0)
    # torch's own function in float32 is off by about 1e-3 here.
    assert float(((ours_M - exact_M) / exact_M).abs().max()) < 1e-4


def test_half_precision_logits_get_their_gradient_in_half_precision() -> None:
    logits_MV = torch.randn(4, 7).bfloat16().requires_grad_()
    divergence(logits_MV, log_probabilities(torch.randn(4, 7), 1.0), 1.0).sum().backward()
    assert logits_MV.grad.dtype is torch.bfloat16


def distilled_loss(model: TrainingModel, batch: Any, layers: tuple[int, ...]) -> Tensor:
    """The objective written down plainly: full logits, torch's functions, the teacher detached."""
    states = model(batch, None)
    predicted = [model.cls.predict_tokens(state_ND, index)[batch.masked_N_indices] for index, state_ND in enumerate(states)]
    total = torch.zeros(())
    for index, (layer, state_ND) in enumerate(zip(layers, states, strict=True)):
        mlm = F.cross_entropy(predicted[index], batch.labels_M)
        icc = F.cross_entropy(model.cls.classify(model.pooler(state_ND[batch.cu_seqlens[1:].long() - 1]), index), batch.mixed_B)
        taught = torchs_divergence(predicted[index], predicted[-1].detach(), TEMPERATURE).mean() if layer != layers[-1] else 0.0
        total = total + layer / layers[-1] * (mlm + icc + WEIGHT * taught)
    return total


def plain_step(config: PretrainConfig) -> dict[str, Any]:
    """Loss and gradients of the first global batch by `distilled_loss`, on the whole vocabulary, without any engine."""
    encoder = ModularStarEncoder(ModularStarEncoderConfig(**config.model.hugging_face()))
    initialize(encoder, config.model.initializer_range, config.seed)
    model = TrainingModel(encoder, whole_vocabulary(config.model.vocabulary_size))
    (batch,) = loader_of(dataclasses.replace(config, batch=BatchConfig(8, 8)), 0, 1).share(0)
    loss = distilled_loss(model, batch, config.model.exit_layers)
    loss.backward()
    return {"loss": loss.item(), "gradients": {name: p.grad.numpy().copy() for name, p in model.named_parameters()}}


def check_gradients(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert np.abs(found[name] - gradient).max() <= 1e-5 * np.abs(gradient).max(), name


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("distilled"))


def config_of(rows: Path, tensor_ranks: int = 1, stage: int = 1) -> PretrainConfig:
    return dataclasses.replace(tiny_config(rows, tensor_ranks, 2, stage), objective=OBJECTIVE)


def test_objective_equals_torchs_on_the_plain_model(rows: Path) -> None:
    config = config_of(rows)
    expected = plain_step(config)
    encoder = ModularStarEncoder(ModularStarEncoderConfig(**config.model.hugging_face()))
    initialize(encoder, config.model.initializer_range, config.seed)
    model = TrainingModel(encoder, whole_vocabulary(config.model.vocabulary_size), OBJECTIVE)
    batches = loader_of(config, 0, 1).share(0)
    counts = Denominators(sum(batch.num_masked for batch in batches), sum(batch.num_rows for batch in batches))
    found = [model(batch, counts) for batch in batches]
    share = torch.stack([share for share, _ in found]).sum()
    share.backward()
    assert share.item() == pytest.approx(expected["loss"], rel=1e-5)
    check_gradients({name: p.grad.numpy() for name, p in model.named_parameters()}, expected["gradients"])
    column = sum(sums for _, sums in found)[:, COLUMNS.index("distillation")]
    assert column[-1] == 0.0
    assert (column[:-1] > 0).all()


@pytest.mark.parametrize(("tensor_ranks", "stage"), [(2, 1), (2, 3), (1, 2)])
def test_layouts_agree_with_the_plain_model(tensor_ranks: int, stage: int, rows: Path, pools: RankPools) -> None:
    config = config_of(rows, tensor_ranks, stage)
    expected = plain_step(config)
    cell = pools.of(2).run(run_cell, config, 1)[0]
    assert cell["losses"][0] == pytest.approx(expected["loss"], rel=1e-5)
    check_gradients(cell["gradients"], expected["gradients"])


@pytest.mark.soak
@pytest.mark.parametrize(("tensor_ranks", "stage"), [(2, 0), (2, 2), (1, 0), (1, 1), (1, 3)])
def test_every_other_layout(tensor_ranks: int, stage: int, rows: Path, pools: RankPools) -> None:
    test_layouts_agree_with_the_plain_model(tensor_ranks, stage, rows, pools)

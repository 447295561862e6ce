"""The optimiser of the retrieval stage: rates by parameter and by step, and a gradient no longer than asked for."""

import pytest
import torch

from finetune.config import RetrievalConfig
from finetune.retrieval.optimization import LOGIT_SCALES, build_optimizer, learning_rate, optimizer_step
from mose.checkpoint.converted_checkpoint import random_like, retrieval_from_pretrained
from mose.model.modeling_mose import ModularStarEncoderForRetrieval
from tests.finetune.conftest import tiny_config


def config_of(**values: object) -> RetrievalConfig:
    return RetrievalConfig("model", "pairs", "out", **{"steps": 10, **values})  # type: ignore[arg-type]


@pytest.fixture
def model() -> ModularStarEncoderForRetrieval:
    return retrieval_from_pretrained(random_like(tiny_config(), seed=3), seed=0)


def test_the_paper_s_rate_is_constant_and_without_warm_up():
    default = RetrievalConfig("model", "pairs", "out")
    assert {learning_rate(step, default) for step in (0, 1, 500, 19_999)} == {1e-5}


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("cosine", [0.5, 1, 1, 0.9619, 0.8536, 0.6913, 0.5, 0.3087, 0.1464, 0.0381]),
    ],
)
def test_rate_rises_and_decays(decay: str, expected: list[float]):
    config = config_of(learning_rate=2.0, warmup_steps=2, decay=decay)
    assert [learning_rate(step, config) / 2 for step in range(10)] == pytest.approx(expected, abs=1e-4)


def test_embedding_and_heads_have_rates_of_their_own(model: ModularStarEncoderForRetrieval):
    config = config_of(learning_rate=1.0, warmup_steps=2, embedding_learning_rate_factor=5.0, head_learning_rate_factor=0.1)
    optimizer = build_optimizer(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer_step(model, optimizer, 0, config)
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        factor = 5.0 if "embed_tokens" in name else 0.1 if name.startswith("projection_heads") else 1.0
        assert rates[id(parameter)] == pytest.approx(0.5 * factor), name
    assert len(rates) == len(list(model.parameters()))


def test_a_learned_logit_scale_has_its_own_rate_and_ends_at_100(model: ModularStarEncoderForRetrieval):
    config = config_of(learning_rate=1.0, logit_scale_learning_rate_factor=0.5, gradient_clipping=0.0)
    scales = torch.nn.Parameter(torch.tensor([10.0, 10.0, 99.0]).log())
    model.register_parameter(LOGIT_SCALES, scales)
    optimizer = build_optimizer(model, config)
    scales.grad = torch.tensor([1.0, -1.0, -1.0])
    optimizer_step(model, optimizer, 0, config)
    # Adam's first step is the rate, .5, downhill.
    assert scales.exp().tolist() == pytest.approx([10 / 1.6487, 10 * 1.6487, 100.0], rel=1e-4)


@pytest.mark.parametrize(("limit", "expected"), [(0.0, 6.0), (2.0, 2.0), (9.0, 6.0)])
def test_gradient_is_clipped_and_its_norm_before_is_reported(
    model: ModularStarEncoderForRetrieval, monkeypatch: pytest.MonkeyPatch, limit: float, expected: float
):
    config = config_of(gradient_clipping=limit)
    optimizer = build_optimizer(model, config)
    seen = []
    monkeypatch.setattr(optimizer, "step", lambda: seen.append(total_norm(model)))
    count = sum(parameter.numel() for parameter in model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 6.0 / count**0.5)
    assert optimizer_step(model, optimizer, 0, config) == pytest.approx(6.0, rel=1e-4)
    assert seen == [pytest.approx(expected, rel=1e-4)]
    assert all(parameter.grad is None for parameter in model.parameters())


def total_norm(model: torch.nn.Module) -> float:
    return float(torch.stack([p.grad.square().sum() for p in model.parameters() if p.grad is not None]).sum().sqrt())

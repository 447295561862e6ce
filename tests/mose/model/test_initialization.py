"""Covers initial weights: drawn from name and seed alone, with the released distribution."""

import torch

from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.initialization import draw_parameter, initialize
from mose.model.modeling_mose import ModularStarEncoder


def test_same_name_and_seed_same_weights() -> None:
    a, b = (draw_parameter("starEncoder2.layers.0.mlp.c_fc.weight", (40, 30), 0.02, 5) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, draw_parameter("starEncoder2.layers.1.mlp.c_fc.weight", (40, 30), 0.02, 5))
    assert not torch.equal(a, draw_parameter("starEncoder2.layers.0.mlp.c_fc.weight", (40, 30), 0.02, 6))


def test_distribution() -> None:
    weights = draw_parameter("starEncoder2.embed_tokens.weight", (500, 400), 0.018042, 0)
    assert abs(float(weights.std()) - 0.018042) < 1e-4
    assert abs(float(weights.mean())) < 2e-4
    assert torch.equal(draw_parameter("pooler.dense.bias", (7,), 0.02, 0), torch.zeros(7))
    assert torch.equal(draw_parameter("starEncoder2.norm.weight", (7,), 0.02, 0), torch.ones(7))


def test_global_generator_is_left_alone() -> None:
    config = ModularStarEncoderConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        matryoshka_layers=[1],
    )
    model = ModularStarEncoder(config)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    initialize(model, 0.02, 0)
    assert torch.equal(before, torch.get_rng_state())

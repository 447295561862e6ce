"""Covers initial weights: drawn from name and seed alone, with the released distribution."""

import pytest
import torch
import torch.nn.functional as F

from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.initialization import AVERAGING, draw_parameter, initialize
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


def test_averaging_starts_with_cls_as_the_mean_of_its_row() -> None:
    config = ModularStarEncoderConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        matryoshka_layers=[1, 2],
    )
    model = ModularStarEncoder(config).eval()
    initialize(model, 0.1, 0, AVERAGING)
    trunk, layer = model.starEncoder2, model.starEncoder2.layers[0]
    ids, positions, bounds = torch.arange(50), torch.arange(50), torch.tensor([0, 50], dtype=torch.int32)
    with torch.inference_mode():
        state_D = trunk(ids, positions, bounds, 50)[0][-1]
        mean_D = F.layer_norm(trunk.embed_tokens(ids), (32,)).mean(dim=0)
        rotated_D = layer.self_attn.o_proj.weight @ layer.self_attn.v_proj.weight @ mean_D
        gained_D = state_D - trunk.embed_tokens(ids[-1])
    assert F.cosine_similarity(gained_D, rotated_D, dim=0) > 0.99
    assert rotated_D.norm().item() == pytest.approx(mean_D.norm().item(), rel=1e-4)


def test_averaging_differs_from_normal_in_the_layers_alone() -> None:
    for name in ("starEncoder2.embed_tokens.weight", "pooler.dense.weight", "starEncoder2.layers.0.mlp.c_fc.weight"):
        assert torch.equal(draw_parameter(name, (8, 8), 0.02, 0), draw_parameter(name, (8, 8), 0.02, 0, AVERAGING))
    value = draw_parameter("starEncoder2.layers.0.self_attn.v_proj.weight", (4, 8), 0.02, 0, AVERAGING)
    torch.testing.assert_close(value @ value.T, torch.eye(4))


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

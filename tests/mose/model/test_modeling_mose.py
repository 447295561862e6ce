"""Covers the encoder: parity with transformers' bidirectional Starcoder2, padding, the 590 published tensors, heads."""

import itertools

import pytest
import torch
from torch import Tensor
from transformers import Starcoder2Config, Starcoder2Model

from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.modeling_mose import ModularStarEncoder, ModularStarEncoderForRetrieval
from mose.model.rows_mose import unpad

EXITS = [1, 2, 4, 6, 8]
SHAPE = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
LENGTHS = (23, 5, 17)
WIDTH = 23


def made_model(**changes: object) -> ModularStarEncoder:
    torch.manual_seed(0)
    return ModularStarEncoder(ModularStarEncoderConfig(**{**SHAPE, "matryoshka_layers": EXITS, **changes})).eval()


def padded_rows(side: str) -> tuple[Tensor, Tensor]:
    """The same three rows, padded on the left or on the right."""
    generator = torch.Generator().manual_seed(1)
    ids_BT, mask_BT = torch.zeros(len(LENGTHS), WIDTH, dtype=torch.long), torch.zeros(len(LENGTHS), WIDTH, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        slots = slice(WIDTH - length, WIDTH) if side == "left" else slice(0, length)
        ids_BT[row, slots] = torch.randint(5, 97, (length,), generator=generator)
        mask_BT[row, slots] = 1
    return ids_BT, mask_BT


@pytest.mark.parametrize("initializer_range", [0.018042, 0.06])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_every_exit_equals_transformers_starcoder2_made_bidirectional(initializer_range: float, implementation: str) -> None:
    model = made_model(initializer_range=initializer_range)
    rope = {"rope_type": "default", "rope_theta": model.config.rope_theta}
    reference_config = Starcoder2Config(
        **SHAPE,
        is_causal=False,
        sliding_window=None,
        rope_parameters=rope,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    reference = Starcoder2Model._from_config(reference_config, attn_implementation=implementation).eval()
    reference.load_state_dict(model.starEncoder2.state_dict(), strict=True)
    ids_BT, mask_BT = padded_rows("left")
    positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    theirs = reference(
        input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions_BT, output_hidden_states=True
    ).hidden_states
    ours = model(input_ids=ids_BT, attention_mask=mask_BT).exit_hidden_states
    for layer, state in zip(EXITS, ours, strict=True):
        a, b = state[mask_BT.bool()], theirs[layer][mask_BT.bool()]
        assert (a - b).abs().max() <= 5e-6 * b.abs().max(), f"exit {layer}"


@torch.no_grad()
def test_left_padded_equals_right_padded_equals_alone() -> None:
    model = made_model()
    states = {}
    for side in ("left", "right"):
        ids_BT, mask_BT = padded_rows(side)
        states[side] = [state[mask_BT.bool()] for state in model(input_ids=ids_BT, attention_mask=mask_BT).exit_hidden_states]
    ids_BT, mask_BT = padded_rows("left")
    alone = [model(input_ids=row[mask.bool()][None]).exit_hidden_states for row, mask in zip(ids_BT, mask_BT, strict=True)]
    for index in range(len(EXITS)):
        single = torch.cat([states_of_row[index][0] for states_of_row in alone])
        assert torch.equal(states["left"][index], states["right"][index])
        assert (states["left"][index] - single).abs().max() <= 5e-6 * single.abs().max()


def test_rows_do_not_see_each_other() -> None:
    model = made_model()
    ids_BT, mask_BT = padded_rows("left")
    changed_BT = ids_BT.clone()
    changed_BT[0, -1] = 96 if ids_BT[0, -1] != 96 else 95
    with torch.no_grad():
        before, after = (model(input_ids=ids, attention_mask=mask_BT).last_hidden_state for ids in (ids_BT, changed_BT))
    assert torch.equal(before[1:], after[1:])
    assert not torch.equal(before[0], after[0])


def test_attention_is_bidirectional() -> None:
    model = made_model()
    ids_BT, mask_BT = padded_rows("right")
    changed_BT = ids_BT.clone()
    changed_BT[0, 22] = 96 if ids_BT[0, 22] != 96 else 95
    with torch.no_grad():
        before, after = (model(input_ids=ids, attention_mask=mask_BT).exit_hidden_states[0] for ids in (ids_BT, changed_BT))
    assert not torch.equal(before[0, 0], after[0, 0])


def test_published_checkpoint_has_these_590_tensors() -> None:
    with torch.device("meta"):
        model = ModularStarEncoder(ModularStarEncoderConfig())
    layer = {
        "input_layernorm.weight": [1024],
        "input_layernorm.bias": [1024],
        "post_attention_layernorm.weight": [1024],
        "post_attention_layernorm.bias": [1024],
        "self_attn.q_proj.weight": [1024, 1024],
        "self_attn.q_proj.bias": [1024],
        "self_attn.o_proj.weight": [1024, 1024],
        "self_attn.o_proj.bias": [1024],
        "self_attn.k_proj.weight": [256, 1024],
        "self_attn.k_proj.bias": [256],
        "self_attn.v_proj.weight": [256, 1024],
        "self_attn.v_proj.bias": [256],
        "mlp.c_fc.weight": [12288, 1024],
        "mlp.c_fc.bias": [12288],
        "mlp.c_proj.weight": [1024, 12288],
        "mlp.c_proj.bias": [1024],
    }
    expected = {f"starEncoder2.layers.{i}.{name}": shape for i, (name, shape) in itertools.product(range(36), layer.items())}
    expected |= {
        "starEncoder2.embed_tokens.weight": [49156, 1024],
        "starEncoder2.norm.weight": [1024],
        "starEncoder2.norm.bias": [1024],
        "pooler.dense.weight": [1024, 1024],
        "pooler.dense.bias": [1024],
        "cls.conditional_embeddings.weight": [5, 4],
        "cls.predictions.transform.dense.weight": [1028, 1028],
        "cls.predictions.transform.dense.bias": [1028],
        "cls.predictions.transform.LayerNorm.weight": [1028],
        "cls.predictions.transform.LayerNorm.bias": [1028],
        "cls.predictions.decoder.weight": [49156, 1028],
        "cls.predictions.bias": [49156],
        "cls.seq_relationship.weight": [2, 1028],
        "cls.seq_relationship.bias": [2],
    }
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == expected
    assert len(expected) == 590
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_104_091_214


def test_no_buffers_anywhere() -> None:
    # A non-persistent buffer comes back from a saved folder as garbage, silently.
    assert list(made_model().buffers()) == []
    assert list(ModularStarEncoderForRetrieval(made_model().config).buffers()) == []


def test_heads_tell_exits_apart() -> None:
    model = made_model()
    state_MD = torch.randn(7, 64)
    logits = [model.cls.predict_tokens(state_MD, index) for index in range(len(EXITS))]
    assert logits[0].shape == (7, 97)
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(logits))
    assert model.cls.classify(torch.randn(3, 64), 2).shape == (3, 2)


def test_retrieval_embeds_the_last_token_of_each_row_after_projection() -> None:
    torch.manual_seed(0)
    model = ModularStarEncoderForRetrieval(ModularStarEncoderConfig(**SHAPE, matryoshka_layers=EXITS)).eval()
    ids_BT, mask_BT = padded_rows("left")
    rows = unpad(mask_BT)
    with torch.no_grad():
        packed = model.embed(ids_BT[mask_BT.bool()], rows.positions_N, rows.cu_seqlens, rows.max_length)
        out = model(input_ids=ids_BT, attention_mask=mask_BT, exit_layer=4)
    for a, b in zip(packed, out.projected_pooled_normalized, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
        assert torch.allclose(a.norm(dim=-1), torch.ones(3), atol=1e-6)
    by_hand = torch.nn.functional.normalize(out.last_hidden_state[:, -1], dim=-1)
    assert torch.allclose(by_hand, packed[EXITS.index(4)], atol=1e-6)

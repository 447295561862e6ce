"""Covers what activation checkpointing keeps: fewer bytes, by as much as is said, and the same numbers in one process.

Equality in every layout, with dropout, is in test_layouts.py.
"""

import pytest
import torch

from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.modeling_mose import StarEncoder2
from pretrain.model.activation_checkpointing import apply_activation_checkpointing

TOKENS, LAYERS, WIDTH, FEED_FORWARD = 24, 3, 16, 128


def run(kind: str) -> tuple[int, list[torch.Tensor]]:
    """Bytes that autograd keeps in tensors of its own after a forward pass, and the gradients."""
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "hidden_size": WIDTH, "intermediate_size": FEED_FORWARD, "num_hidden_layers": LAYERS}
    config = ModularStarEncoderConfig(**shape, num_attention_heads=2, num_key_value_heads=1, matryoshka_layers=[1, LAYERS])
    trunk = StarEncoder2(config).eval()
    apply_activation_checkpointing(trunk, kind)
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    bounds = torch.tensor([0, TOKENS // 2, TOKENS], dtype=torch.int32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        states = trunk(torch.arange(TOKENS), torch.arange(TOKENS // 2).repeat(2), bounds, TOKENS // 2)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    sum(state.square().sum() for state in states).backward()
    return sum(storages.values()), [parameter.grad for parameter in trunk.parameters() if parameter.grad is not None]


@pytest.fixture(scope="module")
def plain() -> tuple[int, list[torch.Tensor]]:
    return run("none")


@pytest.mark.parametrize("kind", ["selective", "full"])
def test_gradients_are_the_same_to_the_bit(kind: str, plain: tuple[int, list[torch.Tensor]]) -> None:
    gradients = run(kind)[1]
    assert len(gradients) == len(plain[1]) > 20
    assert all(torch.equal(a, b) for a, b in zip(gradients, plain[1], strict=True))


def test_selective_gives_up_the_feed_forward_activation_and_full_more(plain: tuple[int, list[torch.Tensor]]) -> None:
    selective, full = run("selective")[0], run("full")[0]
    activation = LAYERS * TOKENS * FEED_FORWARD * 4
    assert plain[0] - selective >= activation
    assert plain[0] - full > 1.8 * activation


def test_no_memory_is_taken_away_without_a_backward_pass() -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2}
    config = ModularStarEncoderConfig(**shape, num_attention_heads=2, num_key_value_heads=1, matryoshka_layers=[2])
    trunk, bounds = StarEncoder2(config).eval(), torch.tensor([0, 8], dtype=torch.int32)
    with torch.no_grad():
        before = trunk(torch.arange(8), torch.arange(8), bounds, 8)[0]
        apply_activation_checkpointing(trunk, "selective")
        assert torch.equal(trunk(torch.arange(8), torch.arange(8), bounds, 8)[0], before)

"""Covers dropout's seeds: masks follow from place and micro-batch, and from the tensor rank where ranks drop different parts."""

import pytest
import torch
from torch import Tensor

from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.modeling_mose import StarEncoder2
from pretrain.model.dropout import DropoutSeeds

TOKENS = 12


def small_trunk(attention: float, others: float) -> StarEncoder2:
    """Two layers, always with the same weights."""
    torch.manual_seed(1)
    dropouts = {"attention_dropout": attention, "residual_dropout": others, "embedding_dropout": others}
    shape = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return StarEncoder2(ModularStarEncoderConfig(**shape, num_key_value_heads=1, matryoshka_layers=[1, 2], **dropouts))


def run(trunk: StarEncoder2) -> list[Tensor]:
    """Exit states of two rows."""
    cu_seqlens = torch.tensor([0, 5, TOKENS], dtype=torch.int32)
    positions_N = torch.cat((torch.arange(5), torch.arange(7)))
    return trunk(torch.arange(TOKENS), positions_N, cu_seqlens, 7)  # type: ignore[no-any-return]


def states(tensor_rank: int, micro_batch: int = 0, attention: float = 0.0, others: float = 0.3, **flags: bool) -> list[Tensor]:
    """Exit states of one micro-batch on one tensor rank; `flags` go to the seeds."""
    trunk = small_trunk(attention, others)
    seeds = DropoutSeeds(tensor_rank, **{"sequence_parallel": False, **flags})
    seeds.attach(trunk)
    torch.manual_seed(100 + micro_batch)
    seeds.begin()
    return run(trunk)


def generator_states(attention: float) -> list[Tensor]:
    """Where torch's generator stands at the feed-forward layer of each layer, after the first residual's mask was drawn."""
    trunk, found = small_trunk(attention, 0.3), []
    seeds = DropoutSeeds(0, sequence_parallel=False)
    seeds.attach(trunk)
    for layer in trunk.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: found.append(torch.get_rng_state()))
    torch.manual_seed(7)
    seeds.begin()
    run(trunk)
    return found


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_micro_batch_has_its_own_masks() -> None:
    assert equal(states(0), states(0))
    assert not equal(states(0), states(0, micro_batch=1))
    assert not equal(states(0), states(0, others=0.0))


@pytest.mark.parametrize(("sequence_parallel", "same"), [(False, True), (True, False)])
def test_token_masks_differ_between_tensor_ranks_under_sequence_parallelism_alone(sequence_parallel: bool, same: bool) -> None:
    first, second = (states(rank, sequence_parallel=sequence_parallel) for rank in (0, 1))
    assert equal(first, second) == same


def test_attention_masks_differ_between_tensor_ranks_as_their_heads_do() -> None:
    assert not equal(states(0, attention=0.3, others=0.0), states(1, attention=0.3, others=0.0))


def test_token_masks_do_not_depend_on_what_attention_drew() -> None:
    drawn = [generator_states(attention) for attention in (0.0, 0.3)]
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))
    assert not torch.equal(drawn[0][0], drawn[0][1])

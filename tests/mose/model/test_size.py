"""Covers parameter and operation counts against the model itself and torch's own counter."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.modeling_mose import ModularStarEncoder
from mose.model.size import encoder_parameters, flops_per_row, head_parameters

TINY = ModularStarEncoderConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    matryoshka_layers=[1, 2, 4],
)


def test_published_sizes() -> None:
    config = ModularStarEncoderConfig()
    assert encoder_parameters(config, 36) == 1_051_398_144
    assert head_parameters(config) == 52_693_070
    # The paper's first exit is "160M parameters" (section 1).
    assert round(encoder_parameters(config, 4) / 1e6) == 162


def test_counts_equal_the_model() -> None:
    model = ModularStarEncoder(TINY)
    assert sum(p.numel() for p in model.starEncoder2.parameters()) == encoder_parameters(TINY, 4)
    heads = [*model.cls.parameters(), *model.pooler.parameters()]
    assert sum(p.numel() for p in heads) == head_parameters(TINY)


def test_operations_equal_torch_counter() -> None:
    model = ModularStarEncoder(TINY).eval()
    counter = FlopCounterMode(display=False)
    # The plain kernel, since the counter does not know the fused one on CPU.
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model.starEncoder2(torch.zeros(11, dtype=torch.long), torch.arange(11), torch.tensor([0, 11], dtype=torch.int32), 11)
    assert counter.get_total_flops() == flops_per_row(TINY, 4, 11)


def test_shallow_exit_saves_what_the_paper_says() -> None:
    # Section 1: "a 90% reduction in floating point operations from layer 36 to layer 4".
    config = ModularStarEncoderConfig()
    saved = 1 - flops_per_row(config, 4, 2048) / flops_per_row(config, 36, 2048)
    assert 0.88 < saved < 0.90

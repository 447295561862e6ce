"""The padded vocabulary projection: loss and gradients of the plain one, one padding per micro-batch, only where it pays."""

import copy
import dataclasses

import pytest
import torch

from benchmarks.gpu_parts.rows import drawn_batches
from benchmarks.gpu_parts.single_device import counts_of, encoder_of
from mose.model.model_config import ModelConfig
from pretrain.config.run import Layout, ParallelConfig
from pretrain.model import padded_decoder
from pretrain.model.padded_decoder import PaddedDecoder
from pretrain.model.terms.vocabulary import whole_vocabulary
from pretrain.model.training_model import TrainingModel, build_training_model
from pretrain.parallel.context import ParallelContext

TINY = ModelConfig(
    vocabulary_size=64,
    width=32,
    feed_forward_width=64,
    num_layers=3,
    num_heads=4,
    num_key_value_heads=2,
    exit_layers=(1, 2, 3),
    max_length=64,
    attention_dropout=0.0,
    residual_dropout=0.0,
    embedding_dropout=0.0,
)


def test_losses_and_gradients_are_those_of_the_plain_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = encoder_of(TINY, torch.device("cpu"), torch.float32)
    padded = copy.deepcopy(plain)
    decoder = padded.cls.predictions.decoder
    assert decoder.in_features % 64
    models = [
        TrainingModel(plain, whole_vocabulary(TINY.vocabulary_size)),
        TrainingModel(padded, whole_vocabulary(TINY.vocabulary_size), decoder=PaddedDecoder(decoder)),
    ]
    paddings = []
    original = padded_decoder.F.pad

    def counted(tensor: torch.Tensor, widths: tuple[int, int]) -> torch.Tensor:
        paddings.append(tensor.shape[0])
        return original(tensor, widths)

    monkeypatch.setattr(padded_decoder.F, "pad", counted)
    # Two micro-batches before an update: gradients add up.
    for batch in drawn_batches("dense", 2, 2, 64, TINY.vocabulary_size):
        shares = [model(batch, counts_of(batch)[0])[0] for model in models]
        torch.testing.assert_close(shares[1], shares[0])
        for share in shares:
            share.backward()
    for (name, one), (_, other) in zip(models[0].named_parameters(), models[1].named_parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-5, atol=1e-7, msg=name)
    # The weight once per micro-batch, whatever the number of exits and of recomputations.
    assert sum(rows == decoder.weight.shape[0] for rows in paddings) == 2


@pytest.mark.parametrize(
    ("device", "dtype", "zero_stage", "is_padded"),
    [
        ("cuda", torch.bfloat16, 1, True),
        ("cuda", torch.bfloat16, 3, False),
        ("cuda", torch.float32, 1, False),
        ("cpu", torch.bfloat16, 1, False),
    ],
)
def test_it_is_padded_in_bf16_on_cuda(device: str, dtype: torch.dtype, zero_stage: int, is_padded: bool) -> None:
    context = ParallelContext(0, 0, 0, Layout(1, 1, 1, 1), torch.device(device), None, None)
    model = build_training_model(TINY, ParallelConfig(zero_stage=zero_stage), 0, dtype, context, from_checkpoint=True)
    assert (model._decoder is not None) == is_padded
    wide = dataclasses.replace(TINY, layer_index_width=0, width=64)
    model = build_training_model(wide, ParallelConfig(zero_stage=zero_stage), 0, dtype, context, from_checkpoint=True)
    assert model._decoder is None

"""Covers what the engine does beside DeepSpeed: float32 sums of micro-batches, aligned weights, no drawn weights on resume."""

from pathlib import Path

import pytest
import torch

from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.model_config import ModelConfig
from mose.model.modeling_mose import ModularStarEncoder
from pretrain.config.run import OptimizerConfig
from pretrain.model.terms.vocabulary import whole_vocabulary
from pretrain.model.training_model import TrainingModel
from pretrain.parallel.engine import parameter_groups
from tests.pretrain.elastic_cells import largest_difference
from tests.pretrain.forked import call_forked
from tests.pretrain.parallel.gradient_cells import accumulate, resume_other_order, resume_same_order

BF16_BYTES = 2
# 64 equal parts of a bf16 gradient add up to it without rounding in float32; in bf16 the norm is off by 5e-4.
EXACT = 5e-5


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_micro_batches_add_up_in_float32(zero_stage: int, dataset: Path) -> None:
    found = call_forked(accumulate, dataset, zero_stage, True)
    assert found["added"] == pytest.approx(found["once"], rel=EXACT)
    assert found["types"] <= {"torch.float32"}


def test_micro_batches_that_add_up_in_bf16_are_seen(dataset: Path) -> None:
    found = call_forked(accumulate, dataset, 1, False)
    assert found["added"] != pytest.approx(found["once"], rel=EXACT)
    assert found["types"] == {"torch.bfloat16"}


@pytest.fixture(scope="module")
def large_model() -> TrainingModel:
    config = ModelConfig(vocabulary_size=49156)
    shape = ModularStarEncoderConfig(**{**config.hugging_face(), "vocab_size": config.padded_vocabulary_size})
    with torch.device("meta"):
        return TrainingModel(ModularStarEncoder(shape), whole_vocabulary(config.vocabulary_size))


def misaligned(model: TrainingModel, aligned: bool) -> list[int]:
    """Sizes of the weights over 1 MB that begin inside 16 bytes where a group is laid out one after the other."""
    found = []
    for group in parameter_groups(model, OptimizerConfig(), aligned):
        offset = 0
        for parameter in group["params"]:
            if parameter.numel() * BF16_BYTES > 1 << 20 and offset * BF16_BYTES % 16:
                found.append(parameter.numel())
            offset += parameter.numel()
    return found


def test_large_weights_begin_at_16_bytes(large_model: TrainingModel) -> None:
    assert misaligned(large_model, aligned=True) == []
    # In the order of the model, 20 numbers stand before these.
    assert misaligned(large_model, aligned=False) != []


def test_the_order_of_others_is_the_models(large_model: TrainingModel) -> None:
    plain, aligned = (parameter_groups(large_model, OptimizerConfig(), order) for order in (False, True))
    for one, other in zip(plain, aligned, strict=True):
        assert {id(parameter) for parameter in one["params"]} == {id(parameter) for parameter in other["params"]}
        full = [[parameter for parameter in group["params"] if parameter.numel() % 8 == 0] for group in (one, other)]
        assert [id(parameter) for parameter in full[0]] == [id(parameter) for parameter in full[1]]


def test_the_vocabulary_can_have_a_rate_of_its_own(large_model: TrainingModel) -> None:
    names = {id(parameter): name for name, parameter in large_model.named_parameters()}
    plain = parameter_groups(large_model, OptimizerConfig())
    assert [group["factor"] for group in plain] == [1.0, 1.0]
    groups = parameter_groups(large_model, OptimizerConfig(vocabulary_learning_rate_factor=10.0), aligned=True)
    assert [(group["factor"], group["weight_decay"]) for group in groups] == [(1.0, 0.1), (1.0, 0.0), (10.0, 0.01)]
    # Two matrices; the bias of the output projection stays with the biases.
    own = {names[id(parameter)] for parameter in groups[2]["params"]}
    assert own == {"starEncoder2.embed_tokens.weight", "cls.predictions.decoder.weight"}
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(names)


def test_a_checkpoint_with_the_older_order_is_converted(dataset: Path, tmp_path: Path) -> None:
    found = call_forked(resume_other_order, dataset, tmp_path)
    assert found["converted"]
    assert largest_difference(found["losses"], found["undisturbed"]) < 1e-5


def test_a_resumed_run_draws_nothing_and_reads_every_weight(dataset: Path, tmp_path: Path) -> None:
    found = call_forked(resume_same_order, dataset, tmp_path)
    assert not found["converted"]
    assert found["losses"] == found["undisturbed"]

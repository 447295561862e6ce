"""Covers the multi-exit loss: the paper's weights, dead vocabulary columns, sums that do not depend on how rows are split."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.exits import exit_weights
from mose.model.modeling_mose import ModularStarEncoder
from mose.tokenizer import Tokenizer
from pretrain.config.objective import ObjectiveConfig
from pretrain.data.loader import BatchPlan, GlobalBatchLoader
from pretrain.model.terms.registry import COLUMNS
from pretrain.model.terms.term import Denominators
from pretrain.model.terms.vocabulary import whole_vocabulary
from pretrain.model.training_model import TrainingModel
from pretrain.storage.local_rows import LocalRows
from tests.pretrain.cells import tiny_config


def model_of(dataset: Path, vocabulary_rows: int, live_rows: int) -> TrainingModel:
    torch.manual_seed(0)
    shape = {**tiny_config(dataset).model.hugging_face(), "vocab_size": vocabulary_rows}
    return TrainingModel(ModularStarEncoder(ModularStarEncoderConfig(**shape)), whole_vocabulary(live_rows))


def loader_of(dataset: Path, tokenizer: Tokenizer, micro_batch_rows: int) -> GlobalBatchLoader:
    return GlobalBatchLoader(
        LocalRows(dataset, "train"), BatchPlan(1, 8, micro_batch_rows, tokenizer.special, tokenizer.ordinary_ids())
    )


def test_weights_are_the_papers() -> None:
    assert exit_weights((4, 9, 18, 27, 36), 36) == (4 / 36, 9 / 36, 18 / 36, 27 / 36, 1.0)


@pytest.mark.parametrize("micro_batch_rows", [1, 2, 4])
def test_shares_add_up_to_the_loss_of_the_whole_batch(micro_batch_rows: int, dataset: Path, tokenizer: Tokenizer) -> None:
    model = model_of(dataset, 512, tokenizer.vocabulary_size)
    (whole,) = loader_of(dataset, tokenizer, 8).share(0)
    counts = Denominators(whole.num_masked, whole.num_rows)
    expected, expected_sums = model(whole, counts)
    parts = [model(batch, counts) for batch in loader_of(dataset, tokenizer, micro_batch_rows).share(0)]
    assert torch.allclose(sum(share for share, _ in parts), expected, rtol=1e-5)
    assert torch.allclose(sum(sums for _, sums in parts), expected_sums, rtol=1e-5)


def test_predictions_are_counted_once_per_exit(dataset: Path, tokenizer: Tokenizer) -> None:
    """Not again in the recomputation of the backward pass, where tensor ranks would reduce their maxima once more."""
    counted: list[int] = []
    plain = whole_vocabulary(tokenizer.vocabulary_size)

    def correct(logits_MV: torch.Tensor, labels_M: torch.Tensor) -> torch.Tensor:
        counted.append(len(labels_M))
        return plain.correct(logits_MV, labels_M)

    shape = {**tiny_config(dataset).model.hugging_face(), "vocab_size": tokenizer.vocabulary_size}
    encoder = ModularStarEncoder(ModularStarEncoderConfig(**shape))
    model = TrainingModel(encoder, dataclasses.replace(plain, correct=correct))
    (batch,) = loader_of(dataset, tokenizer, 8).share(0)
    share, _ = model(batch, Denominators(batch.num_masked, batch.num_rows))
    share.backward()
    assert counted == [batch.num_masked] * 3


def test_loss_equals_cross_entropy_of_full_logits(dataset: Path, tokenizer: Tokenizer) -> None:
    model = model_of(dataset, tokenizer.vocabulary_size, tokenizer.vocabulary_size)
    (batch,) = loader_of(dataset, tokenizer, 8).share(0)
    share, sums = model(batch, Denominators(batch.num_masked, batch.num_rows))
    states = model(batch, None)
    expected = torch.zeros(())
    for index, (state_ND, weight) in enumerate(zip(states, exit_weights((1, 2, 4), 4), strict=True)):
        logits_NV = model.cls.predict_tokens(state_ND, index)
        mlm = F.cross_entropy(logits_NV[batch.masked_N_indices], batch.labels_M)
        icc = F.cross_entropy(model.cls.classify(model.pooler(state_ND[batch.cu_seqlens[1:].long() - 1]), index), batch.mixed_B)
        expected = expected + weight * (mlm + icc)
        right = (logits_NV.argmax(1)[batch.masked_N_indices] == batch.labels_M).sum()
        assert sums[index, COLUMNS.index("mlm_correct")] == right
    assert torch.allclose(share, expected, rtol=1e-5)


def test_weight_of_the_task_multiplies_its_term_alone(dataset: Path, tokenizer: Tokenizer) -> None:
    plain = model_of(dataset, tokenizer.vocabulary_size, tokenizer.vocabulary_size)
    encoder = ModularStarEncoder(ModularStarEncoderConfig(**tiny_config(dataset).model.hugging_face()))
    encoder.load_state_dict(plain.state_dict())
    heavy = TrainingModel(encoder, whole_vocabulary(tokenizer.vocabulary_size), ObjectiveConfig(task_weight=3.0))
    (batch,) = loader_of(dataset, tokenizer, 8).share(0)
    counts = Denominators(batch.num_masked, batch.num_rows)
    (share, sums), (heavier, same_sums) = plain(batch, counts), heavy(batch, counts)
    weights = torch.tensor(exit_weights((1, 2, 4), 4), dtype=torch.float64)
    task = (weights * sums[:, COLUMNS.index("task")]).sum() / counts.rows
    assert float((heavier - share).detach()) == pytest.approx(2 * float(task), rel=1e-5)
    assert torch.equal(sums, same_sums)


def test_padding_columns_of_the_vocabulary_take_no_part(dataset: Path, tokenizer: Tokenizer) -> None:
    padded = model_of(dataset, 512, tokenizer.vocabulary_size)
    (batch,) = loader_of(dataset, tokenizer, 8).share(0)
    counts = Denominators(batch.num_masked, batch.num_rows)
    share, _ = padded(batch, counts)
    share.backward()
    decoder = padded.cls.predictions.decoder.weight
    assert decoder.grad is not None
    assert float(decoder.grad[tokenizer.vocabulary_size :].abs().max()) == 0.0
    with torch.no_grad():
        decoder[tokenizer.vocabulary_size :] = 50.0
        assert torch.equal(padded(batch, counts)[0], share)


def test_placeholder_rows_add_nothing(dataset: Path, tokenizer: Tokenizer) -> None:
    model = model_of(dataset, 512, tokenizer.vocabulary_size)
    batch = loader_of(dataset, tokenizer, 8).share(0)[0]
    empty = dataclasses.replace(
        batch,
        input_ids_N=torch.tensor([tokenizer.special.sep, tokenizer.special.cls]),
        positions_N=torch.arange(2),
        cu_seqlens=torch.tensor([0, 2], dtype=torch.int32),
        max_length=2,
        masked_N_indices=torch.zeros(0, dtype=torch.int64),
        labels_M=torch.zeros(0, dtype=torch.int64),
        mixed_B=torch.tensor([-100]),
        row_numbers_B=torch.tensor([-1]),
    )
    share, sums = model(empty, Denominators(10, 10))
    assert share.item() == 0.0
    assert not sums.any()

"""Covers the layouts: loss, step-0 gradients and reported norm equal a plain PyTorch loop over DP x TP x micro-batch x ZeRO.

Gradients and norms are compared, not losses alone: Adam with clipping hides a wrong scale (norm .667 for 5.335 leaves the
losses equal to 8e-8). `make soak` runs every cell; `make test` every (DP, TP, micro-batch) at ZeRO 1 and the corners of the
other stages.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.initialization import initialize
from mose.model.modeling_mose import ModularStarEncoder
from mose.schedule import learning_rate
from pretrain.config import BatchConfig, PretrainConfig
from pretrain.parallel.engine import parameter_groups
from tests.datasets import make_dataset
from tests.distributed import RankPools
from tests.pretrain.cells import describe_engine, dropout_drift, loader_of, run_cell, skip_on_nan, tiny_config

STEPS = 5
DEGREES = list(itertools.product((1, 2), (1, 2), (1, 2, 4)))
QUICK = [(data, tensor, rows, 1) for data, tensor, rows in DEGREES]
QUICK += [(data, tensor, 2, stage) for stage in (0, 2, 3) for data, tensor in ((2, 1), (2, 2))]
ALL = [(*degrees, stage) for degrees in DEGREES for stage in (0, 1, 2, 3)]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("layouts"))


@pytest.fixture(scope="module")
def reference(rows: Path) -> dict[str, Any]:
    return plain_loop(tiny_config(rows))


def plain_loop(config: PretrainConfig) -> dict[str, Any]:
    """The same training without DeepSpeed, megatron, unpadding or chosen positions: padded rows, full logits, torch alone."""
    model = ModularStarEncoder(ModularStarEncoderConfig(**config.model.hugging_face()))
    initialize(model, config.model.initializer_range, config.seed)
    optimizer = torch.optim.AdamW(parameter_groups(model, config.optimizer), betas=(0.9, 0.95), eps=1e-6)
    loader = loader_of(config, 0, 1)
    outcome: dict[str, Any] = {"losses": [], "norms": []}
    for step in range(STEPS):
        batches = loader.share(step * config.batch.global_rows)
        masked = sum(batch.num_masked for batch in batches)
        loss = torch.zeros(())
        for batch in batches:
            lengths = torch.diff(batch.cu_seqlens).tolist()
            ids = torch.nn.utils.rnn.pad_sequence(batch.input_ids_N.split(lengths), batch_first=True, padding_side="left")
            mask = torch.nn.utils.rnn.pad_sequence([torch.ones(n) for n in lengths], batch_first=True, padding_side="left")
            output = model(input_ids=ids, attention_mask=mask, output_prediction_logits=True)
            labels_N = torch.full_like(batch.input_ids_N, -100).index_copy(0, batch.masked_N_indices, batch.labels_M)
            for index, layer in enumerate(config.model.exit_layers):
                logits_NV = output.prediction_logits[index][mask.bool()]
                mlm = F.cross_entropy(logits_NV, labels_N, ignore_index=-100, reduction="sum") / masked
                icc = F.cross_entropy(output.seq_relationship_logits[index], batch.mixed_B, reduction="sum")
                loss = loss + layer / config.model.num_layers * (mlm + icc / config.batch.global_rows)
        loss.backward()
        if step == 0:
            outcome["gradients"] = {name: p.grad.numpy().copy() for name, p in model.named_parameters() if p.grad is not None}
        outcome["losses"].append(loss.item())
        outcome["norms"].append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.gradient_clipping)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config.schedule)
        optimizer.step()
        optimizer.zero_grad()
    return outcome


def differences(cell: dict[str, Any], reference: dict[str, Any]) -> tuple[float, float, float]:
    """Largest relative loss difference, gradient difference over the tensor's largest value, relative norm difference."""
    loss = max(abs(a - b) / abs(b) for a, b in zip(cell["losses"], reference["losses"], strict=True))
    gradients = reference["gradients"]
    assert cell["gradients"].keys() == gradients.keys()
    gradient = max(float(np.abs(cell["gradients"][name] - g).max() / np.abs(g).max()) for name, g in gradients.items())
    norm = max(abs(a - b) / b for a, b in zip(cell["norms"], reference["norms"], strict=True))
    return loss, gradient, norm


def check_cell(cell: tuple[int, int, int, int], rows: Path, pools: RankPools, reference: dict[str, Any]) -> None:
    data_ranks, tensor_ranks, micro_batch_rows, stage = cell
    config = tiny_config(rows, tensor_ranks, micro_batch_rows, stage)
    results = pools.of(data_ranks * tensor_ranks).run(run_cell, config, STEPS)
    loss, gradient, norm = differences(results[0], reference)
    assert loss <= 1e-5
    assert gradient <= 1e-5
    assert stage == 0 or norm <= 1e-4  # DeepSpeed knows no norm at stage 0
    assert all(result["losses"] == results[0]["losses"] for result in results)


@pytest.mark.parametrize("cell", QUICK, ids=lambda cell: "dp{}-tp{}-rows{}-zero{}".format(*cell))
def test_loss_gradient_and_norm_equal_a_plain_loop(
    cell: tuple[int, int, int, int], rows: Path, pools: RankPools, reference: dict[str, Any]
) -> None:
    check_cell(cell, rows, pools, reference)


@pytest.mark.soak
@pytest.mark.parametrize("cell", sorted(set(ALL) - set(QUICK)), ids=lambda cell: "dp{}-tp{}-rows{}-zero{}".format(*cell))
def test_every_other_cell(cell: tuple[int, int, int, int], rows: Path, pools: RankPools, reference: dict[str, Any]) -> None:
    check_cell(cell, rows, pools, reference)


# Global rows and budget of tokens with which two data ranks come to 2 and 3 micro-batches in the first of the steps, and to 1
# and 2 in each of them; from stage 2 on, the rank with one row then gets an empty micro-batch.
UNEQUAL = [(8, 44, 0), (8, 44, 1), (3, 32, 1), (3, 32, 2), (3, 32, 3)]


def unequal_config(rows: Path, global_rows: int, budget_tokens: int, stage: int, precision: str = "fp32") -> PretrainConfig:
    batch = BatchConfig(global_rows, 1, budget_tokens)
    return dataclasses.replace(tiny_config(rows, zero_stage=stage, precision=precision), batch=batch)


@pytest.mark.parametrize("cell", UNEQUAL, ids=lambda cell: "{}-rows-{}-tokens-zero{}".format(*cell))
def test_ranks_may_differ_in_their_number_of_micro_batches(cell: tuple[int, int, int], rows: Path, pools: RankPools) -> None:
    config = unequal_config(rows, *cell)
    shares = [loader_of(config, rank, 2).share(0) for rank in range(2)]
    assert (len(shares[0]) == len(shares[1])) == (config.parallel.zero_stage >= 2)
    assert any(batch.num_rows == 0 for share in shares for batch in share) == (config.parallel.zero_stage >= 2)
    results = pools.of(2).run(run_cell, config, STEPS)
    loss, gradient, norm = differences(results[0], plain_loop(dataclasses.replace(config, batch=BatchConfig(cell[0], cell[0]))))
    assert loss <= 1e-5
    assert gradient <= 1e-5
    assert config.parallel.zero_stage == 0 or norm <= 1e-4


def test_overlapped_reduction_in_small_buckets_changes_nothing(rows: Path, pools: RankPools, reference: dict[str, Any]) -> None:
    """Reduced during the last backward pass of each rank, of which the ranks have different numbers."""
    options: dict[str, Any] = {"zero_optimization": {"overlap_comm": True, "reduce_bucket_size": 4096}}
    config = dataclasses.replace(unequal_config(rows, 8, 44, 1), deepspeed=options)
    loss, gradient, norm = differences(pools.of(2).run(run_cell, config, STEPS)[0], reference)
    assert max(loss, gradient) <= 1e-5
    assert norm <= 1e-4


def test_bf16_follows_fp32_when_ranks_differ_in_micro_batches(rows: Path, pools: RankPools, reference: dict[str, Any]) -> None:
    cell = pools.of(2).run(run_cell, unequal_config(rows, 8, 44, 1, "bf16"), STEPS)[0]
    assert abs(cell["losses"][0] / reference["losses"][0] - 1) < 5e-3
    assert abs(cell["losses"][-1] / reference["losses"][-1] - 1) < 3e-2
    assert abs(cell["norms"][0] / reference["norms"][0] - 1) < 2e-2


def test_bf16_follows_fp32(rows: Path, pools: RankPools, reference: dict[str, Any]) -> None:
    cell = pools.of(4).run(run_cell, tiny_config(rows, 2, 2, 1, "bf16"), STEPS)[0]
    # Eight bits of mantissa: the first loss differs by rounding alone, later ones by what follows from it.
    assert abs(cell["losses"][0] / reference["losses"][0] - 1) < 5e-3
    assert abs(cell["losses"][-1] / reference["losses"][-1] - 1) < 3e-2


def test_layers_are_megatrons_engine_is_deepspeeds_and_no_rank_holds_a_whole_cut_weight(rows: Path, pools: RankPools) -> None:
    config = tiny_config(rows, tensor_ranks=2)
    for report in pools.of(2).run(describe_engine, config):
        assert report["engine"] == "deepspeed.runtime.engine.DeepSpeedEngine"
        for name in ("q_proj", "k_proj", "v_proj", "mlp.c_fc", "decoder"):
            assert report["layers"][name] == {"ColumnParallelLinear"}
        for name in ("o_proj", "mlp.c_proj"):
            assert report["layers"][name] == {"RowParallelLinear"}
        assert report["layers"]["embed_tokens"] == {"VocabParallelEmbedding"}
        assert report["whole"] == []
        assert report["cut"] > 20


def test_dropout_is_seeded_by_data_rank_so_replicated_weights_stay_equal(rows: Path, pools: RankPools) -> None:
    drifts = pools.of(2).run(dropout_drift, tiny_config(rows, tensor_ranks=2))
    assert drifts[0]["largest_difference"] == 0.0
    assert drifts[0]["replicated"] > 20


def test_not_finite_gradient_on_one_rank_is_skipped_on_all(rows: Path, pools: RankPools) -> None:
    reports = pools.of(2).run(skip_on_nan, tiny_config(rows, zero_stage=1))
    assert [report["skipped"] for report in reports] == [1, 1]
    assert all(report["unchanged"] for report in reports)

"""Covers the layouts: loss, step-0 gradients and reported norm equal a plain PyTorch loop over DP x TP x SP x micro-batch x ZeRO
x activation checkpointing x precision x compile; dropout in each of them; which parts DeepSpeed and megatron are.

`make soak` runs every cell, `make test` chosen ones of each kind. What cannot be combined is refused by the config
(test_config.py).
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.config.run import BatchConfig, PretrainConfig
from tests.datasets import make_dataset
from tests.distributed import RankPools
from tests.pretrain.cells import describe_engine, dropout_drift, loader_of, run_cell, skip_on_nan, tiny_config
from tests.pretrain.elastic_cells import resume_cell, save_cell
from tests.pretrain.layout_cells import ALL, QUICK, STEPS, Cell, differences, plain_loop


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("layouts"))


@pytest.fixture(scope="module")
def references(rows: Path) -> dict[int, dict[str, Any]]:
    """The plain loop with two and with four key-value heads."""
    return {heads: plain_loop(tiny_config(rows, key_value_heads=heads)) for heads in (2, 4)}


def check_cell(cell: Cell, rows: Path, pools: RankPools, references: dict[int, dict[str, Any]]) -> None:
    results = pools.of(cell.ranks).run(run_cell, cell.config(rows), STEPS)
    found = differences(results[0], references[cell.key_value_heads], cell)
    assert found.exceeded(cell.precision) == [], found
    assert all(result["losses"] == results[0]["losses"] for result in results)


@pytest.mark.parametrize("cell", QUICK, ids=str)
def test_loss_gradient_and_norm_equal_a_plain_loop(
    cell: Cell, rows: Path, pools: RankPools, references: dict[int, dict[str, Any]]
) -> None:
    check_cell(cell, rows, pools, references)


@pytest.mark.soak
@pytest.mark.parametrize("cell", [cell for cell in ALL if cell not in QUICK], ids=str)
def test_every_other_cell(cell: Cell, rows: Path, pools: RankPools, references: dict[int, dict[str, Any]]) -> None:
    check_cell(cell, rows, pools, references)


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
    reference = plain_loop(dataclasses.replace(config, batch=BatchConfig(cell[0], cell[0])))
    assert differences(results[0], reference, Cell(2, zero_stage=cell[2])).exceeded("fp32") == []


def test_overlapped_reduction_in_small_buckets_changes_nothing(
    rows: Path, pools: RankPools, references: dict[int, dict[str, Any]]
) -> None:
    """Reduced during the last backward pass of each rank, of which the ranks have different numbers."""
    options: dict[str, Any] = {"zero_optimization": {"overlap_comm": True, "reduce_bucket_size": 4096}}
    config = dataclasses.replace(unequal_config(rows, 8, 44, 1), deepspeed=options)
    assert differences(pools.of(2).run(run_cell, config, STEPS)[0], references[2], Cell(2)).exceeded("fp32") == []


def test_bf16_follows_fp32_when_ranks_differ_in_micro_batches(
    rows: Path, pools: RankPools, references: dict[int, dict[str, Any]]
) -> None:
    cell = pools.of(2).run(run_cell, unequal_config(rows, 8, 44, 1, "bf16"), STEPS)[0]
    assert differences(cell, references[2], Cell(2, precision="bf16")).exceeded("bf16") == []


def test_gradients_may_be_summed_in_bf16(rows: Path, pools: RankPools, references: dict[int, dict[str, Any]]) -> None:
    cell = Cell(2, precision="bf16")
    config = cell.config(rows)
    config = dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, gradient_communication="bf16"))
    assert differences(pools.of(2).run(run_cell, config, STEPS)[0], references[2], cell).exceeded("bf16") == []


def bits(result: dict[str, Any]) -> tuple[list[float], list[float], dict[str, bytes]]:
    return result["losses"], result["norms"], {name: value.tobytes() for name, value in result["gradients"].items()}


@pytest.mark.parametrize("cell", [Cell(), Cell(1, 2, 4, sequence_parallel=True)], ids=str)
def test_activation_checkpointing_changes_no_bit_with_dropout(cell: Cell, rows: Path, pools: RankPools) -> None:
    outcomes = []
    for kind in ("none", "selective", "full"):
        config = dataclasses.replace(cell, activation_checkpointing=kind).config(rows, dropout=0.2)
        outcomes.append(bits(pools.of(cell.ranks).run(run_cell, config, 2)[0]))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    without = bits(pools.of(cell.ranks).run(run_cell, cell.config(rows), 2)[0])
    assert without[0] != outcomes[0][0]


@pytest.mark.soak
def test_full_checkpointing_changes_no_bit_of_compiled_layers_with_dropout(rows: Path, pools: RankPools) -> None:
    cells = [Cell(compile=True, activation_checkpointing=kind) for kind in ("none", "full")]
    first, second = (bits(pools.of(1).run(run_cell, cell.config(rows, dropout=0.2), 2)[0]) for cell in cells)
    assert first == second


@pytest.mark.soak
@pytest.mark.parametrize("now", [Cell(), Cell(tensor_ranks=2), Cell(2, 2, 2, 2, sequence_parallel=True)], ids=str)
def test_a_sequence_parallel_run_resumes_in_another_layout(now: Cell, rows: Path, pools: RankPools, tmp_path: Path) -> None:
    saved = Cell(tensor_ranks=2, sequence_parallel=True)
    undisturbed = pools.of(2).run(save_cell, saved.config(rows), tmp_path)[0]
    for outcome in pools.of(now.ranks).run(resume_cell, now.config(rows), tmp_path):
        np.testing.assert_allclose(outcome["losses"], undisturbed, rtol=1e-6)


def test_masks_of_embedding_and_residuals_are_the_same_at_another_tensor_parallel_size(rows: Path, pools: RankPools) -> None:
    losses = {}
    for cell in (Cell(), Cell(tensor_ranks=2), Cell(tensor_ranks=2, zero_stage=3), Cell(tensor_ranks=2, sequence_parallel=True)):
        config = cell.config(rows, dropout=0.2)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, attention_dropout=0.0))
        losses[str(cell)] = pools.of(cell.ranks).run(run_cell, config, STEPS)[0]["losses"]
    alone, two, two_at_3, sequence = losses.values()
    np.testing.assert_allclose(two, alone, rtol=1e-5)
    np.testing.assert_allclose(two_at_3, alone, rtol=1e-5)
    # Tensor ranks draw for their own tokens then: other masks, as dropout.py says.
    assert abs(sequence[0] / alone[0] - 1) > 1e-5


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


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_dropout_is_seeded_so_that_replicated_weights_stay_equal(rows: Path, pools: RankPools, sequence_parallel: bool) -> None:
    drifts = pools.of(2).run(dropout_drift, tiny_config(rows, tensor_ranks=2, sequence_parallel=sequence_parallel))
    assert drifts[0]["largest_difference"] == 0.0
    assert drifts[0]["replicated"] > 20


def test_not_finite_gradient_on_one_rank_is_skipped_on_all(rows: Path, pools: RankPools) -> None:
    reports = pools.of(2).run(skip_on_nan, tiny_config(rows, zero_stage=1))
    assert [report["skipped"] for report in reports] == [1, 1]
    assert all(report["unchanged"] for report in reports)

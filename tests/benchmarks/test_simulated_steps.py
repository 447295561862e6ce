"""Simulated steps of many ranks: every row exactly once per epoch through two resumes, and each kind of fault is seen."""

import dataclasses

import pytest

from benchmarks import simulated_steps
from benchmarks.simulated_start import TINY
from benchmarks.simulated_steps import Leg, Scenario, configured, simulate
from mose.array_types import INT64_ARRAY
from pretrain.config.run import BatchConfig, PretrainConfig

BATCH = 64


def small(tensor_ranks: int) -> tuple[Scenario, PretrainConfig]:
    """40 steps of 16, 12 and 8 ranks over 3 shards of 301 rows: 2.8 epochs."""
    config = configured(tensor_ranks)
    batch = BatchConfig(BATCH, config.batch.micro_batch_rows)
    config = dataclasses.replace(config, model=dataclasses.replace(TINY, max_length=32), batch=batch)
    return Scenario("small", 3, 301, 0, tensor_ranks, (Leg(16, 16), Leg(12, 10), Leg(8, 14))), config


@pytest.mark.parametrize("tensor_ranks", [1, 2])
def test_every_row_is_given_out_once_per_epoch(tensor_ranks: int) -> None:
    found = simulate(*small(tensor_ranks))
    assert found["faults"] == []
    assert found["epochs"] == {"0": 903, "1": 903, "2": 40 * BATCH - 2 * 903}
    assert found["loaders_compared"] == 16 + 16 + 12 + 8 + 8
    assert [leg["data_ranks"] for leg in found["legs"]] == [ranks // tensor_ranks for ranks in (16, 12, 8)]
    first = found["legs"][0]
    assert 1 <= first["max_to_mean_cost"]["median"] < 1.1
    assert first["shards_opened_by_a_node"]["most"] == 4 * 3
    assert first["bytes_read_by_a_node_per_step"] == 4 * first["bytes_read_by_a_rank_per_step"]


def wrong_balance(fault: str) -> object:
    """`balance_ranks` with one fault in it."""

    def assign(costs_G: INT64_ARRAY, ranks: int) -> list[INT64_ARRAY]:
        places = original(costs_G, ranks)
        if fault == "skipped":
            places[3] = places[3][1:]
        elif fault == "repeated":
            places[3] = places[4].copy()
        else:
            places[3], places[4] = places[4], places[3]
        return places

    original = simulated_steps.balance_ranks
    return assign


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("skipped", "rows were given out, expected 2560"),
        ("repeated", "was given out more than once"),
        ("other rank", "step 0, rank 3: reads other rows than data rank 3 is given"),
    ],
)
def test_a_fault_is_seen(fault: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated_steps, "balance_ranks", wrong_balance(fault))
    faults = simulate(*small(1))["faults"]
    assert any(line in found for found in faults), faults


def test_a_resume_that_goes_one_row_back_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    original = simulated_steps.Mixture.rows_of_run

    def back(self: simulated_steps.Mixture, seed: int, start: int, *sizes: int) -> tuple[INT64_ARRAY, INT64_ARRAY]:
        return original(self, seed, start - (start >= 16 * BATCH), *sizes)

    monkeypatch.setattr(simulated_steps.Mixture, "rows_of_run", back)
    faults = simulate(*small(1))["faults"]
    assert any("epoch 1: row" in found or "epoch 2:" in found for found in faults), faults

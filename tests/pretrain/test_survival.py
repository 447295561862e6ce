"""Covers steps that go wrong on one rank: skipped on all alike, and the run ends as if that batch's update were left out.

Also: ranks agree to stop when one received the signal, and a collective that times out names the rank that is late and its stage.
"""

from pathlib import Path

import numpy as np
import pytest

from tests.distributed import RankPools
from tests.pretrain.cells import tiny_config
from tests.pretrain.survival_cells import (
    BAD_STEP,
    LEFT_OUT,
    NAN_GRADIENT,
    NAN_LOSS,
    OUTLIER,
    STEPS,
    late_rank,
    skip_cell,
    stop_wishes,
)

FAULTS = (NAN_LOSS, NAN_GRADIENT, OUTLIER)


@pytest.mark.parametrize(
    ("stage", "precision", "faults"),
    [(1, "fp32", FAULTS), (2, "bf16", (NAN_LOSS,)), (3, "fp32", (OUTLIER,))],
    ids=["zero1", "zero2-bf16", "zero3"],
)
def test_a_bad_step_is_skipped_on_all_ranks_and_leaves_no_trace(
    stage: int, precision: str, faults: tuple[str, ...], dataset: Path, pools: RankPools
) -> None:
    check_skips(stage, precision, faults, dataset, pools)


@pytest.mark.soak
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_fault_in_every_stage(stage: int, precision: str, dataset: Path, pools: RankPools) -> None:
    check_skips(stage, precision, FAULTS, dataset, pools)


def check_skips(stage: int, precision: str, faults: tuple[str, ...], dataset: Path, pools: RankPools) -> None:
    config = tiny_config(dataset, micro_batch_rows=2, zero_stage=stage, precision=precision)
    expected = pools.of(2).run(skip_cell, config, LEFT_OUT)
    assert np.isfinite(expected[0]["norms"]).all()
    for fault in faults:
        for rank, found in enumerate(pools.of(2).run(skip_cell, config, fault)):
            assert [step for step in range(STEPS) if not np.isfinite(found["norms"][step])] == [BAD_STEP]
            kept = found["norms"][:BAD_STEP] + found["norms"][BAD_STEP + 1 :]
            assert kept == expected[rank]["norms"], fault
            pairs = zip(found["states"], expected[rank]["states"], strict=True)
            assert all(np.array_equal(a, b) for a, b in pairs), fault


@pytest.mark.parametrize("wishing", [0, 1])
def test_all_ranks_stop_when_one_was_told_to(wishing: int, dataset: Path, pools: RankPools) -> None:
    # Tensor ranks: the one that received the signal shares no data group with the other.
    found = pools.of(2).run(stop_wishes, tiny_config(dataset, tensor_ranks=2, micro_batch_rows=4), wishing)
    assert [answer["wished"] for answer in found] == [True, True]
    assert [answer["calm"] for answer in found] == [False, False]
    alone = pools.of(2).run(stop_wishes, tiny_config(dataset, micro_batch_rows=4), wishing)
    assert alone[0]["counts"] == found[0]["counts"]


def test_a_rank_that_does_not_arrive_is_named_with_its_stage(pools: RankPools) -> None:
    said = pools.of(2).run(late_rank, 2.0)[0]
    assert said.startswith("step 812: rank 1 (data rank 1, tensor rank 0) has been in 'load rows' for ")
    assert said.endswith("; waiting: 0")

"""Covers resuming in another layout: losses as in the undisturbed run, the optimiser as it was, and what is refused.

The user pains it stands for: "changing DP size with ZeRO", "universal conversion silently reinitialises", "another tensor-
parallel size refuses", "resume replays or skips data". `make soak` runs all 64 pairs, `make test` six.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pretrain.config.run import PretrainConfig
from tests.datasets import make_dataset
from tests.distributed import RankPools
from tests.pretrain.elastic_cells import (
    LAYOUTS,
    SAVED_STEP,
    Cell,
    cell_config,
    cell_name,
    largest_difference,
    resume_cell,
    resume_everywhere,
    save_cell,
    with_decay,
)

# A sum over ranks is added in another order: the bar of the design.
TOLERANCE = 1e-6
QUICK: tuple[tuple[Cell, Cell], ...] = (
    ((1, 1, 1), (2, 2, 2)),
    ((2, 2, 1), (1, 1, 1)),
    ((2, 1, 2), (1, 2, 1)),
    ((1, 2, 1), (2, 1, 2)),
    ((2, 2, 2), (2, 1, 1)),
    ((2, 1, 1), (2, 1, 2)),
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("elastic"), rows=100, sequence_length=48, seed=1)


@pytest.mark.parametrize(("saved", "resumed"), QUICK, ids=cell_name)
def test_another_world_size_tensor_size_or_stage_goes_on_as_if_nothing_had_happened(
    saved: Cell, resumed: Cell, rows: Path, pools: RankPools, tmp_path: Path
) -> None:
    assert resume_everywhere(rows, saved, (resumed,), tmp_path, pools)[resumed] <= TOLERANCE
    assert [path.name for path in (tmp_path / "checkpoints").glob(".*")] == []


@pytest.mark.soak
@pytest.mark.parametrize("saved", LAYOUTS, ids=cell_name)
def test_every_pair_of_layouts(saved: Cell, rows: Path, pools: RankPools, tmp_path: Path) -> None:
    found = resume_everywhere(rows, saved, LAYOUTS, tmp_path, pools)
    assert max(found.values()) <= TOLERANCE, found


@pytest.fixture(scope="module")
def saved_at_2x1(rows: Path, pools: RankPools, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    folder = tmp_path_factory.mktemp("saved")
    return folder, pools.of(2).run(save_cell, cell_config(rows, (2, 1, 1)), folder)[0]


def test_universal_conversion_restores_moments_steps_and_each_groups_decay(
    saved_at_2x1: tuple[Path, list[float]], rows: Path, pools: RankPools
) -> None:
    config = cell_config(rows, (1, 1, 1))
    outcome = pools.of(1).run(resume_cell, config, saved_at_2x1[0])[0]
    assert outcome["converted"]
    decay, factor = config.optimizer.weight_decay, config.optimizer.vocabulary_learning_rate_factor
    assert outcome["weight_decay"] == [decay, 0.0, decay / factor]
    assert outcome["factors"] == [1.0, 1.0, factor]
    assert outcome["steps"] == [SAVED_STEP] * 3
    assert outcome["clipping"] == config.optimizer.gradient_clipping
    assert min(outcome["moments"]) > 0  # a silently new optimiser has none
    assert outcome["consumed_rows"] == SAVED_STEP * config.batch.global_rows


def test_a_conversion_that_was_killed_is_made_anew(saved_at_2x1: tuple[Path, list[float]], rows: Path, pools: RankPools) -> None:
    folder, undisturbed = saved_at_2x1
    left_over = folder / "checkpoints" / f".merged-step-{SAVED_STEP:06d}" / "state" / "zero"
    left_over.mkdir(parents=True)
    (left_over / "optimizer_state.pt").write_bytes(b"half")
    outcome = pools.of(1).run(resume_cell, cell_config(rows, (1, 1, 1)), folder)[0]
    assert largest_difference(outcome["losses"], undisturbed) <= TOLERANCE
    assert not left_over.exists()


@pytest.mark.parametrize("cell", [(2, 1, 1), (1, 1, 1)], ids=cell_name)
def test_an_allowed_change_of_the_optimiser_is_not_undone_by_the_checkpoint(
    cell: Cell, saved_at_2x1: tuple[Path, list[float]], rows: Path, pools: RankPools
) -> None:
    changed = with_decay(cell_config(rows, cell), weight_decay=0.3, clipping=0.25)
    allowed = ("optimizer.weight_decay", "optimizer.gradient_clipping")
    outcome = pools.of(cell[0]).run(resume_cell, changed, saved_at_2x1[0], allowed)[0]
    assert outcome["weight_decay"] == [0.3, 0.0, 0.15]
    assert outcome["clipping"] == 0.25
    assert largest_difference(outcome["losses"], saved_at_2x1[1]) > TOLERANCE


def test_micro_batch_alone_needs_no_conversion(saved_at_2x1: tuple[Path, list[float]], rows: Path, pools: RankPools) -> None:
    config = cell_config(rows, (2, 1, 1))
    config = dataclasses.replace(config, batch=dataclasses.replace(config.batch, micro_batch_rows=4))
    outcome = pools.of(2).run(resume_cell, config, saved_at_2x1[0])[0]
    assert not outcome["converted"]
    assert largest_difference(outcome["losses"], saved_at_2x1[1]) <= TOLERANCE


def test_bf16_in_another_layout_stays_close(rows: Path, pools: RankPools, tmp_path: Path) -> None:
    undisturbed = pools.of(2).run(save_cell, cell_config(rows, (2, 1, 1), "bf16"), tmp_path)[0]
    outcome = pools.of(1).run(resume_cell, cell_config(rows, (1, 1, 2), "bf16"), tmp_path)[0]
    # Eight bits of mantissa; a lost optimiser state would show as several percent.
    assert largest_difference(outcome["losses"], undisturbed) <= 2e-3
    assert min(outcome["moments"]) > 0
    changed = pools.of(1).run(resume_cell, cell_config(rows, (1, 1, 1)), tmp_path, ("parallel.precision",))[0]
    assert changed["converted"]
    assert largest_difference(changed["losses"], undisturbed) <= 2e-3


def _stage_3(config: PretrainConfig) -> PretrainConfig:
    return dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, zero_stage=3))


def _same(config: PretrainConfig) -> PretrainConfig:
    return config


def test_stage_3_resumes_bit_equal_in_its_own_layout(rows: Path, pools: RankPools, tmp_path: Path) -> None:
    config = _stage_3(cell_config(rows, (2, 1, 1)))
    undisturbed = pools.of(2).run(save_cell, config, tmp_path)[0]
    outcome = pools.of(2).run(resume_cell, config, tmp_path)[0]
    assert not outcome["converted"]
    assert outcome["losses"] == undisturbed
    decay, factor = config.optimizer.weight_decay, config.optimizer.vocabulary_learning_rate_factor
    assert outcome["weight_decay"] == [decay, 0.0, decay / factor]


@pytest.mark.parametrize(("before", "after"), [(_same, _stage_3), (_stage_3, _same)], ids=["to-stage-3", "from-stage-3"])
def test_stage_3_in_another_layout_is_refused_with_the_reason(
    before: Callable[[PretrainConfig], Any], after: Callable[[PretrainConfig], Any], rows: Path, pools: RankPools, tmp_path: Path
) -> None:
    config = cell_config(rows, (1, 1, 1))
    pools.of(1).run(save_cell, before(config), tmp_path)
    with pytest.raises(RuntimeError, match="restores weight decay, step counts and tensor slices of ZeRO 3 wrongly"):
        pools.of(1).run(resume_cell, after(config), tmp_path)


def test_a_model_without_layer_index_and_final_norm_resumes_in_another_layout(
    rows: Path, pools: RankPools, tmp_path: Path
) -> None:
    # DeepSpeed's conversion refuses patterns of the sharding table that no parameter matches.
    def ablated(cell: Cell) -> PretrainConfig:
        config = cell_config(rows, cell)
        model = dataclasses.replace(config.model, layer_index_width=0, norm_after_last_layer=False)
        return dataclasses.replace(config, model=model)

    undisturbed = pools.of(2).run(save_cell, ablated((1, 2, 1)), tmp_path)[0]
    outcome = pools.of(1).run(resume_cell, ablated((1, 1, 1)), tmp_path)[0]
    assert outcome["converted"]
    assert largest_difference(outcome["losses"], undisturbed) <= TOLERANCE

"""Covers the objective's config: exit weights by rule or by hand, what is refused, names of scalars, rows of another task."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mose.config import load_config, save_config
from mose.dataset.manifest import read_manifest
from mose.errors import MoseError
from mose.model.exits import exit_weights
from mose.model.model_config import ModelConfig
from pretrain.config.identity import check_changes, config_values
from pretrain.config.objective import ObjectiveConfig
from pretrain.config.run import PretrainConfig
from pretrain.model.terms.registry import terms_of
from pretrain.storage.run_data import DatasetSource, check_task

EXITS = (4, 9, 18, 27, 36)


def names_of(objective: ObjectiveConfig) -> tuple[str, ...]:
    return tuple(term.name(objective) for term in terms_of(objective))


@given(st.sets(st.integers(1, 60), min_size=1), st.integers(0, 20))
def test_uniform_weights_are_equal_and_sum_to_those_by_depth(exits: set[int], deeper: int) -> None:
    layers, depth = sorted(exits), max(exits) + deeper
    uniform = exit_weights(layers, depth, "uniform")
    assert len(set(uniform)) == 1
    assert sum(uniform) == pytest.approx(sum(exit_weights(layers, depth)))


def test_a_single_exit_has_weight_one_by_either_rule() -> None:
    assert exit_weights((9,), 9) == exit_weights((9,), 9, "uniform") == (1.0,)


def test_weights_by_hand_are_taken_as_they_are_and_counted() -> None:
    by_hand = ObjectiveConfig(exit_weights=(0.1, 0.2, 0.3, 0.4, 0.0))
    assert by_hand.weights_of(EXITS, 36) == (0.1, 0.2, 0.3, 0.4, 0.0)
    with pytest.raises(MoseError, match=r"objective.exit_weights: 5 numbers, expected one for each of exits \[1, 2\]"):
        PretrainConfig(model=ModelConfig(num_layers=2, exit_layers=(1, 2)), objective=by_hand)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"exit_weights": ()}, "objective.exit_weights"),
        ({"exit_weights": (0.0, 0.0)}, "not all 0"),
        ({"exit_weights": (1.0, -1.0)}, "numbers of 0 or more"),
        ({"distillation_weight": -0.5}, "objective.distillation_weight: -0.5, expected 0 or more"),
        ({"distillation_weight": float("nan")}, "objective.distillation_weight"),
        ({"distillation_temperature": 0.0}, "objective.distillation_temperature: 0.0, expected a number above 0"),
    ],
)
def test_values_that_make_no_loss_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(MoseError, match=said):
        ObjectiveConfig(**values)  # type: ignore[arg-type]


def test_a_single_exit_has_no_teacher() -> None:
    with pytest.raises(MoseError, match=r"objective.distillation_weight: 1.0 with the one exit \[9\], expected 0"):
        PretrainConfig(model=ModelConfig(num_layers=9, exit_layers=(9,)), objective=ObjectiveConfig(distillation_weight=1.0))


def test_names_follow_the_terms() -> None:
    assert names_of(ObjectiveConfig()) == ("mlm", "icc")
    assert names_of(ObjectiveConfig(sequence_task="nsp")) == ("mlm", "nsp")
    assert names_of(ObjectiveConfig(sequence_task="none", distillation_weight=0.5)) == ("mlm", "distillation")


@pytest.mark.parametrize("weights", ["uniform", [1.0, 1.0, 0.5, 0.5, 0.25]])
def test_written_config_reads_back(weights: object, tmp_path: Path) -> None:
    config = load_config(PretrainConfig, None, {"objective.exit_weights": weights, "objective.distillation_weight": 0.5})
    save_config(config, tmp_path / "config.yaml")
    assert load_config(PretrainConfig, tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("task", "mode", "fits"),
    [
        ("icc", "dense", True),
        ("icc", "faithful", True),
        ("icc", None, True),
        ("icc", "nsp", False),
        ("nsp", "nsp", True),
        ("nsp", "dense", False),
        ("nsp", None, False),
        ("none", "nsp", True),
        ("none", "dense", True),
    ],
)
def test_rows_of_another_task_are_refused(task: str, mode: str | None, fits: bool, dataset: Path) -> None:
    manifest = dataclasses.replace(read_manifest(dataset), statistics={"mode": mode} if mode else {})
    source = DatasetSource("data", dataset, 1.0, manifest)
    objective = ObjectiveConfig(sequence_task=task)  # type: ignore[arg-type]
    if fits:
        check_task(objective, [source])
    else:
        with pytest.raises(MoseError, match=f"objective.sequence_task: {task}, but .*packing.mode {mode or 'dense'}, expected"):
            check_task(objective, [source])


def test_a_checkpoint_older_than_the_section_resumes_with_the_papers_objective_alone() -> None:
    def identity(objective: ObjectiveConfig) -> dict[str, object]:
        return config_values(PretrainConfig(objective=objective), "data", 1)

    younger = ("objective.", "model.norm_after_last_layer")
    old = {name: value for name, value in identity(ObjectiveConfig()).items() if not name.startswith(younger)}
    assert check_changes(Path("c"), old, identity(ObjectiveConfig()), ()) == ()
    with pytest.raises(MoseError, match=r"objective.sequence_task = icc, this run has none"):
        check_changes(Path("c"), old, identity(ObjectiveConfig(sequence_task="none")), ())
    raw = config_values(PretrainConfig(model=ModelConfig(norm_after_last_layer=False)), "data", 1)
    with pytest.raises(MoseError, match=r"stored tensors cannot be resumed"):
        check_changes(Path("c"), old, raw, ("model.norm_after_last_layer",))

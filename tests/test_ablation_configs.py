"""Covers configs/ablations: each lies over configs/mose_1b.yaml, changes what its name says and nothing else, and plans."""

import functools
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from mose.command import add_config, read_config, run_command
from mose.config import to_plain
from mose.model.size import encoder_parameters
from pretrain.analysis.estimate import shape_of
from pretrain.cli import commands
from pretrain.config.run import PretrainConfig

ROOT = Path(__file__).parents[1]
PAPER = ROOT / "configs" / "mose_1b.yaml"
CONFIGS = {path.stem: path for path in sorted((ROOT / "configs" / "ablations").glob("*.yaml"))}


@functools.cache
def config_of(*names: str) -> PretrainConfig:
    """What the command makes of configs/mose_1b.yaml with these ablations after it."""
    parser = ArgumentParser(exit_on_error=False)
    add_config(parser, PretrainConfig)
    words = [word for path in (PAPER, *(CONFIGS[name] for name in names)) for word in ("--config", str(path))]
    return read_config(parser.parse_args(words), PretrainConfig)


def changes(name: str) -> dict[str, Any]:
    """Dotted names and values in which an ablation differs from the paper's run."""
    paper, ablation = (to_plain(config) for config in (config_of(), config_of(name)))
    sections = {key: value if isinstance(value, dict) else {"": value} for key, value in ablation.items()}
    found = {}
    for section, values in sections.items():
        before = paper[section] if isinstance(paper[section], dict) else {"": paper[section]}
        found |= {f"{section}.{key}".rstrip("."): value for key, value in values.items() if before[key] != value}
    return found


@pytest.mark.parametrize("layer", [4, 9, 18, 27, 36])
def test_a_single_exit_is_the_full_model_cut_there(layer: int) -> None:
    single, paper = config_of(f"single_exit_{layer:02d}"), config_of()
    wanted = {"model.num_layers": layer, "model.exit_layers": [layer]}
    wanted |= {"model.norm_after_last_layer": False} if layer < 36 else {}
    assert changes(f"single_exit_{layer:02d}") == {key: value for key, value in wanted.items() if value != 36}
    assert encoder_parameters(shape_of(single), layer) == encoder_parameters(shape_of(paper), layer)
    assert single.objective.weights_of((layer,), layer) == (1.0,)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("nsp", {"objective.sequence_task": "nsp"}),
        ("mlm_only", {"objective.sequence_task": "none"}),
        ("uniform_weights", {"objective.exit_weights": "uniform"}),
        ("no_layer_index", {"model.layer_index_width": 0}),
        ("distillation", {"objective.distillation_weight": 1.0, "objective.distillation_temperature": 2.0}),
    ],
)
def test_an_ablation_changes_what_its_name_says(name: str, wanted: dict[str, Any]) -> None:
    assert changes(name) == wanted


def test_table_3_is_two_runs_of_30m_parameters_and_3b_slots_that_differ_in_the_task() -> None:
    icc, nsp = changes("table3_icc"), changes("table3_nsp")
    assert nsp.pop("objective.sequence_task") == "nsp"
    assert icc == nsp
    config = config_of("table3_icc")
    assert encoder_parameters(shape_of(config), config.model.num_layers) == pytest.approx(30e6, rel=0.01)
    assert config.max_steps * config.batch.global_rows * config.model.max_length == pytest.approx(3e9, rel=0.001)
    shares = [layer / config.model.num_layers for layer in config.model.exit_layers]
    assert shares == pytest.approx([layer / 36 for layer in (4, 9, 18, 27, 36)], abs=0.051)
    milestones = [step / config.max_steps for step in config.schedule.milestones]
    assert milestones == pytest.approx([step / 245_000 for step in (120_000, 185_000, 220_000, 230_000, 240_000)], abs=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_plans_and_says_how_it_is_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--config", str(PAPER), "--config", str(CONFIGS[name]), "--dry-run", "--ranks", "8"]
    assert run_command("mose-pretrain", "", commands(), words) == 0
    config = config_of(name)
    assert f"{encoder_parameters(shape_of(config), config.model.num_layers):,} encoder" in capsys.readouterr().out
    header = "".join(line for line in CONFIGS[name].read_text("utf-8").splitlines(True) if line.startswith("#"))
    assert "--config configs/mose_1b.yaml" in header
    assert f"--config configs/ablations/{name}.yaml" in header
    for word in ("Hardware", "uration", "Expected"):
        assert word in header

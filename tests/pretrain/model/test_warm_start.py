"""Covers seed checkpoints: written once, any layout begins with them, and one of another shape is refused by name.

The user pain it stands for: "vocabulary padding mismatch", and layouts that cannot be compared since each begins elsewhere.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mose.checkpoint.converted_checkpoint import load_pretrained
from mose.config import save_config
from mose.model.initialization import draw_parameter
from pretrain.config.run import PretrainConfig
from tests.datasets import make_tokenizer
from tests.distributed import RankPools
from tests.pretrain.cells import run_cell, tiny_config
from tests.pretrain.forked import refuses, succeeds


@pytest.fixture(scope="module")
def seeded(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Initial weights of another seed than the runs have, so that ignoring them shows."""
    folder = tmp_path_factory.mktemp("seeded")
    save_config(tiny_config(dataset), folder / "config.yaml")
    shown = succeeds("init", "--config", folder / "config.yaml", "--seed", 11, "--output", folder / "weights")
    assert "initial weights of seed 11" in shown
    return folder / "weights"


def test_init_writes_the_weights_that_a_run_of_that_seed_begins_with(seeded: Path) -> None:
    model = load_pretrained(seeded)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, draw_parameter(name, tuple(parameter.shape), 0.08, 11)), name
    assert json.loads((seeded / "facts.json").read_text()) == {"initial_weights_of_seed": 11}
    assert (seeded / "tokenizer.model").is_file()


def test_layouts_that_start_from_it_agree_at_step_1(seeded: Path, dataset: Path, pools: RankPools) -> None:
    def losses(config: PretrainConfig, ranks: int) -> list[float]:
        return list(pools.of(ranks).run(run_cell, config, 2)[0]["losses"])

    def started(tensor_ranks: int) -> PretrainConfig:
        return dataclasses.replace(tiny_config(dataset, tensor_ranks), start_from=str(seeded))

    alone = losses(started(1), 1)
    assert losses(started(2), 2) == pytest.approx(alone, rel=1e-6)
    assert losses(dataclasses.replace(tiny_config(dataset), seed=3), 1)[0] != pytest.approx(alone[0], rel=1e-6)


def test_a_run_starts_from_an_export_and_says_so_in_its_config(finished_run: Path, dataset: Path, tmp_path: Path) -> None:
    succeeds("export", finished_run, "--output", tmp_path / "exported")
    words = ("train", "--config", finished_run / "config.yaml", "--output", tmp_path / "run", "--max_steps", 1)
    succeeds(*words, "--start_from", tmp_path / "exported", "--schedule.peak_learning_rate", 1e-30)
    assert f"start_from: {tmp_path / 'exported'}" in (tmp_path / "run" / "config.yaml").read_text()
    assert "0 differ, 0 in one only" in succeeds("compare", tmp_path / "exported", tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--model.width", 64), "config.json: hidden_size is 32, the run's model.width is 64"),
        (("--model.exit_layers", "[1, 4]"), "matryoshka_layers is [1, 2, 4], the run's model.exit_layers is (1, 4)"),
        (("--model.vocabulary_size", 400), "vocab_size is 320, the run's model.vocabulary_size is 400"),
        (("--model.rope_theta", 100), "rope_theta is 999999.4420358813, the run's model.rope_theta is 100"),
    ],
    ids=["width", "exits", "vocabulary", "rotary-base"],
)
def test_another_shape_is_refused_by_name(
    change: tuple[object, ...], message: str, seeded: Path, dataset: Path, tmp_path: Path
) -> None:
    save_config(tiny_config(dataset), tmp_path / "config.yaml")
    words = ("train", "--config", tmp_path / "config.yaml", "--output", tmp_path / "run", "--start_from", seeded)
    assert message in refuses(*words, *change)
    assert not (tmp_path / "run").exists()


def test_damaged_and_foreign_weights_are_refused_by_name(seeded: Path, dataset: Path, tmp_path: Path) -> None:
    save_config(tiny_config(dataset), tmp_path / "config.yaml")
    folder = tmp_path / "weights"
    shutil.copytree(seeded, folder)
    words = ("train", "--config", tmp_path / "config.yaml", "--output", tmp_path / "run", "--start_from", folder)
    whole = load_file(seeded / "model.safetensors")
    name = "starEncoder2.norm.weight"
    norm = whole[name]
    save_file({other: value for other, value in whole.items() if other != name}, folder / "model.safetensors")
    assert "model.safetensors: tensor starEncoder2.norm.weight is missing" in refuses(*words)
    save_file(whole | {"more": norm.clone()}, folder / "model.safetensors")
    assert "model.safetensors: tensor more is not expected" in refuses(*words)
    save_file(whole | {name: norm[:-1].clone()}, folder / "model.safetensors")
    assert "starEncoder2.norm.weight is [31], the run's model has [32]" in refuses(*words)
    save_file(whole, folder / "model.safetensors")
    make_tokenizer(folder, 330)
    assert "its tokenizer is" in refuses(*words)

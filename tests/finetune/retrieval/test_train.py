"""The retrieval stage: it learns, leaves a whole run directory, is reproducible, and does not depend on its chunks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finetune.config import RetrievalConfig
from finetune.distributed import World
from finetune.retrieval.examples import Examples
from finetune.retrieval.optimization import build_optimizer
from finetune.retrieval.train import train
from finetune.retrieval.trainer import Trainer, build_model
from mose.checkpoint.converted_checkpoint import load_pretrained, load_retrieval, random_like, retrieval_from_pretrained
from mose.config import load_config
from mose.errors import MoseError
from mose.run_directory import RunDirectory
from mose.tokenizer import Tokenizer
from tests.finetune.conftest import make_pairs, tiny_config


@pytest.fixture
def config(checkpoint: Path, pairs_file: Path, tmp_path: Path) -> RetrievalConfig:
    return RetrievalConfig(
        checkpoint=str(checkpoint),
        pairs=str(pairs_file),
        output=str(tmp_path / "run"),
        steps=6,
        batch_pairs=12,
        chunk_pairs=4,
        learning_rate=1e-3,
        log_every_steps=2,
        device="cpu",
    )


def test_a_run_leaves_its_directory_and_a_checkpoint_that_loads(config: RetrievalConfig, capsys: pytest.CaptureFixture[str]):
    train(config)
    run = RunDirectory(Path(config.output))
    assert load_config(RetrievalConfig, run.config) == config
    assert run.versions.is_file() and any(run.tensorboard.iterdir())
    lines = run.read_metrics()
    assert [line["step"] for line in lines] == [2, 4, 6]
    for name in ("loss/total", "loss/exit_01/clip", "accuracy/exit_04/in_batch", "optimizer/gradient_norm"):
        assert all(name in line for line in lines)
    exits = [lines[-1][f"loss/exit_{name}/clip"] for name in ("01", "02", "04")]
    assert lines[-1]["loss/total"] == pytest.approx(exits[0] / 4 + exits[1] / 2 + exits[2], rel=1e-5)
    steps = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(steps) == 3 and steps[0].startswith("step 2/6 loss ")
    tuned, source = load_retrieval(run.path / "checkpoint"), load_pretrained(Path(config.checkpoint))
    moved = (tuned.starEncoder2.layers[0].mlp.c_fc.weight - source.starEncoder2.layers[0].mlp.c_fc.weight).abs().max()
    assert 0 < moved < 0.02
    assert json.loads((run.path / "checkpoint" / "facts.json").read_text())["last_metrics"]["step"] == 6


def test_the_same_seed_gives_the_same_metrics_and_another_gives_others(config: RetrievalConfig, tmp_path: Path):
    found = []
    for number, seed in enumerate((1, 1, 2)):
        train(replace(config, output=str(tmp_path / f"run{number}"), seed=seed, steps=2))
        line = RunDirectory(tmp_path / f"run{number}").read_metrics()[0]
        found.append({name: value for name, value in line.items() if not name.startswith("throughput/")})
    assert found[0] == found[1] != found[2]


def test_it_learns_at_every_exit(config: RetrievalConfig, tokenizer: Tokenizer):
    config = replace(config, learning_rate=1e-3, chunk_pairs=6)
    model = retrieval_from_pretrained(random_like(tiny_config(), seed=3), seed=0).train()
    trainer = Trainer(config, model, build_optimizer(model, config), tokenizer, torch.device("cpu"), World(0, 1))
    examples = Examples(make_pairs(12), 12, 0.0, seed=0)
    losses = [trainer.step(examples.at(step), step).loss.losses_E for step in range(30)]
    assert (losses[-1] < 0.6 * losses[0]).all()


def test_chunks_do_not_change_a_step(config: RetrievalConfig, checkpoint: Path):
    norms = []
    for chunk_pairs in (1, 5, 12):
        trainer = Trainer.build(replace(config, chunk_pairs=chunk_pairs), torch.device("cpu"), World(0, 1))
        trainer.model.eval()
        report = trainer.step(Examples(make_pairs(30, second=True), 12, 0.3, seed=0).at(0), 0)
        norms.append((report.gradient_norm, report.loss.total.item()))
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    assert norms[2] == pytest.approx(norms[0], rel=1e-4)


def test_from_random_has_another_trunk_and_the_same_heads(config: RetrievalConfig):
    tuned, control = build_model(config), build_model(replace(config, from_random=True))
    shape = dict(tuned.named_parameters())
    for name, parameter in control.named_parameters():
        equal = torch.equal(parameter, shape[name])
        assert equal == name.startswith("projection_heads") or parameter.ndim == 1, name


def test_only_matrices_decay(config: RetrievalConfig):
    optimizer = build_optimizer(build_model(config), config)
    decays = {group["weight_decay"]: {parameter.ndim for parameter in group["params"]} for group in optimizer.param_groups}
    assert decays == {0.01: {2}, 0.0: {1}}


def test_a_finished_run_is_not_overwritten(config: RetrievalConfig):
    train(replace(config, steps=1))
    with pytest.raises(MoseError, match="holds another run"):
        train(replace(config, steps=1))


def test_a_second_start_is_refused_while_the_first_runs(config: RetrievalConfig):
    run = RunDirectory(Path(config.output))
    with run.hold(), pytest.raises(MoseError, match="works on it; expected one process at a time per run directory"):
        train(replace(config, steps=1))
    assert not run.path.exists()

"""Covers `mose-pretrain`: each bad input as one line and exit code 2, `--dry-run`, `--mock-step`, evaluate and plot."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from mose.command import run_command
from mose.config import save_config
from mose.dataset.manifest import read_manifest, write_manifest
from pretrain.cli import commands
from tests.commands import command_line, launcher_line, refused, run, run_well
from tests.datasets import make_dataset, make_tokenizer
from tests.pretrain.cells import tiny_config


@pytest.fixture
def config(dataset: Path, tmp_path: Path) -> Path:
    save_config(tiny_config(dataset), tmp_path / "config.yaml")
    return tmp_path / "config.yaml"


def train(config: Path, *more: object) -> tuple[str, ...]:
    return ("train", "--config", str(config), "--output", str(config.parent / "run"), *map(str, more))


def refused_here(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run the command in this process; it must refuse its input before any rank joins another."""
    assert run_command("mose-pretrain", "", commands(), words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (("--model.wdth", "3"), "unknown key 'model.wdth'; expected one of: model.width"),
        (("--max_steps", "soon"), "max_steps: Expected a int. Got value: soon"),
        (("--model.exit_layers", "[1, 9]"), "model.exit_layers: exit 9 is deeper than the model (model.num_layers is 4)"),
        (("--parallel.tensor_parallel_size", "4"), "4 does not divide model.num_key_value_heads 2"),
        (("--parallel.precision", "bf16", "--parallel.zero_stage", "0"), "steps once with empty gradients"),
        (("--parallel.tensor_parallel_size", "2"), "2 does not divide the 1 ranks that were launched"),
        (("--batch.global_rows", "0"), "batch.global_rows: 0, expected 1 or more"),
        (("--model.vocabulary_size", "100"), "model.vocabulary_size: 100 is smaller than the data set's vocabulary of 320"),
        (("--model.max_length", "16"), "model.max_length: 16, the rows of"),
        (("--deepspeed.gradient_clipping", "2"), "deepspeed.gradient_clipping: cannot be given here, because the config decides"),
        (("--data.split", "dev"), "split 'dev' has no rows"),
        (("--data.dataset", "nowhere"), "nowhere: no such tokenizer file"),
        (("--data.dataset", ""), "data.dataset: not given"),
    ],
)
def test_bad_config_is_one_line(option: tuple[str, ...], expected: str, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in refused_here(capsys, *train(config, *option))
    assert not (config.parent / "run").exists()


def test_bad_data_sets_are_one_line(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_dataset(tmp_path, rows=30, sequence_length=32)
    words = train(config, "--data.dataset", made)
    shard = made / "train" / "shard-000000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    assert "shard-000000.tar" in (line := refused_here(capsys, *words))
    assert "truncated" in line
    shard.unlink()
    assert "shard-000000.tar: no such shard, but the manifest lists it" in refused_here(capsys, *words)
    shard.write_bytes(whole)
    manifest = read_manifest(made)
    wrong = dataclasses.replace(manifest.splits["train"][0], num_bytes=1)
    write_manifest(made, dataclasses.replace(manifest, splits={**manifest.splits, "train": (wrong,)}))
    assert "num_bytes" in refused_here(capsys, *words)
    write_manifest(made, manifest)
    make_tokenizer(made, 330)
    assert "tokenizer_fingerprint" in refused_here(capsys, *words)
    (made / "manifest.json").write_text('{"schema_version": 99}')
    assert "schema_version is 99, expected 2" in refused_here(capsys, *words)


def test_unreadable_manifest_is_one_line_in_a_real_process(config: Path, tmp_path: Path) -> None:
    made = make_dataset(tmp_path, rows=30)
    (made / "manifest.json").write_text("{")
    assert "manifest.json: not a readable JSON file" in refused(command_line("pretrain", *train(config, "--data.dataset", made)))


def test_a_fault_that_all_ranks_see_is_told_once(config: Path) -> None:
    done = run(launcher_line(2, *train(config, "--data.dataset", "nowhere")))
    assert done.returncode != 0
    assert (done.stdout + done.stderr).count("error: nowhere: no such tokenizer file") == 1


def test_dry_run_of_the_papers_config_needs_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    paper = Path(__file__).parents[2] / "configs" / "mose_1b.yaml"
    assert run_command("mose-pretrain", "", commands(), ["train", "--config", str(paper), "--dry-run", "--ranks", "512"]) == 0
    shown = capsys.readouterr().out
    assert "1,104,091,214" in shown
    assert "4,194,304" in shown


def test_mock_step_reads_and_writes_nothing(config: Path) -> None:
    shown = run_well(command_line("pretrain", *train(config, "--mock-step", "--data.dataset", "nowhere")))
    assert shown.startswith("mock step: loss ")
    assert f"{8 * 48:,} tokens" in shown
    assert not (config.parent / "run").exists()


def test_evaluate_and_plot(finished_run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_well(command_line("pretrain", "export", finished_run, "--output", tmp_path / "model"))
    words = ["evaluate", "--checkpoint", str(tmp_path / "model"), "--dataset", str(dataset), "--output", str(tmp_path / "h.json")]
    assert run_command("mose-pretrain", "", commands(), words) == 0
    assert "unigram" in capsys.readouterr().out
    assert json.loads((tmp_path / "h.json").read_text())["exits"].keys() == {"01", "02", "04"}
    assert run_command("mose-pretrain", "", commands(), ["plot", str(finished_run), "--output", str(tmp_path / "l.png")]) == 0
    assert (tmp_path / "l.png").read_bytes().startswith(b"\x89PNG")


def test_run_directory_holds_what_the_design_names(finished_run: Path) -> None:
    names = {path.name for path in finished_run.iterdir()}
    assert names >= {
        "config.yaml",
        "versions.json",
        "metrics.jsonl",
        "tensorboard",
        "heartbeat.json",
        "checkpoints",
        "tokenizer.model",
    }
    line = json.loads((finished_run / "metrics.jsonl").read_text().splitlines()[0])
    wanted = ["loss/total", "optimizer/learning_rate", "optimizer/gradient_norm", "data/padding_fraction", "memory/peak_gib"]
    wanted += ["throughput/tokens_per_second_per_device", "throughput/data_wait_fraction", "consumed_tokens"]
    wanted += [f"throughput/step_seconds_{name}" for name in ("p50", "p90", "max")] + ["throughput/straggler_ratio"]
    wanted += [
        f"{kind}/exit_{layer}/{what}" for kind in ("loss", "accuracy") for layer in ("01", "02", "04") for what in ("mlm", "icc")
    ]
    assert set(wanted) <= line.keys()
    versions = json.loads((finished_run / "versions.json").read_text())
    assert versions["torch_threads"] == 1
    assert versions["attention_backend"] == "sdpa"
    assert versions["packages"]["deepspeed"] is not None


def test_half_written_runs_are_not_taken_for_checkpoints(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    line = refused(command_line("pretrain", "export", tmp_path / "run", "--output", tmp_path / "out"))
    assert "expected one written by `mose-pretrain train`" in line

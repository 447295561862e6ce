"""Covers the whole thread as a user types it: repositories, shards, 2-rank training, export, fine-tuning, scores.

The README's commands stand here on made-up repositories; the quickstart runs them on real ones.
"""

import json
import textwrap
from pathlib import Path

import pytest
import yaml

from tests.commands import command_line, launcher_line, run_well

ROOT = Path(__file__).parents[2]
VERBS = ("read", "write", "parse", "close", "open", "count", "merge", "split", "sort", "hash", "print", "check")
NOUNS = ("file", "table", "token", "model", "shard", "config", "index", "graph", "batch", "layer")


def make_repositories(folder: Path, count: int = 24) -> Path:
    """Small Python repositories; each documents its functions about a noun of its own."""
    for number in range(count):
        for verb in VERBS:
            noun = f"{NOUNS[number % len(NOUNS)]}_{number}"
            text = f'''
            """Helpers that {verb} a {noun}."""

            def {verb}_{noun}(path, {noun}, limit={number}):
                """{verb.title()} the {noun} found at a path, up to a limit."""
                result = []
                for item in {noun}.{verb}(path):
                    if len(result) < limit:
                        result.append((item, "{verb}", "{noun}"))
                return result
            '''
            path = folder / f"repository_{number:02d}" / f"{verb}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text).lstrip() * 3, encoding="utf-8")
    return folder


def debug_config(folder: Path, **changes: object) -> Path:
    """configs/debug_cpu.yaml with shorter rows, fewer steps and no dropout, whose masks depend on the layout."""
    values = yaml.safe_load((ROOT / "configs" / "debug_cpu.yaml").read_text("utf-8"))
    values["model"] |= {
        "width": 32,
        "feed_forward_width": 64,
        "max_length": 256,
        "residual_dropout": 0.0,
        "embedding_dropout": 0.0,
    }
    values |= {"max_steps": 6, "intervals": {**values["intervals"], "validation_rows": 8, "checkpoint_every_steps": 3}, **changes}
    path = folder / "pretrain.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    sources = ["--sources.directories", f"[{make_repositories(folder / 'repositories')}]", "--held_out_fraction", "0.25"]
    run_well(command_line("data_prep", "train-tokenizer", "--output", folder / "tokenizer", "--vocabulary_size", 400, *sources))
    pack = ["--output", folder / "data", "--tokenizer", folder / "tokenizer", "--packing.sequence_length", 256]
    run_well(command_line("data_prep", "pack", *pack, *sources, "--num_tasks", 2, "--num_workers", 2))
    assert "ok" in run_well(command_line("data_prep", "verify", folder / "data"))
    assert "repository_" in run_well(command_line("data_prep", "inspect", folder / "data", "--row", 0))
    assert "mixed" in run_well(command_line("data_prep", "stats", folder / "data"))
    run_well(command_line("data_prep", "pairs", "--output", folder / "pairs.parquet", *sources))
    return folder


def test_from_repositories_to_scores(packed: Path) -> None:
    config = debug_config(packed)
    words = ["train", "--config", config, "--data.dataset", packed / "data", "--output", packed / "run"]
    run_well(launcher_line(2, *words, "--parallel.tensor_parallel_size", 2))
    run_well(command_line("pretrain", "export", packed / "run", "--output", packed / "pretrained"))
    held_out = ["--checkpoint", packed / "pretrained", "--dataset", packed / "data", "--output", packed / "run" / "held_out.json"]
    run_well(command_line("pretrain", "evaluate", *held_out))
    tune = ["retrieval", "--checkpoint", packed / "pretrained", "--pairs", packed / "pairs.parquet", "--steps", 6]
    tune += ["--batch_pairs", 16, "--learning_rate", "1e-3", "--max_length", 96, "--log_every_steps", 2]
    run_well(command_line("finetune", *tune, "--output", packed / "retrieval"))
    score = [
        "evaluate",
        "--checkpoint",
        packed / "retrieval" / "checkpoint",
        "--pairs",
        packed / "pairs.parquet",
        "--max_length",
        96,
    ]
    run_well(command_line("finetune", *score, "--output", packed / "scores"))
    report = ["--pretrain", packed / "run", "--evaluation", packed / "scores", "--output", packed / "report"]
    shown = run_well(command_line("finetune", "report", *report))
    assert "TF-IDF" in shown
    assert "tensorboard --logdir" in shown
    assert any(path.suffix == ".png" for path in (packed / "report").iterdir())
    evaluation = json.loads((packed / "scores" / "evaluation.json").read_text())
    assert json.dumps(evaluation).count("mrr") >= 5


@pytest.mark.soak
def test_two_data_ranks_with_zero_2_give_the_same_losses_as_two_tensor_ranks(packed: Path) -> None:
    config = debug_config(packed)
    words = ["train", "--config", config, "--data.dataset", packed / "data", "--output", packed / "run_zero"]
    run_well(launcher_line(2, *words, "--parallel.zero_stage", 2, "--batch.micro_batch_rows", 2))
    losses = {}
    for run in ("run", "run_zero"):
        if not (packed / run).is_dir():
            pytest.skip("needs the run of the test before")
        lines = [json.loads(line) for line in (packed / run / "metrics.jsonl").read_text().splitlines()]
        losses[run] = [line["loss/total"] for line in lines if "loss/total" in line]
    assert losses["run"] == pytest.approx(losses["run_zero"], rel=1e-5)
    assert len(losses["run"]) == 3

"""The command from end to end on a tiny model, and bad input: one line that names file and field, exit code 2."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.cli import commands
from mose.command import run_command
from mose.config import document_fields
from mose.dataset.pairs import write_pairs
from mose.run_directory import RunDirectory
from tests.finetune.conftest import make_pairs


def run(*words: str) -> int:
    document_fields()
    return run_command("mose-finetune", "test", commands(), list(words))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, pairs_file: Path) -> Path:
    """A checkpoint fine-tuned by the command."""
    output = tmp_path_factory.mktemp("tuned") / "run"
    words = ["--checkpoint", str(checkpoint), "--pairs", str(pairs_file), "--output", str(output), "--steps", "2"]
    assert run("retrieval", *words, "--batch_pairs", "8", "--device", "cpu") == 0
    return output / "checkpoint"


def test_evaluate_and_report(tuned: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--checkpoint", str(tuned), "--pairs", str(pairs_file), "--device", "cpu"]
    assert run("evaluate", *words, "--output", str(tmp_path / "first"), "--distractors", "20") == 0
    printed = capsys.readouterr().out
    assert "40 queries, each among 21 candidates" in printed and "its own code and 20 distractors" in printed
    values = json.loads((tmp_path / "first" / "evaluation.json").read_text())
    assert list(values["exits"]) == ["01", "02", "04"] and values["candidates"] == 21 and values["corpus"] == 40
    for scores in values["exits"].values():
        assert scores["mrr"]["interval"][0] <= scores["mrr"]["value"] <= scores["mrr"]["interval"][1]
        assert scores["recall_at_1"]["value"] <= scores["mrr"]["value"]
    assert values["exits"]["01"]["parameters"] < values["exits"]["04"]["parameters"]
    assert values["exits"]["04"]["gflops_per_row"] == pytest.approx(4 * values["exits"]["01"]["gflops_per_row"])
    assert all(values["baselines"][name]["mrr"]["value"] > 0.9 for name in ("TF-IDF", "BM25"))

    compare = f"earlier run={tmp_path / 'first' / 'evaluation.json'}"
    assert run("evaluate", *words, "--output", str(tmp_path / "second"), "--compare", compare) == 0
    printed = capsys.readouterr().out
    assert "fewer than 1,000: each query is ranked among all 40" in printed and "earlier run, exit 02" in printed

    directory = RunDirectory(tmp_path / "pretraining")
    directory.create()
    directory.append_metrics({"step": 1, "loss/exit_01/mlm": 5.0})
    places = {"pretrain": directory.path, "evaluation": tmp_path / "second", "control": tmp_path / "first", "output": tmp_path}
    assert run("report", *[word for name, path in places.items() for word in (f"--{name}", str(path))]) == 0
    assert (tmp_path / "report.png").stat().st_size > 10_000


def test_evaluation_is_reproducible_whatever_the_chunks(tuned: Path, pairs_file: Path, tmp_path: Path):
    words = ["--checkpoint", str(tuned), "--pairs", str(pairs_file), "--device", "cpu", "--distractors", "9"]
    found = []
    for name, tokens in (("a", "100"), ("b", "10000")):
        assert run("evaluate", *words, "--output", str(tmp_path / name), "--chunk_tokens", tokens) == 0
        found.append(json.loads((tmp_path / name / "evaluation.json").read_text()))
    assert found[0] == found[1]


def test_max_queries_keeps_the_corpus(tuned: Path, pairs_file: Path, tmp_path: Path):
    words = ["--checkpoint", str(tuned), "--pairs", str(pairs_file), "--device", "cpu", "--max_queries", "7"]
    assert run("evaluate", *words, "--output", str(tmp_path)) == 0
    values = json.loads((tmp_path / "evaluation.json").read_text())
    assert (values["queries"], values["corpus"], values["candidates"]) == (7, 40, 40)


def broken_pairs(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.parquet"
    if kind == "no_column":
        pq.write_table(pa.table({"nl": ["a"], "code_a": ["b"]}), path)
    elif kind == "not_parquet":
        path.write_bytes(b"not parquet at all")
    elif kind == "train_only":
        write_pairs(path, make_pairs(5))
    elif kind == "few_triplets":
        write_pairs(path, [*make_pairs(20), *make_pairs(2, second=True)])
    return path


@pytest.mark.parametrize(
    ("command", "kind", "more", "expected"),
    [
        ("retrieval", "no_column", [], "no_column.parquet: lang_a: no such column"),
        ("retrieval", "not_parquet", [], "not_parquet.parquet: not a readable parquet file"),
        ("retrieval", "missing", [], "missing.parquet: not a readable parquet file"),
        ("retrieval", "train_only", [], "batch_pairs: 8, but there are only 5 pairs"),
        ("retrieval", "few_triplets", [], "only 2 pairs have code_b"),
        ("retrieval", "train_only", ["--batch_pairs", "5", "--checkpoint", "nowhere"], "nowhere"),
        ("retrieval", "train_only", ["--batch_pairs", "1"], "batch_pairs: 1, expected 2 or more"),
        ("retrieval", "train_only", ["--augment_share", "1.5"], "augment_share: 1.5, expected a share"),
        ("retrieval", "train_only", ["--batch_pairs", "5", "--max_length", "10"], "max_length: 10, expected more than"),
        ("retrieval", "train_only", ["--batch_pairs", "5", "--device", "gpu"], "device: 'gpu' cannot be used here"),
        ("retrieval", "train_only", ["--lerning_rate", "1"], "unknown key 'lerning_rate'; expected one of: learning_rate"),
        ("retrieval", "train_only", ["--loss", "triplet"], "loss: 'triplet', expected one of clip, one_way, same_side"),
        ("retrieval", "train_only", ["--batch_pairs", "5", "--exit_layer", "3"], "exit_layer: 3, expected 0 or an exit of "),
        (
            "retrieval",
            "train_only",
            ["--batch_pairs", "5", "--dimensions", "[8,32]"],
            "dimensions: 32, expected fewer than",
        ),
        ("retrieval", "train_only", ["--dimensions", "[8,4]"], "dimensions: [8, 4], expected numbers from 1, ascending"),
        ("evaluate", "train_only", [], "train_only.parquet: split: no pair of split 'held_out'"),
        ("evaluate", "train_only", ["--split", "test"], "split: 'test', expected one of train, held_out"),
        ("evaluate", "train_only", ["--compare", "name"], "compare: 'name', expected NAME=evaluation.json"),
        ("evaluate", "train_only", ["--compare", "a=none.json"], "none.json: no such file; expected one written by"),
        ("evaluate", "train_only", ["--split", "train"], "architectures is ModularStarEncoder, expected"),
    ],
)
def test_bad_input_is_one_line(
    command: str, kind: str, more: list[str], expected: str, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "output"
    words = ["--checkpoint", str(checkpoint), "--pairs", str(broken_pairs(tmp_path, kind)), "--output", str(output)]
    words += ["--batch_pairs", "8"] if command == "retrieval" else []
    assert run(command, *words, *more) == 2
    said = capsys.readouterr().err.strip()
    assert expected in said and "\n" not in said
    assert not (output / "checkpoint").exists() and not (output / "evaluation.json").exists()


def test_report_on_missing_folders_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--evaluation", str(tmp_path / "none"), "--output", str(tmp_path / "out")]
    assert run("report", "--pretrain", str(tmp_path / "gone"), *words) == 2
    assert "gone: no such run directory" in capsys.readouterr().err
    assert run("report", "--pretrain", str(tmp_path), *words) == 2
    assert "metrics.jsonl: no line, expected one per interval" in capsys.readouterr().err
    RunDirectory(tmp_path).append_metrics({"step": 1})
    assert run("report", "--pretrain", str(tmp_path), *words) == 2
    assert "evaluation.json: no such file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

"""`mose-finetune card`: results of every kind reach the card, others' are refused, and the card changes no fingerprint."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from finetune.classification.evaluate import ClassificationScores, ExitClassScores, SplitScores
from finetune.classification.scores import ClassScores
from finetune.cli import commands
from finetune.evaluation.benchmark.result import BenchmarkResult, ExitResult, ModelResult, TaskResult, read_result, write_result
from finetune.evaluation.metrics import Score
from finetune.evaluation.results import write_evaluation
from finetune.evaluation.systems.system import folder_fingerprint
from mose.command import run_command
from mose.config import document_fields
from mose.files.atomic_file import write_json
from tests.finetune.evaluation.report.test_command import evaluation_of

SCORE = Score(0.5, (0.4, 0.6))


def run(folder: Path, *words: str) -> int:
    document_fields()
    options = ["--repeats=1", "--batch_texts=2", "--device=cpu", "--threads=1"]
    return run_command("mose-finetune", "test", commands(), ["card", f"--checkpoint={folder}", *options, *words])


@pytest.fixture
def model(retriever: Path, tmp_path: Path) -> Path:
    return shutil.copytree(retriever, tmp_path / "run" / "checkpoint")


def benchmark_of(model: Path) -> BenchmarkResult:
    tasks = {"poj104": TaskResult("POJ-104", {"map_at_r": "MAP@R"}, {"p.jsonl": "ab"}, {"": {"queries": 9}}, ())}
    scores = {"poj104": {"": {"map_at_r": SCORE}}}
    exits = {f"{layer:02d}": ExitResult(layer, 10, 1.0, scores) for layer in (1, 2, 4)}
    ours = ModelResult(str(model), "mose", exits, {}, {"CosQA": {"01": 0.1, "02": 0.2, "04": 0.3}})
    peer = ModelResult("bm25", "bm25", {"-": ExitResult(None, None, None, scores)}, {}, {})
    return BenchmarkResult("held_out", 999, 0, 512, tasks, {"Ours": ours, "BM25": peer})


def test_a_new_folder_has_a_card_and_the_command_adds_scores_and_times(model: Path, tmp_path: Path) -> None:
    assert "No scores are known here" in (model / "README.md").read_text()
    before = folder_fingerprint(model)
    evaluation = evaluation_of(0.3)
    exits = {"01": evaluation.exits["04"].__class__(**{**vars(evaluation.exits["04"]), "layer": 1})}
    write_evaluation(tmp_path / "scores", evaluation.__class__(**{**vars(evaluation), "exits": exits}))
    write_result(tmp_path / "benchmark" / "benchmark.json", benchmark_of(model))
    held_out = {"mlm_accuracy": 0.3, "icc_accuracy": 0.6, "icc_interval": [0.5, 0.7]}
    write_json(tmp_path / "held_out.json", {"exits": {"01": held_out}, "icc_majority_rate": 0.5, "rows": 10})
    results = f"--results=[{tmp_path / 'scores'},{tmp_path / 'benchmark'},{tmp_path / 'held_out.json'}]"
    assert run(model, results, "--licence=mit") == 0
    text = (model / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.license == "mit"
    assert {result.task_name for result in card.data.eval_results} == {
        "Function by its docstring",
        "POJ-104",
        "mteb CosQA",
        "Held-out rows of pre-training",
    }
    assert "ms per query" in text and "| BM25 | 0.500 [0.400, 0.600] |" in text and "0.600 [0.500, 0.700]" in text
    assert folder_fingerprint(model) == before


def test_classification_scores_are_found_in_the_run_directory(classifier: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(classifier, tmp_path / "run" / "checkpoint")
    scores = ClassScores(0.5, 0.25, 1 / 3, 0.75)
    split = SplitScores(8, {"01": ExitClassScores(1, scores)}, scores)
    write_json(tmp_path / "run" / "evaluation.json", ClassificationScores(2, split).as_dict())
    assert run(folder) == 0
    text = (folder / "README.md").read_text()
    assert "| exit 1 | 0.333 | 0.500 | 0.250 | 0.750 |" in text and "text-classification" in text


def test_a_benchmark_is_read_back_as_written(tmp_path: Path) -> None:
    write_result(tmp_path / "benchmark.json", benchmark_of(tmp_path))
    assert read_result(tmp_path) == benchmark_of(tmp_path)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "results.json: no such file; expected a file of results"),
        ("{", "results.json: not JSON"),
        ({"exits": {}}, "results.json: not an evaluation of this version"),
        ("foreign", "results.json: exit 12, expected some of [1, 2, 4]: results of another model?"),
        ("folder", "holds no results, expected evaluation.json, benchmark.json or held_out.json"),
        ("benchmark", "models: no Nobody, expected one of BM25 (bm25), Ours ("),
    ],
)
def test_bad_results_are_one_line_and_the_old_card_stays(
    content: Any, line: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, path = (model / "README.md").read_bytes(), tmp_path / "results.json"
    if content == "foreign":
        write_evaluation(tmp_path, evaluation_of(0.3))
        shutil.move(tmp_path / "evaluation.json", path)
    elif content == "folder":
        path = tmp_path
    elif content == "benchmark":
        path = tmp_path / "benchmark.json"
        write_result(path, benchmark_of(model))
    elif content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    assert run(model, f"--results={path}", "--name=Nobody") == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and line in error[0]
    assert (model / "README.md").read_bytes() == before

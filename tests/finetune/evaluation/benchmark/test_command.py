"""`mose-finetune benchmark` from end to end on tiny files: the table, a kill, and one line for each bad input."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from finetune.cli import commands
from finetune.evaluation.systems.mose_model import MoseEmbedder
from mose.command import run_command
from mose.config import document_fields


def run(output: Path, models: dict[str, str], tasks: dict[str, list[str]], **options: Any) -> int:
    values = {"models": models, "tasks": tasks, "output": str(output), "device": "cpu", "resamples": 50, "permutations": 50}
    config = output.parent / f"{output.name}.yaml"
    config.write_text(yaml.safe_dump(values | {"block_texts": 8, "distractors": 5, **options}, sort_keys=False))
    document_fields()
    return run_command("mose-finetune", "test", commands(), ["benchmark", "--config", str(config)])


def test_all_models_and_tasks_stand_in_one_table(
    files: dict[str, list[str]],
    retriever: Path,
    classifier: Path,
    sentence_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    models = {"Ours": str(retriever), "Clones": f"classifier:{classifier}", "TF-IDF": "tfidf", "BM25": "bm25"}
    assert run(tmp_path / "out", models | {"Peer": f"sentence-transformers:{sentence_folder}"}, files) == 0
    printed = capsys.readouterr()
    assert "Clones: poj104: a classifier has no answer to this task, left out" in printed.err
    table = (tmp_path / "out" / "benchmark.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    names = ["model", "---", "Ours, exit 01", "Ours, exit 02", "Ours, exit 04", "Clones, exit 01", "Clones, exit 02"]
    assert [row.split(" | ")[0].lstrip("| ") for row in rows[:11]] == [*names, "Clones, exit 04", "TF-IDF", "BM25", "Peer"]
    assert "CodeSearchNet go MRR | CodeSearchNet python MRR | CodeSearchNet mean MRR" in rows[0] and "CoSQA NDCG@10" in rows[0]
    assert printed.out.startswith(rows[0]) and "Exits of Ours, compared" in table
    figures = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    tests = {"exit_tests_Ours.png", "exit_tests_Clones.png"}
    depth = {"quality_by_depth_codesearchnet.png", "quality_by_depth_code_translation.png"}
    assert figures == {"quality_against_gflops.png", *tests, *depth}
    result = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    scores = result["models"]["TF-IDF"]["exits"]["-"]["scores"]
    assert scores["codesearchnet"]["mean"]["mrr"]["value"] == pytest.approx(
        np.mean([scores["codesearchnet"][part]["mrr"]["value"] for part in ("go", "python")])
    )
    assert scores["judged_search:CoSQA"][""]["ndcg_at_10"]["value"] > 0.9
    assert set(result["models"]["Ours"]["tests"]["poj104"][""]["differences"]) == {"01-02", "01-04", "02-04"}
    assert "Peer" not in json.dumps(result["models"]["Ours"]) and list(result["models"]["Clones"]["exits"]["01"]["scores"]) == [
        "bigclonebench"
    ]


def test_a_killed_run_resumes_to_the_same_bytes(
    files: dict[str, list[str]], retriever: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, models = {name: files[name] for name in ("codesearchnet", "poj104")}, {"Ours": str(retriever), "BM25": "bm25"}
    assert run(tmp_path / "whole", models, tasks) == 0
    embed, calls = MoseEmbedder.embed, [0]

    def dies(self: MoseEmbedder, prompts: Any, role: str) -> Any:
        calls[0] += 1
        if calls[0] == 6:
            raise KeyboardInterrupt
        return embed(self, prompts, role)

    with monkeypatch.context() as patch:
        patch.setattr(MoseEmbedder, "embed", dies)
        assert run(tmp_path / "killed", models, tasks) != 0
    assert not (tmp_path / "killed" / "benchmark.json").exists()
    values = next((tmp_path / "killed" / "values").rglob("*.npz"))
    values.write_bytes(values.read_bytes()[:100])
    assert run(tmp_path / "killed", models, tasks) == 0
    for name in ("benchmark.json", "benchmark.md"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    monkeypatch.setattr(MoseEmbedder, "embed", dies)
    calls[0] = 5  # a run that is complete embeds nothing
    assert run(tmp_path / "killed", models, tasks) == 0


def test_evaluate_knows_the_benchmarks_too(
    files: dict[str, list[str]], retriever: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", f"--checkpoint={retriever}", f"--pairs={files['poj104'][0]}", f"--output={tmp_path / 'out'}"]
    words += ["--task=poj104", "--device=cpu"]
    assert run_command("mose-finetune", "test", commands(), words) == 0
    rows = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if row.startswith("| ")][2:] == [
        "| checkpoint, exit 01",
        "| checkpoint, exit 02",
        "| checkpoint, exit 04",
        "| TF-IDF",
        "| BM25",
    ]
    assert run_command("mose-finetune", "test", commands(), [*words, "--bag_steps=5"]) == 2
    assert "bag_steps: 5, expected none: poj104 has no such option" in capsys.readouterr().err


def test_results_of_another_model_are_refused_and_kept(
    files: dict[str, list[str]], retriever: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = {"poj104": files["poj104"]}
    assert run(tmp_path / "out", {"Ours": "tfidf"}, tasks) == 0
    before = (tmp_path / "out" / "benchmark.json").read_bytes()
    assert run(tmp_path / "out", {"Ours": str(retriever)}, tasks) == 2
    assert "poj104.npz: values of another model, expected a new `output`, or this file removed" in capsys.readouterr().err
    assert run(tmp_path / "out", {"Ours": "tfidf"}, tasks, seed=1) == 2
    assert "poj104.npz: values of another options, expected a new `output`" in capsys.readouterr().err
    assert (tmp_path / "out" / "benchmark.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"tasks": {}}, "tasks: none, expected TASK: [FILE, ...] for each task, or mteb_tasks"),
        ({"models": {}}, "models: none, expected NAME: MODEL for each model to score"),
        ({"models": {"a/b": "bm25"}}, r"models: 'a/b', expected a name without / \ and |"),
        ({"models": {"Ours": "/nowhere"}}, "/nowhere/config.json: no such file"),
        ({"tasks": {"sonnets": []}}, "tasks: 'sonnets', expected one of codesearchnet"),
        ({"tasks": {"poj104": ["/nowhere"]}}, "/nowhere: not a readable file of JSON lines"),
        ({"split": "dev"}, "split: 'dev', expected one of"),
        ({"resamples": 0}, "resamples: 0, expected 1 or more"),
        (
            {"models": {"S": "server:http://127.0.0.1:9#m"}, "server_attempts": 1},
            "http://127.0.0.1:9/embeddings: cannot be reached",
        ),
    ],
)
def test_bad_input_is_one_line(
    change: dict[str, Any], line: str, files: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values: dict[str, Any] = {"models": {"BM25": "bm25"}, "tasks": {"poj104": files["poj104"]}} | change
    assert run(tmp_path / "out", values.pop("models"), values.pop("tasks"), **values) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert line in error and not (tmp_path / "out" / "benchmark.json").exists()

"""`mose-finetune choose-exit`: the table, recommendations for a budget, scores of an evaluation, bad input."""

import json
from pathlib import Path

import pytest

from finetune.cli import commands
from finetune.embedding.exit_costs import ExitCost, recommend
from mose.command import run_command
from mose.config import document_fields


def run(*words: object) -> int:
    document_fields()
    return run_command("mose-finetune", "test", commands(), ["choose-exit", *(str(word) for word in words)])


def cost(layer: int, ms: float, score: float | None = None, low: float = 0.0) -> ExitCost:
    return ExitCost(layer, layer * 1000, layer * 0.004, 0.1, ms, ms, 1000 / ms, score, None if score is None else (low, 1.0))


def test_a_recommendation_keeps_the_budget() -> None:
    plain = [cost(4, 2.0), cost(9, 5.0), cost(36, 20.0)]
    assert recommend(plain, 0, 0).layer == 36
    assert recommend(plain, 6.0, 0).layer == 9
    assert recommend(plain, 6.0, 400).layer == 4
    nothing = recommend(plain, 1.0, 0)
    assert nothing.layer is None and nothing.reason.startswith("no exit fits: exit 4 needs 2.0 ms and embeds 500 texts")
    scored = [cost(4, 2.0, 0.5), cost(9, 5.0, 0.61), cost(18, 10.0, 0.63, low=0.6), cost(36, 20.0, 0.62)]
    best = recommend(scored, 0, 0)
    assert best.layer == 18 and "exit 9 takes 50% of its time, and its score, 0.610, lies within" in best.reason
    assert recommend(scored, 6.0, 0).layer == 9


def test_every_exit_is_measured(retrieval: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exits = {f"{layer:02d}": {"layer": layer, "mrr": {"value": layer / 10, "interval": [0.3, 0.5]}} for layer in (1, 2, 4)}
    (tmp_path / "evaluation.json").write_text(json.dumps({"exits": exits}))
    words = ["--checkpoint", retrieval, "--tokens", 20, "--batch_texts", 3, "--repeats", 2]
    assert run(*words, "--evaluation", tmp_path / "evaluation.json") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("cpu, ") and "texts of 20 tokens, batches of 3" in shown[0]
    assert [line.split()[0] for line in shown[2:5]] == ["1", "2", "4"] and "0.400 [0.300, 0.500]" in shown[4]
    assert shown[5].startswith("exit 4: the best score that fits, 0.400")
    assert run(*words, "--exits", "[1,2]", "--json", "true") == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["layer"] for each in found["exits"]] == [1, 2] and found["recommendation"]["layer"] == 2
    first, second = found["exits"]
    assert first["parameters"] < second["parameters"] and second["gflops_per_text"] == pytest.approx(2 * first["gflops_per_text"])
    assert min(first["query_ms"], first["texts_per_second"]) > 0


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, [], "No such file"),
        ('{"exits": {"01": {"layer": 1, "mrr": NaN}}}', [], "not JSON: NaN is not a number of JSON"),
        ('{"exits": {"09": {"layer": 9}}}', [], "exits: [9], expected exit 1 among them: an evaluation of another model?"),
        ('{"exits": {"01": {"layer": 1, "ndcg": {"value": 0.1}}}}', [], "exit 1: mrr: None, expected a number; it has: ndcg"),
        ("{}", ["--repeats", "0"], "repeats: 0, expected 1 or more"),
        ("{}", ["--budget_ms", "-1"], "budget_ms: -1.0, expected 0 or more"),
        ("{}", ["--exits", "[3]"], "exits: 3: "),
    ],
)
def test_bad_input_is_one_line(
    retrieval: Path, tmp_path: Path, content: str | None, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evaluation.json"
    if content is not None:
        path.write_text(content)
    words = ["--checkpoint", retrieval, "--tokens", 8, "--batch_texts", 1, "--repeats", 1, "--exits", "[1]", "--evaluation", path]
    assert run(*words, *options) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1

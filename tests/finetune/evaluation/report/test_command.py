"""The report: what stands in its table, what it says falls short, and a picture with both panels."""

import dataclasses
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from finetune.config import ReportConfig
from finetune.evaluation.metrics import Score
from finetune.evaluation.paired import mrr_difference
from finetune.evaluation.report.command import report
from finetune.evaluation.report.held_out import HeldOut, exit_series, read_held_out
from finetune.evaluation.report.picture import draw_losses, draw_quality
from finetune.evaluation.report.table import shortfalls
from finetune.evaluation.results import Evaluation, ExitScores, RankScores, read_evaluation, write_evaluation
from mose.errors import MoseError
from mose.files.atomic_file import write_json
from mose.run_directory import RunDirectory


def evaluation_of(mrr: float) -> Evaluation:
    score, low = Score(mrr, (mrr - 0.02, mrr + 0.02)), Score(mrr / 2, (mrr / 2, mrr / 2))
    exits = {f"{layer:02d}": ExitScores(layer, 10**6 * layer, 1.5 * layer, score, low) for layer in (4, 12)}
    baselines = {"TF-IDF": RankScores(Score(0.5, (0.4, 0.6)), score), "BM25": RankScores(low, low)}
    ranks = {name: [max(1, round(1 / mrr)) + query % 2 for query in range(50)] for name in (*exits, *baselines)}
    asked = [f"repository {query % 5}" for query in range(50)]
    sizes = (50, 5, 60, 60, 128)
    return Evaluation("model", ("p.parquet",), "held_out", 0, *sizes, 0.078, exits, baselines, list(range(50)), asked, ranks)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    for step in (10, 20, 30):
        line = {f"loss/exit_{name}/mlm": 8.0 - step / 10 - int(name) / 10 for name in ("04", "12")}
        line |= {"validation/loss/exit_04/mlm": 8.0 - step / 20, "validation/accuracy/exit_04/icc": 0.5 + step / 100}
        directory.append_metrics({"step": step, "loss/total": 1.0, **line})
    return directory


def test_report_prints_every_column_and_writes_its_files(tmp_path: Path, run: RunDirectory, capsys: pytest.CaptureFixture[str]):
    held_out = {"mlm": 5.25, "icc_accuracy": 0.625, "icc_interval": [0.55, 0.7]}
    figures = {"unigram_cross_entropy": 6.5, "left_bigram_cross_entropy": 6.25, "icc_majority_rate": 0.51, "rows": 200}
    write_json(run.path / "held_out.json", {"exits": {"04": held_out, "12": {**held_out, "mlm": 7.75}}, **figures})
    write_evaluation(tmp_path / "scores", evaluation_of(0.3))
    write_evaluation(tmp_path / "control", evaluation_of(0.1))
    write_evaluation(tmp_path / "start", evaluation_of(0.25))
    folders = {name: str(tmp_path / name) for name in ("control", "start", "output")}
    report(ReportConfig(pretrain=str(run.path), evaluation=str(tmp_path / "scores"), **folders))
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("│ 04"))
    for cell in ("4 ", "6 ", "5.250", ".625 [0.550, 0.700]", ".300 [.280, .320]", ".150", ".100 [.080, .120]"):
        assert cell in row
    # Ranks 3 and 4 against 10 and 11, as often the one as the other in each repository.
    assert "+.196 [+.196, +.196]" in row
    lines = printed.splitlines()
    for name, level in (("unigram", "6.500"), ("left bigram", "6.250"), ("more frequent label", "0.510")):
        assert level in next(line for line in lines if line.startswith(f"│ {name}"))
    assert ".500 [.400, .600]" in next(line for line in printed.splitlines() if "TF-IDF" in line)
    assert ".250 [.230, .270]" in next(line for line in lines if line.startswith("│ untrained start, exit 04"))
    assert "exit 12: MRR minus the untrained start's +" in printed
    assert "falls short: exit 12: MLM loss 7.750 is not below the unigram cross-entropy 6.500" in printed
    assert "falls short: exit 12: MLM loss 7.750 is not below the left bigram's cross-entropy 6.250" in printed
    assert printed.strip().splitlines()[-1] == f"plots: tensorboard --logdir {run.path}"
    assert (tmp_path / "output" / "report.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (tmp_path / "output" / "report.txt").read_text() in printed


def test_without_held_out_file_the_last_validation_stands_in(run: RunDirectory):
    found = read_held_out(run.path, run.read_metrics())
    assert found == HeldOut({"04": {"mlm": 6.5, "icc_accuracy": pytest.approx(0.8)}})


def test_shortfalls_name_what_is_not_beaten():
    low = evaluation_of(0.09)
    held_out = HeldOut({"04": {"mlm": 5.0, "icc_accuracy": 0.5, "icc_interval": [0.4, 0.6]}}, 6.0, 4.0, 0.5)
    assert shortfalls("04", held_out, low, evaluation_of(0.2)) == [
        "the ICC accuracy's interval does not lie above the majority rate 0.500",
        "the MRR interval does not lie above chance (0.0780)",
        "the interval of the MRR's difference to random weights does not lie above 0",
    ]
    assert shortfalls("12", HeldOut({}), evaluation_of(0.3), None) == []


def test_only_the_same_queries_are_paired():
    first, second = evaluation_of(0.3), evaluation_of(0.1)
    assert mrr_difference(first, second, "04") == Score(pytest.approx(0.196, abs=1e-3), (pytest.approx(0.196, abs=1e-3),) * 2)
    assert mrr_difference(first, dataclasses.replace(second, seed=1), "04") is None
    assert mrr_difference(first, second, "05") is None


def test_panels_show_every_exit_and_both_baselines(run: RunDirectory):
    left, right = Figure().subplots(1, 2)
    draw_losses(left, run.read_metrics(), {"unigram": 6.0, "left bigram": 5.0})
    draw_quality(right, evaluation_of(0.3), evaluation_of(0.1))
    assert [line.get_label() for line in left.get_lines()][:3] == ["exit 04", "exit 04, held out", "exit 12"]
    labels = {text.get_text() for text in right.get_legend().get_texts()}
    assert {"TF-IDF", "BM25", "chance (0.0780)", "random weights, then fine-tuned"} <= labels
    assert exit_series(run.read_metrics(), "loss/exit_", "/mlm")["12"] == ([10, 20, 30], pytest.approx([5.8, 4.8, 3.8]))


def test_evaluation_is_read_back_as_written_and_broken_ones_are_refused(tmp_path: Path):
    write_evaluation(tmp_path, evaluation_of(0.3))
    assert read_evaluation(tmp_path) == read_evaluation(tmp_path / "evaluation.json") == evaluation_of(0.3)
    write_json(tmp_path / "evaluation.json", {"exits": {}})
    with pytest.raises(MoseError, match=r"evaluation\.json: not an evaluation of this version"):
        read_evaluation(tmp_path)


def test_broken_held_out_file_is_refused(run: RunDirectory):
    (run.path / "held_out.json").write_text("[]")
    with pytest.raises(MoseError, match=r"held_out\.json: not a held-out result"):
        read_held_out(run.path, run.read_metrics())

"""The HTML page of a whole run: every stage is there, nothing of a file is markup, and a browser shows it."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from finetune.config import ReportConfig
from finetune.evaluation.benchmark.result import write_result
from finetune.evaluation.report.command import report
from finetune.evaluation.report.data_part import data_section
from finetune.evaluation.results import write_evaluation
from mose.dataset.manifest import MANIFEST_NAME, Manifest, ShardEntry, write_manifest
from mose.dataset.row_index import INDEX_DTYPE, index_bytes
from mose.errors import MoseError
from mose.files.atomic_file import write_json
from mose.run_directory import RunDirectory
from tests.finetune.evaluation.cards.test_command import benchmark_of
from tests.finetune.evaluation.report.test_command import evaluation_of

HOSTILE = "<script>alert(1)</script>$\\frac$\x1b[2J"
VOID = {"meta", "br", "img", "link", "path", "use", "rect", "line", "circle", "image"}


class Reader(HTMLParser):
    """Tags, ids and text of a page; a closing tag without its opening one is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def write_data(folder: Path) -> None:
    """A data set as far as the report reads it: a manifest with statistics and a ledger, and an index of three rows."""
    index_R = np.zeros(3, INDEX_DTYPE)
    index_R["num_tokens"] = [8, 7, 8]
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "index.npy").write_bytes(index_bytes(index_R))
    entry = ShardEntry("train/a.tar", 3, 23, 9, "ab", "train/index.npy", "cd", "", "")
    counts = {"files": 4, "bytes": 40}
    statistics = {
        "filters": {"licences": {HOSTILE: counts, "MIT": {"files": 2, "bytes": 20}}},
        "splits": {"train": {"rows": 3, "tokens": 23, "fill": 0.96, "tokens_by_language": {HOSTILE: 20, "Go": 3}}},
        "ledger": {"seen": {"git": {"files": 5, "bytes": 50}}, "packed": counts, "dropped": {HOSTILE: {"files": 1, "bytes": 10}}},
    }
    write_manifest(folder, Manifest("0123", "4567", 60, 8, {"train": (entry,)}, statistics))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ReportConfig:
    """A run of every stage, with hostile names wherever a file may hold one."""
    tmp_path = tmp_path_factory.mktemp("whole")
    write_data(tmp_path / "data")
    run, tuned = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "tuned")
    for directory in (run, tuned):
        directory.create()
        directory.config.write_text(f"data:\n  dataset: {tmp_path / 'data'}\nseed: {json.dumps(HOSTILE)}\n")
    for step in (10, 20):
        run.append_metrics(
            {"step": step, "consumed_tokens": 100 * step, "loss/exit_04/mlm": 8.0, "accuracy/exit_04/icc": 0.5}
            | {"validation/loss/exit_04/mlm": 7.5, "optimizer/learning_rate": 1e-3, "optimizer/gradient_norm": 2.0}
        )
        tuned.append_metrics({"step": step, "loss/exit_04/clip": 3.0, "validation/exit_04/mrr": 0.25})
    run.append_skipped({"step": 3, "reason": HOSTILE})
    row = {"mlm": 5.25, "icc_accuracy": 0.625, "icc_interval": [0.55, 0.7]}
    write_json(run.path / "held_out.json", {"exits": {"04": row, "12": row}, "unigram_cross_entropy": 5.0, "rows": 9})
    evaluation = evaluation_of(0.3)
    baselines = {**evaluation.baselines, HOSTILE: evaluation.baselines["TF-IDF"]}
    scored = replace(evaluation, checkpoint=str(tuned.path / "checkpoint"), baselines=baselines)
    write_evaluation(tmp_path / "scores", scored)
    result = benchmark_of(tmp_path)
    models = {HOSTILE.replace("/", ""): result.models["BM25"], **result.models}
    write_result(tmp_path / "benchmark" / "benchmark.json", replace(result, models=models))
    folders = {name: str(tmp_path / name) for name in ("benchmark", "output")}
    return ReportConfig(pretrain=str(run.path), evaluation=str(tmp_path / "scores"), **folders)


@pytest.fixture(scope="module")
def page(config: ReportConfig) -> str:
    report(config)
    return (Path(config.output) / "report.html").read_text("utf-8")


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    return reader


def test_every_stage_is_on_the_page_and_nothing_is_loaded(page: str) -> None:
    reader = read(page)
    words = " ".join(reader.words)
    for title in ("Data", "Pre-training", "Fine-tuning", "Scores of every exit", "Benchmarks"):
        assert title in words
    assert "The sources gave 5 files: 4 were packed, 1 were left out" in words and "Files and bytes balance" in words
    assert "Falls short: exit 04: MLM loss 5.250 is not below the unigram cross-entropy 5.000" in words
    assert "Still better than every exit: " in words and "TF-IDF (0.500)" in words
    assert reader.open == [] and page.count("<svg") >= 8
    assert not re.search(r"""\b(?:src|href)=(?!["']?(?:#|data:))""", page) and "url(http" not in page
    assert len(reader.ids) == len(set(reader.ids))


def test_texts_of_files_are_neither_markup_nor_formulas(page: str) -> None:
    assert not read(page).tags & {"script", "iframe", "object", "img", "link"}
    assert "\x1b" not in page and "<script" not in page
    # In tables, in both kinds of charts, in the config and among the skipped steps.
    assert page.count("&lt;script&gt;") >= 6


def test_the_same_run_gives_the_same_bytes(config: ReportConfig, page: str) -> None:
    report(config)
    assert (Path(config.output) / "report.html").read_text("utf-8") == page


def test_data_that_is_not_there_is_said_and_named_data_must_be_there(tmp_path: Path) -> None:
    section, manifest = data_section(tmp_path, is_given=False)
    assert manifest is None and f"{tmp_path / MANIFEST_NAME}: no such file" in section.lead
    with pytest.raises(MoseError, match=r"manifest\.json: no such file"):
        data_section(tmp_path, is_given=True)


def test_an_unbalanced_ledger_is_said(tmp_path: Path) -> None:
    write_data(tmp_path)
    path = tmp_path / MANIFEST_NAME
    values = json.loads(path.read_text())
    values["statistics"]["ledger"]["packed"]["files"] = 3
    path.write_text(json.dumps(values))
    section, _ = data_section(tmp_path, is_given=True)
    assert "the sides differ, see `mose-data verify`" in "".join(section.parts)


def test_a_browser_shows_the_page(config: ReportConfig, page: str, tmp_path: Path) -> None:
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next((found for name in names if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(names)}")
    address, picture = (Path(config.output) / "report.html").as_uri(), tmp_path / "page.png"
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    subprocess.run([*words, f"--screenshot={picture}", address], check=True, capture_output=True)
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    shown = subprocess.run([*words, "--dump-dom", address], check=True, capture_output=True, text=True).stdout
    assert "Scores of every exit" in shown and "<script" not in shown

"""Covers `mose-finetune search`: answers at two exits, the count of own functions found, escaping, and bad input."""

from pathlib import Path

import numpy as np
import pytest

from finetune.cli import commands
from finetune.embedding.config import SearchConfig
from finetune.embedding.search.command import held_out_questions
from finetune.embedding.search.index import Index
from finetune.embedding.search.page import OWN
from mose.command import run_command
from mose.config import document_fields
from mose.dataset.pairs import Pair, write_pairs
from tests.finetune.conftest import make_pairs


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(*words: object) -> int:
    document_fields()
    return run_command("mose-finetune", "test", commands(), [str(word) for word in words])


def test_held_out_questions_are_answered_at_both_ends(
    retrieval: Path, pairs_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("search", "--checkpoint", retrieval, "--pairs", pairs_file, "--questions", 10, "--max_length", 96) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert lines[0] == "40 functions"
    assert sum(line.strip() == "exit 01" for line in lines) == sum(line.strip() == "exit 04" for line in lines) == 10
    assert "exit 02" not in shown
    # Each question's own function is shown once at each exit, among the first or with its place.
    assert sum(OWN in line for line in lines) == 20
    assert "exit 04: the function asked for came first in" in shown and lines[-1] == "chance: first in 1 of 40"
    assert max(map(len, lines)) <= 140


def test_a_folder_answers_what_is_asked(retrieval: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.py").write_text("def alpha(x):\n    return x\n\n\ndef beta(x):\n    return x\n")
    words = ["--checkpoint", retrieval, "--exits", "[2]", "--top", 1]
    assert run("search", *words, tmp_path, "return it", "and \x1b[31mthis") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("2 functions\n\n1. return it\n   exit 02\n")
    assert "2. and \\x1b[31mthis" in shown and "\x1b" not in shown
    assert "a.py:" in shown and OWN not in shown and "chance" not in shown


def test_nothing_from_a_pairs_file_reaches_the_terminal(
    retrieval: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = "\x1b]0;x\x07\u202e[red]\nline"
    pairs = [Pair(f"{bad} {number}", f"{bad} {number}", "Python", repository=bad, split="held_out") for number in range(3)]
    write_pairs(tmp_path / "pairs.parquet", pairs)
    assert run("search", "--checkpoint", retrieval, "--pairs", tmp_path / "pairs.parquet") == 0
    shown = capsys.readouterr().out
    assert not any(character in shown for character in "\x1b\x07\u202e")
    assert "\\x1b]0;x\\x07\\u202e[red]\\nline 0" in shown


def test_questions_are_of_as_many_repositories_as_there_are() -> None:
    pairs = [Pair(f"text {n}", f"code {n}", "Python", repository="large" if n < 90 else f"small {n}") for n in range(95)]
    functions, questions = held_out_questions(pairs, SearchConfig("c", questions=8))
    chosen = [pairs[question.own or 0].repository for question in questions]
    assert len(functions) == 95
    assert len(set(chosen[:6])) == 6 and len(questions) == 8
    assert held_out_questions(pairs, SearchConfig("c", questions=8))[1] == questions
    assert held_out_questions(pairs, SearchConfig("c", questions=8, seed=1))[1] != questions


def test_equal_codes_are_one_function() -> None:
    pairs = [Pair("a", "same", "Python"), Pair("b", "same", "Python"), Pair("c", "other", "Python")]
    functions, questions = held_out_questions(pairs, SearchConfig("c"))
    assert len(functions) == 2 and sorted(question.own or 0 for question in questions) == [0, 0, 1]


def test_the_nearest_comes_first() -> None:
    index = Index([], {1: np.array([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8]], dtype=np.float32)})
    order, cosines = index.order(1, np.array([1.0, 0.0], dtype=np.float32))
    assert order.tolist() == [1, 2, 0]
    assert cosines.tolist() == pytest.approx([0.0, 1.0, 0.6])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "search: expected a folder and a question, or else --pairs FILE"),
        (["--pairs", "p", "folder", "question"], "search: expected a folder and a question, or else --pairs FILE"),
        (["folder"], "search: no question for folder, expected one or more texts"),
        (["--exits", "[3]", "folder", "question"], "exits: 3: "),
        (["gone", "question"], "gone: no such folder"),
        (["--top", "0", "folder", "question"], "top: 0, expected 1 or more"),
        (["--pairs", "gone.parquet"], "gone.parquet: "),
    ],
)
def test_bad_input_is_one_line(retrieval: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("search", "--checkpoint", retrieval, *words) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_made_pairs_are_used_as_they_are() -> None:
    functions, _ = held_out_questions(make_pairs(20), SearchConfig("c"))
    assert functions[0].name == "read_file"

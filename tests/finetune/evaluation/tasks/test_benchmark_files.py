"""The readers of benchmark files: what they make of good files, and one clear line for each fault."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.evaluation.tasks.parts.judges import ClonePairs, JudgedDocuments, OwnDocument, SameLabel
from finetune.evaluation.tasks.parts.problem import Options, Part
from finetune.evaluation.tasks.registry import BENCHMARKS, benchmark_named
from mose.errors import MoseError

Rows = list[dict[str, Any]]


def json_file(path: Path, rows: Rows) -> Path:
    path.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in rows).encode()))
    return path


def lines_file(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def read(task: str, *paths: Path, **options: Any) -> list[Part]:
    return benchmark_named(task).read(paths, Options(**options))


def search_function(number: int, language: str = "python", partition: str = "test") -> dict[str, Any]:
    row = {"repo": f"r{number % 3}", "path": "a", "language": language, "partition": partition}
    return row | {"docstring": f"Does {number}.\n\nMore.", "code": f"f{number}()"}


def translation(number: int) -> dict[str, Any]:
    return {"id": f"valid-{number}", "java": f"j{number}", "cs": f"c{number}"}


def program(number: int) -> dict[str, Any]:
    return {"label": str(number % 2), "index": str(number), "code": f"p{number}"}


class CoSqa:
    """Three files of a tiny judged corpus, with the rows to change before they are written."""

    def __init__(self) -> None:
        self.corpus: Rows = [{"_id": f"d{i}", "title": "", "text": f"t{i}", "language": "python"} for i in range(3)]
        self.queries: Rows = [{"_id": f"q{i}", "text": f"question {i}", "split": "dev"} for i in range(3)]
        self.qrels = ["query-id\tcorpus-id\tscore\tsplit", "q2\td1\t1\tdev", "q0\td0\t2\tdev", "q0\td2\t0\tdev"]

    def write(self, folder: Path) -> tuple[Path, Path, Path]:
        corpus, queries = json_file(folder / "c.jsonl.gz", self.corpus), json_file(folder / "q.jsonl.gz", self.queries)
        return corpus, queries, lines_file(folder / "qrels.tsv", self.qrels)


class Clones:
    """Functions, pairs that choose the threshold, and pairs to score."""

    def __init__(self) -> None:
        self.functions: Rows = [{"idx": str(i), "func": f"f{i}"} for i in range(5)]
        self.tuning, self.scored = ["0\t1\t1", "1\t2\t0"], ["4\t1\t0", "1\t0\t1"]

    def write(self, folder: Path) -> tuple[Path, Path, Path]:
        functions = json_file(folder / "f.jsonl.gz", self.functions)
        return functions, lines_file(folder / "tune.txt", self.tuning), lines_file(folder / "score.txt", self.scored)


def test_codesearchnet_has_a_part_per_language_and_copies_are_one_document(tmp_path: Path) -> None:
    rows = [search_function(i, "python" if i < 5 else "go") for i in range(9)] + [search_function(4)]
    java, python = read("codesearchnet", json_file(tmp_path / "a.jsonl.gz", rows), distractors=3)
    assert (java.name, python.name) == ("go", "python")
    assert python.facts == {"queries": 6, "documents": 5, "candidates": 4} and not python.note
    assert python.query_prompts()[0].text == "Does 0." and len(python.groups) == 6
    assert isinstance(python.judge, OwnDocument) and python.judge.candidates.own_Q.tolist() == [0, 1, 2, 3, 4, 4]


def test_fewer_documents_than_distractors_are_said(tmp_path: Path) -> None:
    (part,) = read("codesearchnet", json_file(tmp_path / "a.jsonl.gz", [search_function(i) for i in range(9)]))
    assert part.note == "fewer than 999 other documents: each query is ranked among all 9"


def test_code_translation_embeds_each_language_once_for_both_directions(tmp_path: Path) -> None:
    rows = [translation(i) for i in range(5)]
    rows[3]["cs"] = rows[1]["cs"]
    there, back = read("code_translation", json_file(tmp_path / "t.jsonl.gz", rows))
    assert there.queries == back.documents and there.documents == back.queries
    assert isinstance(there.judge, OwnDocument) and there.judge.candidates.own_Q.tolist() == [0, 1, 2, 1, 3]
    assert [prompt.text for prompt in back.query_prompts()] == ["c0", "c1", "c2", "c1", "c4"]


def test_poj_asks_with_every_program_or_with_drawn_ones(tmp_path: Path) -> None:
    path = json_file(tmp_path / "p.jsonl.gz", [program(i) for i in range(6)])
    (part,) = read("poj104", path)
    assert isinstance(part.judge, SameLabel) and part.judge.labels_K.tolist() == [0, 1, 0, 1, 0, 1]
    (drawn,) = read("poj104", path, max_queries=2, seed=1)
    assert drawn.query_places is not None and len(drawn.query_places) == 2 == len(drawn.groups)
    assert drawn.documents == part.documents


def test_judged_search_keeps_grades_and_asks_judged_queries_only(tmp_path: Path) -> None:
    (part,) = read("judged_search:CoSQA", *CoSqa().write(tmp_path))
    assert [prompt.text for prompt in part.query_prompts()] == ["question 2", "question 0"]
    assert isinstance(part.judge, JudgedDocuments)
    assert [places.tolist() for places in part.judge.relevant] == [[1], [0, 2]]
    assert [grades.tolist() for grades in part.judge.grades] == [[1], [2, 0]]


def test_clones_embed_only_functions_of_pairs_and_count_a_repeated_pair_once(tmp_path: Path) -> None:
    clones = Clones()
    clones.scored.append(clones.scored[0])
    (part,) = read("bigclonebench", *clones.write(tmp_path))
    assert [prompt.text for prompt in part.documents.prompts] == ["f0", "f1", "f2", "f4"]
    assert isinstance(part.judge, ClonePairs) and part.judge.scored.labels_P.tolist() == [0, 1]
    assert np.array_equal(part.judge.scored.first_P, [3, 1])


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([search_function(i, partition="train") for i in range(3)], "partition: no line of split 'held_out', expected at least"),
        ([search_function(0)], "pairs: 1 distinct codes in this split, expected at least 2 to rank among"),
        ([search_function(0) | {"docstring": " "}], "line 1: docstring: empty, expected text"),
    ],
)
def test_faults_of_codesearchnet(rows: Rows, line: str, tmp_path: Path) -> None:
    with pytest.raises(MoseError, match=line):
        read("codesearchnet", json_file(tmp_path / "a.jsonl.gz", rows))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"id": "train-1"},
            r"line 2: id: split 'train', expected held_out or .* \(split: held_out\)",
        ),
        ({"id": "valid-0"}, "line 2: id: 'valid-0' occurs twice, expected ids that differ"),
        ({"id": ""}, "line 2: id: empty, expected text"),
        ({"cs": None}, "line 2: cs: 'None', expected text"),
    ],
)
def test_faults_of_code_translation(change: dict[str, Any], line: str, tmp_path: Path) -> None:
    rows = [translation(0), translation(1) | change]
    with pytest.raises(MoseError, match=line):
        read("code_translation", json_file(tmp_path / "t.jsonl.gz", rows))


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([program(0), program(2), program(0)], "line 3: index: '0' occurs twice"),
        ([program(0), program(1), program(2)], "label: '1' has one program only, expected two programs or more of each label"),
        ([program(0), program(2) | {"code": "\n"}], "line 2: code: empty, expected text"),
    ],
)
def test_faults_of_poj(rows: Rows, line: str, tmp_path: Path) -> None:
    with pytest.raises(MoseError, match=line):
        read("poj104", json_file(tmp_path / "p.jsonl.gz", rows))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda files: files.corpus.append(files.corpus[0]), r"c.jsonl.gz: line 4: _id: 'd0' occurs twice"),
        (lambda files: files.queries.append(files.queries[2]), r"q.jsonl.gz: line 4: _id: 'q2' occurs twice"),
        (lambda files: files.queries[0].update(_id=""), r"q.jsonl.gz: line 1: _id: empty, expected text"),
        (lambda files: files.qrels.append("q1\td9\t1\tdev"), r"qrels.tsv: line 5: corpus-id: 'd9' is not in .*c.jsonl.gz"),
        (lambda files: files.qrels.append("q7\td0\t1\tdev"), r"qrels.tsv: line 5: query-id: 'q7' is not in .*q.jsonl.gz"),
        (lambda files: files.qrels.append("q1\td0\t1\ttrain"), r"qrels.tsv: line 5: split: split 'train', expected held_out"),
        (lambda files: files.queries[2].update(split="train"), r"query q2: split: split 'train', expected held_out"),
        (lambda files: files.qrels.append("q1\td0\tnan\tdev"), r"line 5: score: 'nan', expected a whole number from 0"),
        (lambda files: files.qrels.append("q0\td0\t1\tdev"), r"line 5: 'd0' is judged twice for 'q0'"),
        (lambda files: files.qrels.append("q0\td0"), r"line 5: 2 cells, expected the 4 of the header"),
        (lambda files: files.qrels.pop(0), r"line 1: 'q2.*', expected the tab-separated header query-id corpus-id score"),
        (lambda files: files.qrels.__delitem__(slice(1, None)), r"qrels.tsv: no judgment, expected at least one"),
        (lambda files: files.corpus.__delitem__(slice(1, None)), r"c.jsonl.gz: 1 documents, expected 2 or more to rank"),
    ],
)
def test_faults_of_judged_search(change: Any, line: str, tmp_path: Path) -> None:
    files = CoSqa()
    change(files)
    with pytest.raises(MoseError, match=line):
        read("judged_search", *files.write(tmp_path))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda clones: clones.functions.append(clones.functions[1]), r"f.jsonl.gz: line 6: idx: '1' occurs twice"),
        (lambda clones: clones.scored.append("1 9 0"), r"score.txt: line 3: function 9 is not in .*f.jsonl.gz"),
        (
            lambda clones: clones.scored.append("0 1 1"),
            r"score.txt: pair 0 1 is also in .*tune.txt, expected pairs that",
        ),
        (lambda clones: clones.scored.append("4 1 1"), r"line 3: pair 4 1 occurs with label 0 and label 1, expected one label"),
        (lambda clones: clones.scored.append("4 1 2"), r"line 3: '4 1 2', expected `idx1 idx2 label` with label 0 or 1"),
        (lambda clones: clones.tuning.clear(), r"tune.txt: no pair, expected at least one"),
    ],
)
def test_faults_of_clones(change: Any, line: str, tmp_path: Path) -> None:
    clones = Clones()
    change(clones)
    with pytest.raises(MoseError, match=line):
        read("bigclonebench", *clones.write(tmp_path))


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "codesearchnet"])
def test_another_number_of_files_is_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(MoseError, match=f"tasks: {name}: 4 files, expected "):
        read(name, *[tmp_path / "a"] * 4)


def test_an_unknown_benchmark_is_one_line_that_lists_the_others() -> None:
    with pytest.raises(MoseError, match="tasks: 'sonnets', expected one of codesearchnet"):
        benchmark_named("sonnets")

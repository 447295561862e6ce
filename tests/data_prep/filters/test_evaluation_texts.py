"""Evaluation files of each kind, and what is said of those that are not what their name says."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

from data_prep.filters.evaluation_texts import read_examples, strings_of
from mose.errors import MoseError

EXAMPLES: list[dict[str, Any]] = [
    {"task": "a/1", "prompt": "def f():", "tests": ["assert f()", {"more": "assert not f()"}], "level": 3},
    {"task": "a/2", "prompt": None, "tests": [], "level": None},
]
TEXTS = [["a/1", "def f():", "assert f()", "assert not f()"], ["a/2"]]


def write(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return str(folder / name)


def lines(examples: list[dict[str, Any]]) -> bytes:
    return "\n\n".join(map(json.dumps, examples)).encode()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_every_string_of_json_lines_and_of_json(tmp_path: Path, suffix: str) -> None:
    assert list(read_examples(write(tmp_path, f"a.jsonl{suffix}", lines(EXAMPLES)))) == TEXTS
    assert list(read_examples(write(tmp_path, f"a.json{suffix}", json.dumps(EXAMPLES).encode()))) == TEXTS
    assert list(read_examples(write(tmp_path, f"b.json{suffix}", json.dumps(EXAMPLES[0]).encode()))) == TEXTS[:1]


def test_strings_and_lists_of_parquet_columns(tmp_path: Path) -> None:
    table = {"prompt": ["def f():", None], "tests": [["assert f()"], []], "level": [1, 2]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    assert list(read_examples(str(tmp_path / "a.parquet"))) == [["def f():", "assert f()"], []]
    assert list(read_examples(str(tmp_path / "a.parquet"), ("tests",))) == [["assert f()"], []]


def test_anything_else_is_one_text(tmp_path: Path) -> None:
    for name in ("questions.txt", "a.py", "a.tsv.gz"):
        assert list(read_examples(write(tmp_path, name, "naïve\ncode\n".encode()))) == [["naïve\ncode\n"]]


def test_only_the_named_fields(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", lines(EXAMPLES))
    assert list(read_examples(path, ("tests", "prompt"))) == [["assert f()", "assert not f()", "def f():"], []]
    assert list(read_examples(path, ("prompt", "question"))) == [["def f():"], []]
    with pytest.raises(
        MoseError, match="a.jsonl: fields: no example has any of question, code; expected .*: level, prompt, task, t"
    ):
        list(read_examples(path, ("question", "code")))


def test_a_file_may_lie_behind_a_url() -> None:
    UPath("memory://evaluation/a.jsonl.gz").write_bytes(gzip.compress(lines(EXAMPLES)))
    assert list(read_examples("memory://evaluation/a.jsonl.gz")) == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", b'{"a": "b"}\n{"a": \n', "a.jsonl: line 2: not JSON"),
        ("a.jsonl", b'{"a": "\xe9"}\n', "a.jsonl: line 1: not JSON"),
        ("a.json", b"[1, 2", "a.json: not JSON"),
        ("a.parquet", b"PAR1 and no more", "a.parquet: cannot be read"),
        ("a.txt", b"caf\xe9", "a.txt: byte 3 is not UTF-8"),
    ],
)
def test_a_file_that_is_not_what_its_name_says(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    with pytest.raises(MoseError, match=f"{told}.*; expected ") as error:
        list(read_examples(write(tmp_path, name, content)))
    assert "\n" not in str(error.value)


def test_broken_gzip_and_absent_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(EXAMPLES))[:-12])
    (tmp_path / "b.txt.gz").write_bytes(b"not gzip")
    for name in ("a.jsonl.gz", "b.txt.gz", "absent.jsonl"):
        with pytest.raises(MoseError, match=f"{name}: cannot be read: .*; expected .jsonl"):
            list(read_examples(str(tmp_path / name)))


def test_numbers_and_names_of_fields_are_no_texts() -> None:
    assert list(strings_of({"name": [1, 2.5, None, True, {"deep": ["text"]}]})) == ["text"]

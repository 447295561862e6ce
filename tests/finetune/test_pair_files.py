"""Covers the readers of pairs: CodeSearchNet's JSON lines as they are on disk, and one line for each bad file."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from finetune.pair_files import read_pair_files
from mose.errors import MoseError

ROW = {
    "docstring": "Adds a number\nof hours.\n\n@param date The date.",
    "code": "Date addHours(Date date) { return date; }",
    "language": "java",
    "repo": "owner/name",
    "path": "a/B.java",
    "partition": "test",
}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_line_becomes_a_pair_of_its_split(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, ROW, {**ROW, "partition": "train"}, {**ROW, "partition": "valid"})
    (first, second), (third,) = read_pair_files([path], "held_out"), read_pair_files([path], "train")
    assert first == second
    assert (first.nl, first.code_a, first.lang_a) == ("Adds a number of hours.", ROW["code"], "java")
    assert (first.repository, first.path, third.split) == ("owner/name", "a/B.java", "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code": None}, r"a.jsonl: line 2: code: None, expected text"),
        ({"code": " "}, r"a.jsonl: line 2: code: empty, expected text"),
        ({"docstring": "\n"}, r"a.jsonl: line 2: docstring: empty"),
        ({"repo": 3}, r"a.jsonl: line 2: repo: 3, expected text"),
    ],
)
def test_a_bad_field_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(MoseError, match=message):
        read_pair_files([write(tmp_path / "a.jsonl", ROW, {**ROW, **change})], "held_out")


def test_a_bad_file_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROW)
    with pytest.raises(MoseError, match=r"a.jsonl: partition: no line of split 'train'"):
        read_pair_files([path], "train")
    path.write_text("[1]\n")
    with pytest.raises(MoseError, match=r"a.jsonl: line 1: not a JSON object, expected one with docstring"):
        read_pair_files([path], "held_out")
    path.write_text("{\n")
    with pytest.raises(MoseError, match=r"a.jsonl: line 1: not JSON"):
        read_pair_files([path], "held_out")
    for name, content in (("cut.jsonl.gz", gzip.compress(b"x" * 1000)[:20]), ("plain.jsonl.gz", b"{}")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MoseError, match=f"{name}: not a readable file of JSON lines"):
            read_pair_files([tmp_path / name], "held_out")
    with pytest.raises(MoseError, match=r"gone.jsonl: not a readable file"):
        read_pair_files([tmp_path / "gone.jsonl"], "held_out")

"""`mose-finetune embed`: each format, killed and resumed, several processes, and outputs of something else."""

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.cli import commands
from finetune.embedding.encoder import Encoder
from mose.checkpoint.converted_checkpoint import load_pretrained, retrieval_from_pretrained, write_checkpoint
from mose.command import run_command
from mose.config import document_fields
from tests.finetune.conftest import make_pairs

ROWS = [{"id": f"f{number}", "text": pair.code_a, "lang": "Python"} for number, pair in enumerate(make_pairs(23))]


def run(*words: object) -> int:
    document_fields()
    return run_command("mose-finetune", "test", commands(), ["embed", *(str(word) for word in words)])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same texts as JSON lines, compressed, as parquet and as files."""
    folder = tmp_path_factory.mktemp("texts")
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "texts.jsonl").write_text(lines)
    (folder / "texts.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "texts.parquet")
    (folder / "files" / "inner").mkdir(parents=True)
    for number, row in enumerate(ROWS):
        (folder / "files" / "inner" / f"{number:02d}.py").write_text(row["text"])
    (folder / "files" / "a.bin").write_bytes(b"\xff\xfe\x00")
    return folder


@pytest.fixture
def words(retrieval: Path, source: Path, tmp_path: Path) -> list[object]:
    """The command without its output."""
    return ["--checkpoint", retrieval, "--input", source / "texts.jsonl", "--part_rows", 5, "--language", "Python"]


@pytest.fixture
def expected(retrieval: Path) -> dict[int, np.ndarray]:
    return Encoder.from_pretrained(retrieval, exit=[1, 4]).encode_exits([row["text"] for row in ROWS], language="Python")


def test_every_format_gives_the_same_vectors(
    retrieval: Path, source: Path, words: list[object], tmp_path: Path, expected: dict[int, np.ndarray]
) -> None:
    assert run(*words, "--output", tmp_path / "one.npy") == 0
    one = np.load(tmp_path / "one.npy")
    assert one.dtype == np.float32 and np.abs(one - expected[4]).max() < 2e-6
    assert json.loads((tmp_path / "one.npy.json").read_text())["rows"] == 23
    assert not (tmp_path / "one.npy.parts").exists()
    for name in ("texts.jsonl.gz", "texts.parquet", "files"):
        more = ["--input", source / name, "--output", tmp_path / name / "out.npy"]
        assert run(*words, *more) == 0
        assert (tmp_path / name / "out.npy").read_bytes() == (tmp_path / "one.npy").read_bytes()
    ids = [json.loads(line) for line in (tmp_path / "files" / "out.ids.jsonl").read_text().splitlines()]
    assert ids[:2] == ["inner/00.py", "inner/01.py"] and len(ids) == 23
    more = ["--exits", "[1,4]", "--id_column", "id", "--language_column", "lang"]
    assert run(*words, *more, "--output", tmp_path / "two.npy") == 0
    assert run(*words, *more, "--output", tmp_path / "two.parquet") == 0
    assert (tmp_path / "two.exit_04.npy").read_bytes() == (tmp_path / "one.npy").read_bytes()
    table = pq.read_table(tmp_path / "two.parquet")
    assert table.column_names == ["id", "exit_01", "exit_04"] and table["id"].to_pylist() == [row["id"] for row in ROWS]
    assert np.abs(np.array(table["exit_01"].to_pylist(), dtype=np.float32) - expected[1]).max() < 2e-6


def test_killed_and_resumed_is_byte_equal(words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(*words, "--output", tmp_path / "whole.npy") == 0
    encode, calls = Encoder.encode_prompts, list[int]()

    def killed(self: Encoder, prompts: list[object]) -> dict[int, np.ndarray]:
        calls.append(len(prompts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, prompts)

    monkeypatch.setattr(Encoder, "encode_prompts", killed)
    assert run(*words, "--output", tmp_path / "out.npy") == 130
    assert not (tmp_path / "out.npy").exists()
    # One part is damaged in the meantime, as by a disk: it is made anew.
    part = tmp_path / "out.npy.parts" / "part-000001.npy"
    part.write_bytes(part.read_bytes()[:-4])
    assert run(*words, "--output", tmp_path / "out.npy") == 0
    assert calls == [5, 5, 5, 5, 5, 5, 3]
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert run(*words, "--output", tmp_path / "out.npy") == 0 and len(calls) == 7


@pytest.mark.soak
def test_several_processes_give_the_same_bytes(words: list[object], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(*words, "--output", tmp_path / "one.npy") == 0
    assert run(*words, "--workers", 2, "--output", tmp_path / "two.npy") == 0
    assert (tmp_path / "two.npy").read_bytes() == (tmp_path / "one.npy").read_bytes()


def test_outputs_of_something_else_are_refused(
    words: list[object],
    checkpoint: Path,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "other"
    write_checkpoint(other, retrieval_from_pretrained(load_pretrained(checkpoint), 7), checkpoint, {})
    (tmp_path / "short.jsonl").write_text('{"text": "x"}\n')
    finished, begun = tmp_path / "done.npy", tmp_path / "begun.npy"
    assert run(*words, "--output", finished) == 0
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode_prompts", interrupted)
        assert run(*words, "--output", begun) == 130
    before = finished.read_bytes()
    for output in (finished, begun):
        for more, message in (
            (["--checkpoint", other], "begun with another model ("),
            (["--input", tmp_path / "short.jsonl"], "begun with another input ("),
            (["--exits", "[1]"], "begun with another exits ([4]), expected [1]"),
            (["--kind", "query"], "begun with another kind (code), expected query"),
        ):
            capsys.readouterr()
            assert run(*words, "--output", output, *more) == 2
            error = capsys.readouterr().err
            assert f"{output}: {message}" in error and len(error.splitlines()) == 1
    assert finished.read_bytes() == before
    np.save(tmp_path / "foreign.npy", np.zeros(3))
    assert run(*words, "--output", tmp_path / "foreign.npy") == 2
    assert "foreign.npy: exists, and foreign.npy.json does not say what it holds" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "begun.npy.parts")


def interrupted(self: Encoder, prompts: list[object]) -> dict[int, np.ndarray]:
    raise KeyboardInterrupt


def bad_inputs(folder: Path) -> Iterator[tuple[str, list[object], str]]:
    """Content of an input, options, and what is said of it."""
    yield "", [], "holds no text, expected one or more"
    yield '{"body": "x"}\n', [], "line 1: text: 'None', expected text"
    yield '{"text": ["x"]}\n', [], "line 1: text: \"['x']\", expected text"
    yield '{"text": "x"}\nnothing\n', [], "line 2: not JSON: "
    yield '{"text": "x", "id": "a"}\n{"text": "y", "id": "a"}\n', ["--id_column", "id"], "id: the id 'a' of row 1 occurs twice"
    yield '{"text": "x", "id": ""}\n', ["--id_column", "id"], "id: the id '' of row 0 is empty"


def test_bad_input_is_one_line(words: list[object], source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = []
    for number, (content, options, message) in enumerate(bad_inputs(tmp_path)):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(content)
        cases.append((["--input", path, *options], message))
    (tmp_path / "cut.parquet").write_bytes((source / "texts.parquet").read_bytes()[:200])
    (tmp_path / "empty").mkdir()
    cases += [
        (["--input", tmp_path / "cut.parquet"], "cut.parquet: not a readable parquet file"),
        (["--input", source / "texts.parquet", "--text_column", "body"], "column body is missing, expected it beside: id, text"),
        (["--input", tmp_path / "gone.jsonl"], "gone.jsonl: not a readable file of JSON lines"),
        (["--input", tmp_path / "empty"], "empty: holds no text"),
        (["--exits", "[3]"], "exits: 3: "),
        (["--kind", "word"], "kind: 'word', expected one of query, code"),
        (["--output", "out.txt"], "output: 'out.txt', expected a name that ends in .npy or .parquet"),
        (["--workers", 0], "workers: 0, expected 1 or more"),
    ]
    for more, message in cases:
        assert run(*words, "--output", tmp_path / "out.npy", *more) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1, (more, error)
    assert not (tmp_path / "out.npy").exists()

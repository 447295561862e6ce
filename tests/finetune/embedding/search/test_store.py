"""The index file: brought up to date by content, killed in the middle, damaged, and of another model, exit or folder."""

import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from finetune.cli import commands
from finetune.embedding.config import SearchConfig
from finetune.embedding.encoder import Encoder
from finetune.embedding.search.functions import functions_of_folder
from finetune.embedding.search.index import Index, bring_up_to_date, open_encoder, open_store
from mose.checkpoint.converted_checkpoint import load_pretrained, retrieval_from_pretrained, write_checkpoint
from mose.command import run_command
from mose.config import document_fields
from mose.errors import MoseError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files; the third repeats a function of the first."""
    (tmp_path / "source").mkdir()
    for name, functions in (("a", "read write"), ("b", "parse"), ("c", "read")):
        text = "".join(f"def {function}(x):\n    return {function}.all(x)\n\n\n" for function in functions.split())
        (tmp_path / "source" / f"{name}.py").write_text(text)
    return tmp_path / "source"


@pytest.fixture
def config(retrieval: Path, tmp_path: Path) -> SearchConfig:
    return SearchConfig(str(retrieval), index=str(tmp_path / "index.sqlite"), exits=(1, 4))


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many codes each pass embeds."""
    seen: list[int] = []
    encode = Encoder.encode_prompts

    def counted(self: Encoder, prompts: list[object]) -> dict[int, np.ndarray]:
        seen.append(len(prompts))
        return encode(self, prompts)

    monkeypatch.setattr(Encoder, "encode_prompts", counted)
    return seen


def names_of(config: SearchConfig, folder: Path) -> list[str]:
    encoder = open_encoder(config)
    with open_store(config, folder, encoder) as store:
        return [function.place for function in bring_up_to_date(store, folder, encoder).functions]


def test_only_new_code_is_embedded(config: SearchConfig, folder: Path, embedded: list[int]) -> None:
    assert names_of(config, folder) == ["a.py:1", "a.py:5", "b.py:1", "c.py:1"]
    assert embedded == [3]
    assert names_of(config, folder) == ["a.py:1", "a.py:5", "b.py:1", "c.py:1"] and embedded == [3]
    # A move down the file embeds nothing; a new function is one text; a removed file takes its functions along.
    (folder / "b.py").write_text("import os\n\n" + (folder / "b.py").read_text() + "def merge(x):\n    return 1\n")
    (folder / "a.py").unlink()
    assert names_of(config, folder) == ["b.py:3", "b.py:7", "c.py:1"]
    assert embedded == [3, 1]
    with sqlite3.connect(str(config.index)) as database:
        assert database.execute("select count(*) from vectors_01").fetchone() == (3,)
        assert database.execute("select count(*) from codes").fetchone() == (3,)


def test_an_index_that_grew_answers_as_a_new_one(config: SearchConfig, folder: Path, tmp_path: Path) -> None:
    names_of(config, folder)
    (folder / "b.py").write_text("def count(x):\n    return 2\n")
    # The newest code belongs to the first function: codes and functions are in different orders.
    (folder / "0.py").write_text("def zero(x):\n    return 0\n")
    encoder = open_encoder(config)
    question = encoder.encode_exits(["count"], kind="query")
    found = []
    for path in (str(config.index), str(tmp_path / "new.sqlite")):
        with open_store(SearchConfig(config.checkpoint, index=path, exits=(1, 4)), folder, encoder) as store:
            index = bring_up_to_date(store, folder, encoder)
            found.append([(index.functions[hit.function].place, hit.score) for hit in index.nearest(4, question[4][0], 9)])
    plain = Index.build(encoder, functions_of_folder(folder))
    found.append([(plain.functions[hit.function].place, hit.score) for hit in plain.nearest(4, question[4][0], 9)])
    assert [place for place, _ in found[0]] == [place for place, _ in found[1]]
    # In memory equal codes are two rows, which may differ in their last bits and so change places.
    for others in found[1:]:
        assert dict(found[0]) == pytest.approx(dict(others), abs=1e-6)


def test_a_search_that_is_killed_goes_on_where_it_was(
    config: SearchConfig, folder: Path, embedded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.embedding.search.index._CODES_AT_ONCE", 1)
    encode = Encoder.encode_prompts

    def killed(self: Encoder, prompts: list[object]) -> dict[int, np.ndarray]:
        if len(embedded) == 2:
            raise KeyboardInterrupt
        return encode(self, prompts)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode_prompts", killed)
        with pytest.raises(KeyboardInterrupt):
            names_of(config, folder)
    assert names_of(config, folder) == ["a.py:1", "a.py:5", "b.py:1", "c.py:1"]
    assert embedded == [1, 1, 1]


def test_a_cascade_embeds_deep_vectors_for_candidates_only(config: SearchConfig, folder: Path, embedded: list[int]) -> None:
    config = SearchConfig(config.checkpoint, index=config.index, exits=(1, 4), cascade=2)
    for _ in range(2):
        encoder = open_encoder(config)
        with open_store(config, folder, encoder) as store:
            index = bring_up_to_date(store, folder, encoder)
            tables = encoder.encode_exits(["read"], kind="query")
            hits = index.cascade(tables, 0, candidates=2, top=5)
        assert [hit.function for hit in sorted(hits, key=lambda hit: hit.function)] == sorted(
            hit.function for hit in index.nearest(1, tables[1][0], 2)
        )
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    # Three codes at exit 1, the question, the candidates (two functions of one code, or of two); then nothing but the question.
    assert embedded[0] == 3 and embedded[1] == 1 and embedded[2] in (1, 2) and embedded[3:] == [1]


def run(config: SearchConfig, folder: Path, *words: str) -> int:
    document_fields()
    line = ["search", "--checkpoint", config.checkpoint, "--index", str(config.index), "--exits", "[1,4]", *words]
    return run_command("mose-finetune", "test", commands(), [*line, str(folder), "question"])


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    if kind == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "text":
        path.write_text("this is no database, however long it may be\n" * 100)
    elif kind == "vector":
        with sqlite3.connect(path) as database:
            database.execute("update vectors_01 set vector = zeroblob(128) where code = 1")
    elif kind == "short":
        with sqlite3.connect(path) as database:
            database.execute("update vectors_04 set vector = x'00' where code = 1")
    elif kind == "other":
        path.unlink()
        with sqlite3.connect(path) as database:
            database.execute("create table things (name text)")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut", "damaged index (database disk image is malformed); remove it, the next search makes it anew"),
        ("text", "damaged index (file is not a database); remove it"),
        ("vector", "damaged index (a vector at exit 1 is not normalised); remove it"),
        ("short", "damaged index (a vector at exit 4 has not 128 bytes); remove it"),
        ("other", "a database of something else, expected an index of `mose-finetune search`"),
    ],
)
def test_a_damaged_index_is_one_line(
    config: SearchConfig, folder: Path, kind: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names_of(config, folder)
    damage(Path(str(config.index)), kind)
    assert run(config, folder) == 2
    error = capsys.readouterr().err
    assert f"{config.index}: {message}" in error and len(error.splitlines()) == 1


def test_an_index_of_something_else_is_refused(
    config: SearchConfig, folder: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    write_checkpoint(other, retrieval_from_pretrained(load_pretrained(checkpoint), 7), checkpoint, {})
    names_of(config, folder)
    before = Path(str(config.index)).read_bytes()
    shutil.copytree(folder, tmp_path / "copy")
    for words, place, message in (
        (["--checkpoint", str(other)], folder, "index of another model ("),
        (["--exits", "[2,4]"], folder, "index of another exits ([1, 4]), expected [2, 4]"),
        (["--cascade", "5"], folder, "index of another exits ([1, 4]), expected [1]"),
        (["--max_length", "50"], folder, "index of another max_length (128), expected 50"),
        ([], tmp_path / "copy", "index of another folder ("),
    ):
        assert run(config, place, *words) == 2
        error = capsys.readouterr().err
        assert message in error and "name another file with --index, or remove this one" in error and len(error.splitlines()) == 1
    assert Path(str(config.index)).read_bytes() == before


def test_answers_as_json(config: SearchConfig, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(config, folder, "--json", "true", "--top", "2") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["functions"] == 4 and found["index"] == config.index
    assert [answer["by"] for answer in found["answers"]] == ["exit 01", "exit 04"]
    (first, _), question = found["answers"][0]["functions"], found["answers"][0]["question"]
    assert question == "question" and first["path"].endswith(".py") and first["signature"].startswith("def ")
    assert run(config, folder, "--json", "true", "--cascade", "2", "--index", f"{config.index}2") == 0
    assert json.loads(capsys.readouterr().out)["answers"][0]["by"] == "exit 01 recalls 2, exit 04 orders them"


def test_a_cascade_needs_two_exits(config: SearchConfig, folder: Path) -> None:
    with pytest.raises(MoseError, match=r"cascade: exits \[2\], expected two"):
        from finetune.embedding.search.command import search

        search(SearchConfig(config.checkpoint, exits=(2,), cascade=3), str(folder), ["question"])

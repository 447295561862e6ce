"""Encodings, line ends, notebooks and LFS pointers: what becomes text, and what is left as it is."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.filters.config import FiltersConfig
from data_prep.filters.filters import FilterCounts, filter_repository
from data_prep.sources.detection.encoding import encoding_of, with_line_feeds, without_outputs
from data_prep.sources.file_kinds import LFS_POINTER
from data_prep.sources.registry import SourcesConfig, list_repositories, read_repository

CHINESE = "# 这个函数计算两个数字的总和并返回结果。注意参数必须是整数。\ndef f():\n    return 1\n"
JAPANESE = "# この関数は二つの数値の合計を計算して結果を返します。\ndef f():\n    return 'テスト'\n"
FRENCH = "# Cette méthode vérifie que la clé a été créée à l'avance, sinon elle échoue.\nx = 1\n"
RUSSIAN = "# Эта функция вычисляет сумму двух чисел и возвращает результат.\nx = 1\n"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        *((text, name) for text in (CHINESE, FRENCH) for name in ("utf-8", "utf-16", "utf-16-le", "utf-32")),
        (CHINESE, "gb18030"),
        (JAPANESE, "cp932"),
        (FRENCH, "latin-1"),
        (RUSSIAN, "cp1251"),
        ("plain\n", "ascii"),
    ],
)
def test_a_text_is_decoded_as_it_was_written(text: str, encoding: str) -> None:
    content = text.encode(encoding)
    assert content.decode(encoding_of(content)) == text


@pytest.mark.parametrize(
    "content", [b"", b"\0\1\2\3" * 100, bytes(range(256)) * 8, b"\x89PNG\r\n\x1a\n" + b"\0" * 50 + b"\xff" * 9]
)
def test_what_is_no_text_keeps_its_bytes(content: bytes) -> None:
    assert encoding_of(content) == "UTF-8"


def test_line_ends() -> None:
    assert with_line_feeds(b"a\rb\r", "UTF-8") == b"a\nb\n"
    assert with_line_feeds(b"a\r\nb\r", "UTF-8") == b"a\r\nb\r"


def test_notebooks_lose_their_outputs_only() -> None:
    cell = {"cell_type": "code", "source": ["x = 'é'"], "outputs": [{"data": "A" * 9999}], "execution_count": 3}
    cleaned = json.loads(without_outputs(json.dumps({"cells": [cell], "nbformat": 4}).encode()))
    assert cleaned == {"cells": [{**cell, "outputs": [], "execution_count": None}], "nbformat": 4}
    old = {"worksheets": [{"cells": [{"input": "x", "outputs": ["y"], "prompt_number": 2}]}]}
    assert json.loads(without_outputs(json.dumps(old).encode()))["worksheets"][0]["cells"][0]["outputs"] == []
    for broken in (b"{", b"[]", b'{"cells": 3}', b'{"cells": [1]}', b"[" * 100_000):
        assert without_outputs(broken) == broken


def files_of(folder: Path, **changes: Any) -> Any:
    config = SourcesConfig(repositories=(str(folder),), **changes)
    return read_repository(list_repositories(config)[0], config)


def test_a_folder_gives_decoded_texts_and_names_what_it_drops(tmp_path: Path) -> None:
    (tmp_path / "wide.py").write_bytes(FRENCH.encode("utf-16"))
    (tmp_path / "old.py").write_bytes(b"x = 1\ry = 2\r")
    (tmp_path / "large.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    (tmp_path / "uv.lock").write_bytes(b"version = 1\n")
    (tmp_path / "a.h").write_bytes(b"#include <vector>\nclass A {};\n")
    counts = FilterCounts()
    texts = {text.source.path: text for text in filter_repository(files_of(tmp_path), FiltersConfig(), counts)}
    assert {path: text.text for path, text in texts.items()} == {
        "/a.h": "#include <vector>\nclass A {};\n",
        "/old.py": "x = 1\ny = 2\n",
        "/wide.py": FRENCH,
    }
    assert texts["/a.h"].source.language == "C++"
    assert {name: tally.files for name, tally in counts.reasons.items() if tally.files} == {
        "kept": 3,
        LFS_POINTER: 1,
        "generated": 1,
    }
    before = {
        text.source.path: text for text in filter_repository(files_of(tmp_path, detection="suffix"), FiltersConfig(), counts)
    }
    assert before["/a.h"].source.language == "C" and before["/old.py"].text == "x = 1\ry = 2\r" and "/wide.py" not in before

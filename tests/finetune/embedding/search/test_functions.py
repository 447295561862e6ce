"""Covers the functions of a folder: names, places, code without docstrings, and files that cannot be read."""

import textwrap
from pathlib import Path

import pytest

from finetune.embedding.search.functions import function_of_pair, functions_of_folder
from mose.dataset.pairs import Pair
from mose.errors import MoseError

SOURCE = '''
    """Module."""
    import os


    @decorated
    def first(a):
        """Say what it does."""
        def inner():
            return 1
        return inner


    class Table:
        async def read(self):
            """Only
            a docstring in two lines."""
            return 2

        def one_line(self): "said"; return 3

        def bare(self):
            """Nothing else."""
'''


def write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")


def test_functions_and_methods_are_listed_with_their_place(tmp_path: Path) -> None:
    write(tmp_path, "package/a.py", SOURCE)
    write(tmp_path, "z.py", "def last(): return 0\n")
    write(tmp_path, "broken.py", "def (:\n")
    write(tmp_path, ".hidden/b.py", "def hidden(): return 0\n")
    write(tmp_path, "notes.txt", "def text(): return 0\n")
    (tmp_path / "binary.py").write_bytes(b"\xff\x00\xfe")
    found = functions_of_folder(tmp_path)
    names = ["first", "Table.read", "Table.one_line", "Table.bare", "last"]
    assert [function.name for function in found] == names
    assert found[0].place == "package/a.py:7"
    assert found[0].code == "@decorated\ndef first(a):\n    def inner():\n        return 1\n    return inner"
    assert found[1].code == "async def read(self):\n    return 2"
    assert "said" in found[2].code and "Nothing else" in found[3].code


def test_a_folder_without_functions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MoseError, match=r"gone: no such folder"):
        functions_of_folder(tmp_path / "gone")
    write(tmp_path, "a.py", "x = 1\n")
    with pytest.raises(MoseError, match=r"no function in 1 source files"):
        functions_of_folder(tmp_path)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("@lru_cache(256)\ndef parse_it(a):\n    return a", "parse_it"),
        ("public static Date addHours(final Date date) { return f(date); }", "addHours"),
        ("function readFile(x) {}", "readFile"),
        ("just text", "just text"),
    ],
)
def test_a_pairs_function_is_called_by_its_first_name(code: str, name: str) -> None:
    function = function_of_pair(Pair("text", code, "x", repository="r", path="/p.py"))
    assert (function.name, function.place) == (name, "r /p.py")

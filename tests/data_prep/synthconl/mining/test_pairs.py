"""Mining documented functions: what is taken, what is left out, splits by repository, duplicates, the same bytes again."""

import ast
import warnings
from pathlib import Path

import pytest

from data_prep.sources.registry import SourcesConfig
from data_prep.sources.repositories import split_of
from data_prep.synthconl.mining.pairs import PairsConfig, build_pairs, documented_functions
from mose.dataset.pairs import read_pairs
from mose.errors import MoseError

SOURCE = '''"""Module docstring, not a function."""
import functools


class Table:
    """A table of things."""

    @property
    def width(self):
        """Return the number of columns.

        A second paragraph is left out.
        """
        columns = self.columns
        return len(columns)

    def __len__(self):
        """Return the number of rows here."""
        rows = self.rows
        return len(rows)

    async def fetch(self, url: str) -> bytes:
        \'\'\'Fetch one page
        over the network.\'\'\'

        text = """kept
  as it is"""
        return await get(url, text)


def test_width():
    """Check the width of tables."""
    assert Table().width == 0
    return None


def outer(x):
    """Add one to the number, twice."""
    def inner(y):
        """Add one to the number."""
        z = y
        return z + 1
    return inner(inner(x))


def undocumented(x):
    y = x
    return y


if functools:
    def one_line(): "All of it stands on one line"; x = 1; return x
'''


def names(source: str) -> list[str]:
    return [function.name for function in documented_functions(source)]


def test_methods_and_functions_are_taken_dunder_test_and_inner_ones_are_not() -> None:
    assert names(SOURCE) == ["width", "fetch", "outer"]


def test_the_first_paragraph_and_the_code_without_its_docstring() -> None:
    width, fetch, outer = documented_functions(SOURCE)
    assert width.summary == "Return the number of columns."
    assert width.code == "@property\ndef width(self):\n    columns = self.columns\n    return len(columns)"
    assert fetch.summary == "Fetch one page over the network."
    assert "Fetch one page" not in fetch.code
    assert outer.code.startswith('def outer(x):\n    def inner(y):\n        """Add one to the number."""\n')


def test_the_code_still_parses_and_is_the_same_function() -> None:
    for function in documented_functions(SOURCE):
        if function.name == "fetch":
            continue  # its string goes further left than the function, so it keeps its indentation
        (node,) = ast.parse(function.code).body
        assert isinstance(node, ast.FunctionDef)
        assert node.name == function.name
        assert ast.get_docstring(node) is None


@pytest.mark.parametrize(
    "source",
    ["def broken(:\n", "x = '\0'\n", "(" * 5000, "def only(x):\n    '''Only a docstring and nothing else.'''\n", ""],
)
def test_a_file_that_does_not_parse_or_has_nothing_gives_nothing(source: str) -> None:
    assert names(source) == []


def test_form_feeds_carriage_returns_and_byte_order_marks_do_not_shift_lines() -> None:
    source = "\ufeffx = 1\r\n\x0c\r\ny = '\u2028'\r\ndef f(a):\r\n    '''Say what it is.'''\r\n    b = a\r\n    return b\r\n"
    (function,) = documented_functions(source)
    assert function.code == "def f(a):\n    b = a\n    return b"


def test_warnings_of_old_code_are_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert names("x = '\\d'\ndef f(a):\n    '''Say what it is.'''\n    return a is 1\n") == ["f"]


def function(name: str, docstring: str, body: str = "a = 1\n    b = a") -> str:
    return f'def {name}(x):\n    """{docstring}"""\n    {body}\n    return x, "{name}"\n\n'


def config_of(root: Path, output: Path, **more: object) -> PairsConfig:
    sources = SourcesConfig(directories=(str(root),))
    return PairsConfig(output=str(output), sources=sources, **more)  # type: ignore[arg-type]


def test_short_foreign_and_duplicate_functions_are_left_out(tmp_path: Path) -> None:
    root = tmp_path / "all"
    for name, text in {
        "r1/a.py": function("good", "Return what was given.") + function("few", "Two words"),
        "r1/b.py": function("other", "Return what was given.") + function("foreign", "Gibt zurück: äöüß äöüß äöüß"),
        "r2/c.py": "def short(x):\n    '''Return it as is.'''\n    return x\n" + function("good", "Another text for one code."),
        "r2/d.c": function("c", "Not a Python file at all."),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "utf-8")
    pairs = build_pairs(config_of(root, tmp_path / "pairs.parquet"))
    assert [(pair.repository, pair.path, pair.nl) for pair in pairs] == [("r1", "/a.py", "Return what was given.")]
    assert pairs[0].lang_a == "Python"
    assert (pairs[0].code_b, pairs[0].lang_b) == ("", "")


@pytest.fixture
def many(tmp_path: Path) -> Path:
    root = tmp_path / "many"
    for i in range(20):
        (root / f"r{i}").mkdir(parents=True)
        (root / f"r{i}" / "a.py").write_text(
            "".join(function(f"f{i}_{j}", f"Do thing {j} of {i} now.") for j in range(6)), "utf-8"
        )
    return root


def test_pairs_are_split_by_repository(many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pairs.parquet"
    pairs = build_pairs(config_of(many, path, held_out_fraction=0.3, seed=1))
    assert read_pairs(path) == pairs
    assert {pair.split for pair in pairs} == {"train", "held_out"}
    assert all(pair.split == split_of(pair.repository, 1, 0.3) for pair in pairs)
    held_out = read_pairs(path, "held_out")
    repositories = len({pair.repository for pair in held_out})
    assert f"held_out: {len(held_out)} pairs from {repositories} repositories" in capsys.readouterr().out


def test_the_same_input_gives_the_same_bytes(many: Path, tmp_path: Path) -> None:
    for name in "ab":
        build_pairs(config_of(many, tmp_path / name, max_pairs_per_repository=3))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_limit_takes_a_seeded_sample_of_each_repository(many: Path, tmp_path: Path) -> None:
    chosen = []
    for seed in (0, 1):
        pairs = build_pairs(config_of(many, tmp_path / "pairs", max_pairs_per_repository=2, seed=seed, held_out_fraction=0.0))
        assert len(pairs) == 40
        chosen.append({pair.nl for pair in pairs})
    assert chosen[0] != chosen[1]


def test_no_documented_function_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "all" / "r").mkdir(parents=True)
    (tmp_path / "all" / "r" / "a.py").write_bytes(b"x = 1\n")
    with pytest.raises(MoseError, match="none of the 1 repositories has a documented Python function"):
        build_pairs(config_of(tmp_path / "all", tmp_path / "out" / "pairs.parquet"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("held_out_fraction", -0.1), ("min_docstring_words", -1), ("min_code_lines", -1), ("max_pairs_per_repository", -1)],
)
def test_values_that_make_no_sense_are_refused(tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(MoseError, match=name):
        config_of(tmp_path, tmp_path, **{name: value})

"""The pairs file: round trip, files of other tools, splits, and what is refused."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mose.dataset.pairs import RELEASED_COLUMNS, Pair, read_pairs, write_pairs
from mose.errors import MoseError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PAIRS = st.lists(
    st.builds(
        Pair, nl=TEXT.filter(bool), code_a=TEXT.filter(bool), lang_a=TEXT, code_b=TEXT, lang_b=TEXT, split=st.just("train")
    ),
    min_size=1,
    max_size=5,
)
COLUMNS: dict[str, Any] = {"nl": ["add"], "code_a": ["a+b"], "lang_a": ["Python"], "code_b": ["a + b;"], "lang_b": ["C"]}


def write(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@given(pairs=PAIRS)
def test_pairs_come_back_and_equal_pairs_give_equal_bytes(tmp_path_factory: pytest.TempPathFactory, pairs: list[Pair]) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    for name in "ab":
        write_pairs(folder / name, pairs)
    assert read_pairs(folder / "a") == pairs
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()


def test_a_file_of_triplets_without_our_columns_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", {**COLUMNS, "task_id": ["7"], "machine_generated": [True]})
    assert read_pairs(path) == [Pair("add", "a+b", "Python", "a + b;", "C")]
    assert read_pairs(path, "train") == read_pairs(path)


def test_the_released_data_set_is_read_by_its_own_column_names(tmp_path: Path) -> None:
    released = {RELEASED_COLUMNS[name]: values for name, values in COLUMNS.items()}
    more = {"repository_name": ["a/b"], "func_path_in_repository": ["c.py"], "func_code_url": ["https://example.org"]}
    path = write(tmp_path / "t.parquet", {**released, **more})
    assert read_pairs(path, "train") == [Pair("add", "a+b", "Python", "a + b;", "C", "a/b", "c.py")]
    with pytest.raises(MoseError, match=r"t.parquet: language2: no such column; expected func_documentation_string, func1_CSN, "):
        read_pairs(write(path, {name: values for name, values in released.items() if name != "language2"}))
    with pytest.raises(MoseError, match=r"t.parquet: func1_CSN: row 0 is empty, expected text"):
        read_pairs(write(path, {**released, "func1_CSN": [""]}))


def test_nulls_in_the_second_code_are_empty(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", {**COLUMNS, "code_b": [None], "lang_b": [None]})
    assert read_pairs(path) == [Pair("add", "a+b", "Python")]


def test_only_the_split_that_was_asked_for(tmp_path: Path) -> None:
    pairs = [Pair(f"n{i}", "c", "C", split="held_out" if i % 3 == 0 else "train") for i in range(7)]
    write_pairs(tmp_path / "p", pairs)
    assert [pair.nl for pair in read_pairs(tmp_path / "p", "held_out")] == ["n0", "n3", "n6"]
    assert len(read_pairs(tmp_path / "p")) == 7
    with pytest.raises(MoseError, match=r"split: no pair of split 'valid', the file holds \['held_out', 'train'\]"):
        read_pairs(tmp_path / "p", "valid")


@pytest.mark.parametrize("column", sorted(COLUMNS))
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    path = write(tmp_path / "t.parquet", {name: value for name, value in COLUMNS.items() if name != column})
    with pytest.raises(MoseError, match=rf"t\.parquet: {column}: no such column"):
        read_pairs(path)


def test_a_column_of_another_type_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", {**COLUMNS, "nl": [3]})
    with pytest.raises(MoseError, match=r"t\.parquet: nl: column of type int64, expected string"):
        read_pairs(path)


@pytest.mark.parametrize("value", ["", None])
def test_an_empty_text_is_named(tmp_path: Path, value: str | None) -> None:
    path = write(tmp_path / "t.parquet", {**COLUMNS, "code_a": pa.array([value], pa.string())})
    with pytest.raises(MoseError, match=r"t\.parquet: code_a: row 0 is empty"):
        read_pairs(path)


def test_a_broken_or_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    for name in ("broken.parquet", "gone.parquet"):
        with pytest.raises(MoseError, match=rf"{name}: not a readable parquet file of pairs"):
            read_pairs(tmp_path / name)

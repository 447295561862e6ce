"""Three formats give the same examples; each fault is one line; batches run over all examples."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.classification.examples import Example, ExampleOrder, Format, count_classes, read_examples
from mose.errors import MoseError
from tests.finetune.classification.conftest import make_examples, write_examples

FORM = Format(("func1", "func2"), "label")


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_every_format_gives_the_same_examples(tmp_path: Path):
    examples = make_examples(20, seed=0)
    first, second = ([e.texts[i] for e in examples] for i in range(2))
    labels = [e.label for e in examples]
    numbered = {text: str(100 + number) for number, text in enumerate({*first, *second})}
    functions = tmp_path / "functions.jsonl.gz"
    lines = [json.dumps({"func": text, "idx": number}) for text, number in numbered.items()]
    functions.write_bytes(gzip.compress("\n".join(lines).encode()))
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("".join(f"{numbered[a]}\t{numbered[b]}\t{c}\n" for a, b, c in zip(first, second, labels, strict=True)))
    paths = [
        write_examples(tmp_path / "a.jsonl", examples),
        parquet(tmp_path / "a.parquet", func1=first, func2=second, label=labels, more=labels),
        # The released copy of BigCloneBench has booleans.
        parquet(tmp_path / "b.parquet", func1=first, func2=second, label=[bool(label) for label in labels]),
        pairs,
    ]
    assert read_examples(paths, Format(FORM.text_columns, "label", functions), 2) == 4 * examples


def test_single_texts_and_other_columns(tmp_path: Path):
    path = parquet(tmp_path / "a.parquet", code=["a", "b", "c"], language=[2, 0, 1])
    assert read_examples([path], Format(("code",), "language")) == [Example(("a",), 2), Example(("b",), 0), Example(("c",), 1)]


def row(**changes: Any) -> str:
    return json.dumps({"func1": "a", "func2": "b", "label": 1} | changes)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", row(label=2), "a.jsonl: line 1: label: 2, expected a class from 0 to 1"),
        ("a.jsonl", row(label=-1), "line 1: label: -1, expected a class from 0 to 1"),
        ("a.jsonl", row(label="1"), "line 1: label: '1', expected a whole number"),
        ("a.jsonl", row(label=1.0), "line 1: label: '1.0', expected a whole number"),
        ("a.jsonl", row() + "\n" + row(func2=" \n"), "line 2: func2: empty, expected text"),
        ("a.jsonl", row(func1=3), "line 1: func1: 3, expected text"),
        ("a.jsonl", '{"func1": "a", "label": 1}', "line 1: func2: no such field, or null; expected func1, func2, label"),
        ("a.jsonl", "[1]", "line 1: not a JSON object, expected one with func1, func2, label"),
        ("a.jsonl", "{", "line 1: not JSON"),
        ("a.jsonl", "", "a.jsonl: no example, expected at least one"),
        ("a.jsonl.gz", "not gzip", "a.jsonl.gz: not a readable file of JSON lines"),
        ("a.parquet", "not parquet", "a.parquet: not a readable parquet file"),
        ("a.csv", "", "a.csv: unknown kind of file, expected .parquet"),
        ("a.txt", "1 2 3 4", "a.txt: line 1: '1 2 3 4', expected `idx1 idx2 label`"),
        ("a.txt", "1 9 1", "a.txt: line 1: function 9 is not in "),
        ("a.txt", "1 2 yes", "a.txt: line 1: label: 'yes', expected a whole number"),
        ("a.txt", "1 2 7", "a.txt: line 1: label: 7, expected a class from 0 to 1"),
    ],
)
def test_each_fault_is_one_line(name: str, content: str, expected: str, tmp_path: Path):
    (tmp_path / name).write_text(content)
    functions = tmp_path / "functions.jsonl"
    functions.write_text('{"idx": "1", "func": "a"}\n{"idx": "2", "func": "b"}\n')
    with pytest.raises(MoseError) as error:
        read_examples([tmp_path / name], Format(("func1", "func2"), "label", functions), 2)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_faults_of_columns_and_functions(tmp_path: Path):
    path = parquet(tmp_path / "a.parquet", func1=["a"], label=[1])
    with pytest.raises(MoseError, match=r"a.parquet: func2: no such column, the file has func1, label$"):
        read_examples([path], FORM)
    for labels, kind in ((["1"], "string"), ([1.0], "double")):
        path = parquet(tmp_path / "a.parquet", func1=["a"], func2=["b"], label=labels)
        with pytest.raises(MoseError, match=f"a.parquet: label: column of type {kind}, expected whole numbers"):
            read_examples([path], FORM)
    path = parquet(tmp_path / "a.parquet", func1=["a", None], func2=["b", "c"], label=[1, 0])
    with pytest.raises(MoseError, match=r"a.parquet: row 1: func1: None, expected text"):
        read_examples([path], FORM)
    pairs = tmp_path / "a.txt"
    pairs.write_text("1 2 1\n")
    with pytest.raises(MoseError, match="a.txt: pairs of numbered functions, expected --functions"):
        read_examples([pairs], FORM)
    functions = tmp_path / "functions.jsonl"
    functions.write_text('{"idx": 1, "func": "a"}\n')
    with pytest.raises(MoseError, match="functions.jsonl: line 1: idx: '1', expected text"):
        read_examples([pairs], Format(("func1", "func2"), "label", functions))


def test_classes_are_counted_and_a_gap_is_refused():
    def of(*labels: int) -> list[Example]:
        return [Example(("a",), label) for label in labels]

    assert count_classes(of(0, 2, 1, 1), [Path("a")]) == 3
    with pytest.raises(MoseError, match="a: label: the largest is 1000000, but no example has class 1; expected num_classes"):
        count_classes(of(0, 1_000_000), [Path("a")])
    with pytest.raises(MoseError, match="a: label: every example has class 0, expected two classes or more"):
        count_classes(of(0, 0), [Path("a")])


def test_batches_cover_every_epoch_and_depend_on_seed_and_step_only():
    order = ExampleOrder(10, 4, seed=1)
    stream = np.concatenate([order.at(step) for step in range(10)])
    for epoch in range(4):
        assert sorted(stream[10 * epoch : 10 * (epoch + 1)]) == list(range(10))
    assert (ExampleOrder(10, 4, seed=1).at(7) == stream[28:32]).all()
    assert any((ExampleOrder(10, 4, seed=2).at(step) != order.at(step)).any() for step in range(3))
    assert len(ExampleOrder(3, 8, seed=0).at(5)) == 8

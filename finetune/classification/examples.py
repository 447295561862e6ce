"""Reads labelled texts: parquet, JSON lines, or BigCloneBench's pairs beside its file of functions; and deals them to batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from finetune.batches import INDICES
from mose.errors import MoseError, first_line
from mose.files.json_file import JSON_LINES, json_lines
from mose.files.parquet_errors import PARQUET_ERRORS
from mose.seeding import generator

FUNCTION_FIELDS = ("idx", "func")


@dataclass(frozen=True)
class Example:
    """The texts of one row, and its class."""

    texts: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Format:
    """How examples lie in their files: the columns, and BigCloneBench's functions where pairs name them."""

    text_columns: tuple[str, ...]
    label_column: str
    functions: Path | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is read."""
        return (*self.text_columns, self.label_column)


def read_examples(paths: Sequence[Path], form: Format, classes: int | None = None) -> list[Example]:
    """All examples, file after file; with `classes`, labels are checked to be below it.

    Raises:
        MoseError: a file cannot be read, lacks a column, has an empty text, or a label that is no class; or there is no example.
    """
    functions = _read_functions(form.functions) if form.functions else None
    return [example for path in paths for example in _read(path, form, functions, classes)]


def count_classes(examples: Sequence[Example], files: Sequence[Path]) -> int:
    """The number of classes that the labels of the training files make.

    Raises:
        MoseError: a class below the largest has no example, or there is one class only.
    """
    found = {example.label for example in examples}
    missing = next((label for label in range(len(found)) if label not in found), None)
    names = ", ".join(str(path) for path in files)
    # A gap is a wrong column or a typing error more often than a class that nobody has seen.
    if missing is not None:
        raise MoseError(f"{names}: label: the largest is {max(found)}, but no example has class {missing}; expected num_classes")
    if len(found) < 2:
        raise MoseError(f"{names}: label: every example has class 0, expected two classes or more")
    return len(found)


def _read(path: Path, form: Format, functions: dict[str, str] | None, classes: int | None) -> list[Example]:
    if path.name.endswith(".parquet"):
        rows = _parquet_rows(path, form)
    elif path.name.endswith(JSON_LINES):
        rows = _json_rows(path, form)
    elif path.name.endswith(".txt"):
        rows = _clone_rows(path, form, functions)
    else:
        raise MoseError(f"{path}: unknown kind of file, expected .parquet, {', '.join(JSON_LINES)} or .txt")
    examples = [_example(where, row, form, classes) for where, row in rows]
    if not examples:
        raise MoseError(f"{path}: no example, expected at least one")
    return examples


def _example(where: str, row: dict[str, Any], form: Format, classes: int | None) -> Example:
    for name in form.text_columns:
        if not isinstance(row[name], str):
            raise MoseError(f"{where}: {name}: {str(row[name])[:60]}, expected text")
        if not row[name].strip():
            raise MoseError(f"{where}: {name}: empty, expected text")
    label = row[form.label_column]
    if not isinstance(label, int):
        raise MoseError(f"{where}: {form.label_column}: {str(label)[:60]!r}, expected a whole number")
    if label < 0 or (classes is not None and label >= classes):
        most = "" if classes is None else f" to {classes - 1}"
        raise MoseError(f"{where}: {form.label_column}: {str(label)[:60]}, expected a class from 0{most}")
    return Example(tuple(row[name] for name in form.text_columns), int(label))


def _parquet_rows(path: Path, form: Format) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        file = pq.ParquetFile(path)
        _check_columns(path, file.schema_arrow, form)
        rows = file.read(columns=list(form.columns)).to_pylist()
    except PARQUET_ERRORS as error:
        raise MoseError(f"{path}: not a readable parquet file: {first_line(error)}") from None
    return ((f"{path}: row {number}", row) for number, row in enumerate(rows))


def _check_columns(path: Path, schema: pa.Schema, form: Format) -> None:
    for name in form.columns:
        if name not in schema.names:
            raise MoseError(f"{path}: {name}: no such column, the file has {', '.join(schema.names)[:200]}")
    kind = schema.field(form.label_column).type
    if not (pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise MoseError(f"{path}: {form.label_column}: column of type {kind}, expected whole numbers")


def _json_rows(path: Path, form: Format) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, row in json_lines(path, form.columns):
        missing = next((name for name in form.columns if row[name] is None), None)
        if missing is not None:
            raise MoseError(f"{where}: {missing}: no such field, or null; expected {', '.join(form.columns)}")
        yield where, row


def _read_functions(path: Path) -> dict[str, str]:
    functions = {}
    for where, row in json_lines(path, FUNCTION_FIELDS):
        for name in FUNCTION_FIELDS:
            if not isinstance(row[name], str) or not row[name].strip():
                raise MoseError(f"{where}: {name}: {str(row[name])[:60]!r}, expected text")
        functions[row["idx"]] = row["func"]
    return functions


def _clone_rows(path: Path, form: Format, functions: dict[str, str] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The pairs of a file of `idx1 idx2 label` lines; equal functions are one string in memory."""
    if functions is None:
        raise MoseError(f"{path}: pairs of numbered functions, expected --functions with a file of them")
    if len(form.text_columns) != 2:
        raise MoseError(f"text_columns: {', '.join(form.text_columns)}, expected two for the pairs of {path}")
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MoseError(f"{path}: not a readable text file: {first_line(error)}") from None
    for number, line in enumerate(lines, 1):
        where, words = f"{path}: line {number}", line.split()
        if len(words) != 3:
            raise MoseError(f"{where}: {line[:60]!r}, expected `idx1 idx2 label`")
        unknown = next((word for word in words[:2] if word not in functions), None)
        if unknown is not None:
            raise MoseError(f"{where}: function {unknown[:60]} is not in {form.functions}")
        # What is no number keeps its text, and is refused with all other labels.
        label = int(words[2]) if words[2].isascii() and words[2].isdigit() and len(words[2]) < 10 else words[2]
        yield where, dict(zip(form.columns, (functions[words[0]], functions[words[1]], label), strict=True))


class ExampleOrder:
    """The examples of batch number `step`: a pure function of seed and step.

    Batches run on from one epoch's permutation into the next, so that every example is seen equally often.
    """

    def __init__(self, num_examples: int, batch_rows: int, seed: int):
        """Plan batches of `batch_rows` over `num_examples`."""
        self._num_examples, self._batch_rows, self._seed = num_examples, batch_rows, seed
        self._epoch: tuple[int, INDICES] | None = None

    def at(self, step: int) -> INDICES:
        """Indices [B] of the batch of optimiser step `step`, counted from 0."""
        places = np.arange(step * self._batch_rows, (step + 1) * self._batch_rows)
        return np.array([self._permutation(int(place) // self._num_examples)[place % self._num_examples] for place in places])

    def _permutation(self, epoch: int) -> INDICES:
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, generator(self._seed, "classification order", epoch).permutation(self._num_examples))
        return self._epoch[1]

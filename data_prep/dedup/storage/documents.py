"""Numbers of documents and rows: which task read a row, and which text of the row a document is.

A row number is task * 2^32 + place in the task. The texts of a task's rows are its documents, `num_columns` per row, numbered the
same way. Behind the rows of its inputs a task numbers its share of the evaluation texts, one row each, the same text in every
column.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mose.array_types import INT64_ARRAY
from mose.seeding import UINT64_ARRAY

TASK_BITS = 32
_TASK_BITS = np.uint64(TASK_BITS)
_PLACE = np.uint64((1 << TASK_BITS) - 1)


@dataclass(frozen=True)
class Numbering:
    """How the documents of a run are numbered, once all of them have been read."""

    num_columns: int
    rows_T: INT64_ARRAY
    """Input rows of each task."""

    def row_of(self, documents: UINT64_ARRAY) -> UINT64_ARRAY:
        """The row of each document."""
        return (documents & ~_PLACE) | ((documents & _PLACE) // np.uint64(self.num_columns))

    def document_of(self, rows: UINT64_ARRAY, column: int) -> UINT64_ARRAY:
        """The document of each row in a column."""
        return (rows & ~_PLACE) | ((rows & _PLACE) * np.uint64(self.num_columns) + np.uint64(column))

    def is_evaluation(self, rows: UINT64_ARRAY) -> NDArray[np.bool_]:
        """Whether each row is an evaluation text."""
        return place_of(rows) >= self.rows_T[task_of(rows)]

    def input_number(self, rows: UINT64_ARRAY) -> INT64_ARRAY:
        """The number of each row among all rows of the input, from 0, in the order of the tasks."""
        before_T = np.cumsum(self.rows_T) - self.rows_T
        return before_T[task_of(rows)] + place_of(rows)

    def rows_of(self, input_numbers: INT64_ARRAY) -> UINT64_ARRAY:
        """The rows that have these numbers among all rows of the input."""
        ends_T = np.cumsum(self.rows_T)
        tasks = np.searchsorted(ends_T, input_numbers, side="right")
        return (tasks.astype(np.uint64) << _TASK_BITS) | (input_numbers - (ends_T - self.rows_T)[tasks]).astype(np.uint64)

    def evaluation_number(self, rows: UINT64_ARRAY) -> INT64_ARRAY:
        """The number of each evaluation text among all of them: those of a task are every T-th, T the number of tasks."""
        return (place_of(rows) - self.rows_T[task_of(rows)]) * len(self.rows_T) + task_of(rows)

    def evaluation_row(self, numbers: INT64_ARRAY) -> UINT64_ARRAY:
        """The row of each evaluation text by its number."""
        tasks = numbers % len(self.rows_T)
        return (tasks.astype(np.uint64) << _TASK_BITS) | (numbers // len(self.rows_T) + self.rows_T[tasks]).astype(np.uint64)


def task_of(numbers: UINT64_ARRAY) -> INT64_ARRAY:
    """The task of each row or document."""
    return (numbers >> _TASK_BITS).astype(np.int64)


def place_of(numbers: UINT64_ARRAY) -> INT64_ARRAY:
    """The place of each row or document in its task."""
    return (numbers & _PLACE).astype(np.int64)

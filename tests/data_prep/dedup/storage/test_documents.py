"""Covers the numbers of rows: each way back gives what the way there began with."""

import numpy as np

from data_prep.dedup.storage.documents import TASK_BITS, Numbering

NUMBERING = Numbering(2, np.array([3, 0, 4]))


def test_rows_and_their_numbers() -> None:
    rows = np.array([0, 1, 2, (2 << TASK_BITS), (2 << TASK_BITS) + 3], np.uint64)
    numbers = NUMBERING.input_number(rows)
    assert numbers.tolist() == [0, 1, 2, 3, 6]
    assert NUMBERING.rows_of(numbers).tolist() == rows.tolist()
    assert NUMBERING.row_of(NUMBERING.document_of(rows, 1)).tolist() == rows.tolist()


def test_evaluation_texts_are_numbered_as_they_were_shared_out() -> None:
    numbers = np.arange(8)
    rows = NUMBERING.evaluation_row(numbers)
    assert NUMBERING.is_evaluation(rows).all()
    assert (rows >> np.uint64(TASK_BITS)).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert NUMBERING.evaluation_number(rows).tolist() == numbers.tolist()

"""Checks a shard's rows against its lineage table: number and lengths of snippets, repositories, and the label `mixed`.

Letters: R rows of a block, S snippets of a block.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.shards.lineage import LineageTable, codes
from mose.array_types import INT64_ARRAY
from mose.dataset.packed_sequence import TOKENS, SpecialTokens
from mose.dataset.shard_format import RowLabels
from mose.errors import MoseError


class Lineage:
    """A lineage table with the bounds of its rows: row r has the lines [first[r], first[r + 1])."""

    def __init__(self, path: Path, rows: int):
        """Read the columns of the table that describe the rows.

        Raises:
            MoseError: the table is missing or damaged, or its rows are not ascending.
        """
        self.path = path
        with LineageTable(path) as table:
            columns = table.columns(["row", "repository", "num_tokens"])
        row_S = columns["row"].to_numpy()
        self.first = np.searchsorted(row_S, np.arange(rows + 1))
        if (np.diff(row_S) < 0).any() or (len(row_S) and (row_S[0] < 0 or row_S[-1] >= rows)):
            raise MoseError(f"{path}: row: is not ascending from 0 to {rows - 1}")
        self.lengths: INT64_ARRAY = columns["num_tokens"].to_numpy().astype(np.int64)
        self.repository_ids, self.repositories = codes(columns["repository"])


def check_lineage(
    table: Lineage, start: int, rows_RT: TOKENS, labels: RowLabels, special: SpecialTokens, *, alternating: bool
) -> None:
    """Check the snippets of a block of rows, which begins with row `start`, against their lines.

    Raises:
        MoseError: a row does not match its lines; names the first one.
    """
    first_R = table.first[start : start + len(rows_RT) + 1]
    counts_R = np.diff(first_R)
    _fail(table.path, start, counts_R != labels.num_snippets, "has another number of snippets than its shard says")
    lines_S = slice(int(first_R[0]), int(first_R[-1]))
    row_of_S, slot_S = np.divmod(np.flatnonzero(rows_RT == special.sep), rows_RT.shape[1])
    ends_S = np.where(np.append(row_of_S[1:], -1) == row_of_S, np.append(slot_S[1:], 0), rows_RT.shape[1] - 1)
    differs_R = _any_in_row(ends_S - slot_S - 1 != table.lengths[lines_S], row_of_S, len(rows_RT))
    _fail(table.path, start, differs_R, "has a snippet of another length than its shard")
    ids_S = table.repository_ids[lines_S]
    place_S = np.arange(len(ids_S)) - (first_R[:-1] - first_R[0])[row_of_S]
    if not len(ids_S):
        return
    ids_first_R = ids_S[np.minimum(first_R[:-1] - first_R[0], len(ids_S) - 1)]
    other_R = _any_in_row(ids_S != ids_first_R[row_of_S], row_of_S, len(rows_RT))
    _fail(table.path, start, other_R != (labels.mixed == 1), "has a label `mixed` that contradicts its repositories")
    _fail(table.path, start, _more_than_two(ids_S, ids_first_R, row_of_S), "holds more than two repositories")
    if alternating:
        # Two repositories alternate if each snippet, from the third on, has the repository of the snippet two places before it.
        is_late_S = place_S >= 2
        breaks_S = is_late_S & (ids_S != np.roll(ids_S, 2))
        _fail(table.path, start, _any_in_row(breaks_S, row_of_S, len(rows_RT)), "does not alternate its two repositories")


def _more_than_two(ids_S: INT64_ARRAY, ids_first_R: INT64_ARRAY, row_of_S: INT64_ARRAY) -> NDArray[np.bool_]:
    """Rows whose snippets come from three or more repositories."""
    is_other_S = ids_S != ids_first_R[row_of_S]
    # Any snippet of another repository defines the second one; a third shows as a snippet that differs from both.
    second_R = ids_first_R.copy()
    second_R[row_of_S[is_other_S]] = ids_S[is_other_S]
    return _any_in_row(is_other_S & (ids_S != second_R[row_of_S]), row_of_S, len(ids_first_R))


def _any_in_row(wrong_S: NDArray[np.bool_], row_of_S: INT64_ARRAY, rows: int) -> NDArray[np.bool_]:
    found_R = np.zeros(rows, dtype=bool)
    found_R[row_of_S[wrong_S]] = True
    return found_R


def _fail(path: Path, start: int, wrong_R: NDArray[np.bool_], what: str) -> None:
    places = np.flatnonzero(wrong_R)
    if len(places):
        raise MoseError(f"{path}: row {start + int(places[0])} {what}")

"""How a global batch is dealt to data ranks and micro-batches: who computes a row, never which rows the batch holds.

Letters: G rows of the global batch, R rows of one rank, S data ranks, P pairs of ranks, W places of a rank for rows.
"""

import heapq
from collections.abc import Sequence

import numpy as np

from mose.array_types import INT64_ARRAY

# Measured on 2,048 rows: after eight rounds nothing is left to win that the rows allow.
_SWAP_ROUNDS = 8
# With more rows a rank, the last and shortest rows have evened the ranks out, and pairs of rows become many.
_MOST_ROWS_SWAPPED = 64


def share_of(
    num_tokens_G: INT64_ARRAY, costs_G: INT64_ARRAY, data_rank: int, data_ranks: int, budget_tokens: int, equal_numbers: bool
) -> list[INT64_ARRAY]:
    """Micro-batches of one rank as indices into the global batch; over all ranks every row is in exactly one.

    With `equal_numbers` every rank has as many as the one that needs most: the others split theirs, or have empty ones.
    Without, a rank has as few as its rows fit into.
    """
    dealt = deal(costs_G, data_ranks)
    at_least = max(len(_first_fit(num_tokens_G[rows], budget_tokens)) for rows in dealt) if equal_numbers else 1
    mine = dealt[data_rank]
    return [mine[places] for places in pack(num_tokens_G[mine], budget_tokens, at_least)]


def deal(costs_G: INT64_ARRAY, ranks: int) -> list[INT64_ARRAY]:
    """Rows of each rank, ascending, so that ranks cost alike; ranks may hold different numbers of rows.

    Dearest rows first, each to the rank that has least; then ranks with much and ranks with little swap rows. The dearest
    rank costs at most the mean and one row more, and two ranks differ by one row's cost at most. Deterministic.
    """
    dealt = _spread(costs_G, ranks)
    if max(map(len, dealt)) > _MOST_ROWS_SWAPPED:
        return [np.array(sorted(rows), dtype=np.int64) for rows in dealt]
    return _swapped(dealt, costs_G)


def pack(num_tokens_R: INT64_ARRAY, budget_tokens: int, at_least: int = 1) -> list[INT64_ARRAY]:
    """Rows as the fewest micro-batches that first fit finds, `at_least` so many, each within the budget of tokens.

    A row that alone exceeds the budget has a micro-batch of its own. Within their number micro-batches are filled evenly
    where the budget lets them; those that no row is left for are empty. Deterministic.
    """
    fitted = _first_fit(num_tokens_R, budget_tokens)
    fitted += [[] for _ in range(at_least - len(fitted))]
    even = _spread(num_tokens_R, len(fitted))
    fits = all(len(rows) < 2 or num_tokens_R[rows].sum() <= budget_tokens for rows in even)
    return [np.array(sorted(rows), dtype=np.int64) for rows in (even if fits else fitted)]


def _longest_first(sizes: INT64_ARRAY) -> list[int]:
    return np.argsort(-sizes, kind="stable").tolist()  # type: ignore[no-any-return]


def _first_fit(num_tokens_R: INT64_ARRAY, budget_tokens: int) -> list[list[int]]:
    """First-fit decreasing: each row, longest first, into the first micro-batch that has room."""
    fitted: list[list[int]] = [[]]
    room = [budget_tokens]
    lengths = num_tokens_R.tolist()
    for row in _longest_first(num_tokens_R):
        place = next((place for place, left in enumerate(room) if lengths[row] <= left or not fitted[place]), len(fitted))
        if place == len(fitted):
            fitted.append([])
            room.append(budget_tokens)
        fitted[place].append(row)
        room[place] -= lengths[row]
    return fitted


def _spread(sizes: INT64_ARRAY, bins: int) -> list[list[int]]:
    """Each row, largest first, into the bin that holds least, of equal ones into that of the lowest number."""
    spread: list[list[int]] = [[] for _ in range(bins)]
    held = [(0, place) for place in range(bins)]
    values = sizes.tolist()
    for row in _longest_first(sizes):
        total, place = held[0]
        spread[place].append(row)
        heapq.heapreplace(held, (total + values[row], place))
    return spread


def _swapped(dealt: Sequence[Sequence[int]], costs_G: INT64_ARRAY) -> list[INT64_ARRAY]:
    """The same rows after swaps between ranks; one empty place a rank lets a row also move without another in return."""
    rows_SW = np.full((len(dealt), max(map(len, dealt)) + 1), -1, dtype=np.int64)
    for rank, rows in enumerate(dealt):
        rows_SW[rank, : len(rows)] = rows
    # Row -1, the empty place, costs nothing.
    costs_G1 = np.append(costs_G, 0)
    totals_S = costs_G1[rows_SW].sum(axis=1)
    for _ in range(_SWAP_ROUNDS):
        if not _swap_once(rows_SW, totals_S, costs_G1):
            break
    return [np.sort(rows[rows >= 0]) for rows in rows_SW]


def _swap_once(rows_SW: INT64_ARRAY, totals_S: INT64_ARRAY, costs_G1: INT64_ARRAY) -> bool:
    """Let the dearest rank and the cheapest swap the two rows that bring them closest, and so on inwards; in place.

    Returns whether any pair came closer. No pair drifts apart, so the dearest rank never gets dearer.
    """
    pairs, width = len(rows_SW) // 2, rows_SW.shape[1]
    order_S = np.argsort(-totals_S, kind="stable")
    dear_P, cheap_P = order_S[:pairs], order_S[::-1][:pairs]
    apart_P = totals_S[dear_P] - totals_S[cheap_P]
    moved_PWW = costs_G1[rows_SW[dear_P]][:, :, None] - costs_G1[rows_SW[cheap_P]][:, None, :]
    after_PWW = np.abs(apart_P[:, None, None] - 2 * moved_PWW).reshape(pairs, width * width)
    best_P = after_PWW.argmin(axis=1)
    closer_P = after_PWW[np.arange(pairs), best_P] < apart_P
    from_P, to_P = np.divmod(best_P[closer_P], width)
    dear_P, cheap_P = dear_P[closer_P], cheap_P[closer_P]
    given_P, taken_P = rows_SW[dear_P, from_P], rows_SW[cheap_P, to_P]
    rows_SW[dear_P, from_P], rows_SW[cheap_P, to_P] = taken_P, given_P
    cost_P = costs_G1[given_P] - costs_G1[taken_P]
    totals_S[dear_P] -= cost_P
    totals_S[cheap_P] += cost_P
    return bool(closer_P.any())

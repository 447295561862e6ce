"""Which data set a position of the run takes its row from: exact shares, computed for any position from the seed alone.

The run's positions are divided into blocks. Each block holds a fixed number of rows of each source, in seeded random order;
rounding errors do not accumulate. Drawing the source of each position at random instead would give shares that drift by
sqrt(n) rows, and the number of rows that a source has given, hence its next row, could only be known by counting all draws
before; with quotas per block it is a product and one block. Each source is read in its own order, epoch after epoch,
independently of the others.

Letters: P positions, S sources, K blocks, Q positions of a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mose.array_types import INT64_ARRAY
from mose.config import require
from mose.seeding import counter_random, derive_key
from pretrain.data.order import permute, rows_of_run_at

BLOCK_POSITIONS = 1024
# A source needs more than one row per block: with less, rounding could give it a negative number.
LEAST_SHARE = 0.001
# Weights are fractions of 2^30, so that sums are of whole numbers: products stay below 2^64 up to 2^34 positions.
_UNIT_BITS = 30


def mixture_at(seed: int, positions_P: INT64_ARRAY, weights_S: Sequence[float]) -> tuple[INT64_ARRAY, INT64_ARRAY]:
    """The source [P] of each position of a run, and how many rows of that source came before [P].

    The rows of a source in the first n positions, n any multiple of `BLOCK_POSITIONS`, differ from its share of n by less
    than one row; each source's own positions come in order, 0, 1, 2, ...
    """
    if len(weights_S) == 1:
        return np.zeros_like(positions_P), positions_P.copy()
    blocks_P, inside_P = np.divmod(positions_P, BLOCK_POSITIONS)
    blocks_K, block_of_P = np.unique(blocks_P, return_inverse=True)
    sources_KQ = _sources_of_blocks(seed, blocks_K, weights_S)
    before_KS = _bounds(blocks_K, weights_S)
    sources_P = sources_KQ[block_of_P, inside_P]
    ranks_KQ = np.empty_like(sources_KQ)
    for source in range(len(weights_S)):
        is_source_KQ = sources_KQ == source
        ranks_KQ[is_source_KQ] = (np.cumsum(is_source_KQ, axis=1) - 1)[is_source_KQ]
    first_KS = np.diff(before_KS, axis=1)
    return sources_P, first_KS[block_of_P, sources_P] + ranks_KQ[block_of_P, inside_P]


def rows_by_source(seed: int, consumed: int, weights_S: Sequence[float]) -> INT64_ARRAY:
    """Rows of each source [S] among the first `consumed` positions of a run."""
    block, rest = divmod(consumed, BLOCK_POSITIONS)
    whole: INT64_ARRAY = np.diff(_bounds(np.array([block]), weights_S)[0])
    if len(weights_S) == 1:
        return np.array([consumed])
    begun = _sources_of_blocks(seed, np.array([block]), weights_S)[0, :rest]
    whole += np.bincount(begun, minlength=len(weights_S))
    return whole


def _bounds(blocks_K: INT64_ARRAY, weights_S: Sequence[float]) -> INT64_ARRAY:
    """Rows of the sources before source s in the first k blocks, [K, S + 1].

    Cumulative shares are rounded, not those of single sources or blocks: differences of two of these numbers then always add
    up to whole blocks, and no error accumulates over blocks.
    """
    ends_S = np.cumsum(weights_S)
    fractions = np.round(np.concatenate([[0.0], ends_S / ends_S[-1]]) * (1 << _UNIT_BITS)).astype(np.uint64)
    positions_K = (blocks_K * BLOCK_POSITIONS).astype(np.uint64)
    return ((positions_K[:, None] * fractions[None, :]) >> np.uint64(_UNIT_BITS)).astype(np.int64)


def _sources_of_blocks(seed: int, blocks_K: INT64_ARRAY, weights_S: Sequence[float]) -> INT64_ARRAY:
    """The source of each position of these blocks, [K, Q]."""
    quotas_KS = np.diff(_bounds(blocks_K + 1, weights_S) - _bounds(blocks_K, weights_S), axis=1)
    sources = np.arange(len(weights_S))
    sorted_KQ = np.stack([np.repeat(sources, quotas_S) for quotas_S in quotas_KS])
    keys_K = counter_random(derive_key(seed, "mixture"), blocks_K.astype(np.uint64))
    count = len(blocks_K) * BLOCK_POSITIONS
    places = np.tile(np.arange(BLOCK_POSITIONS, dtype=np.uint64), len(blocks_K))
    sizes = np.full(count, BLOCK_POSITIONS, dtype=np.uint64)
    shuffled = permute(places, sizes, np.repeat(keys_K, BLOCK_POSITIONS), BLOCK_POSITIONS).astype(np.int64)
    shuffled_KQ: INT64_ARRAY = np.take_along_axis(sorted_KQ, shuffled.reshape(len(blocks_K), BLOCK_POSITIONS), axis=1)
    return shuffled_KQ


@dataclass(frozen=True)
class Mixture:
    """The sources of a run: names, rows and weights (of any sum). Their rows are numbered one source after the other."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        total = sum(self.weights)
        for name, size, weight in zip(self.names, self.sizes, self.weights, strict=True):
            require(size > 0, f"data.mixture: {name}: holds no rows, expected 1 or more")
            least = f"expected at least {LEAST_SHARE:g} of the sum of weights, {total:g}"
            require(weight >= LEAST_SHARE * total, f"data.mixture: {name}: weight {weight:g}, {least}")

    @classmethod
    def of_one(cls, size: int) -> "Mixture":
        """A single data set: its own order, nothing mixed in."""
        return cls(("data",), (size,), (1.0,))

    @cached_property
    def first_rows(self) -> INT64_ARRAY:
        """Number of the first row of each source [S] and, last, the rows of all."""
        return np.cumsum([0, *self.sizes])

    def rows_of_run(
        self, seed: int, start: int, count: int, block_rows: int, window_rows: int
    ) -> tuple[INT64_ARRAY, INT64_ARRAY]:
        """Row numbers and epochs, both [count], of positions start..start+count-1 of the run; an epoch is that of the source."""
        sources, positions = mixture_at(seed, np.arange(start, start + count, dtype=np.int64), self.weights)
        rows, epochs = np.empty_like(positions), np.empty_like(positions)
        for source in np.unique(sources):
            chosen = sources == source
            rows[chosen], epochs[chosen] = rows_of_run_at(seed, positions[chosen], self.sizes[source], block_rows, window_rows)
            rows[chosen] += self.first_rows[source]
        return rows, epochs

    def rows_by_source(self, seed: int, consumed: int) -> INT64_ARRAY:
        """Rows of each source [S] among the first `consumed` of the run."""
        return rows_by_source(seed, consumed, self.weights)

    def scalars(self, seed: int, consumed: int) -> dict[str, float]:
        """How far each source has come, for the run's metrics: `data/rows/NAME` and `data/epoch/NAME` (passes over it)."""
        values: dict[str, float] = {}
        for name, size, rows in zip(self.names, self.sizes, self.rows_by_source(seed, consumed).tolist(), strict=True):
            values |= {f"data/rows/{name}": rows, f"data/epoch/{name}": rows / size}
        return values

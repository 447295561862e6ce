"""The rows of several data sets under one numbering: source after source.

Letters: R rows, T slots of a row, S sources.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from mose.array_types import INT64_ARRAY
from mose.dataset.packed_sequence import TOKENS
from mose.dataset.shard_format import RowLabels
from pretrain.data.mixture import Mixture
from pretrain.data.rows import Rows


class JoinedRows:
    """Rows of several sources; the position of each source follows from the run's position, `mixture` and the seed."""

    def __init__(self, parts: Sequence[Rows], mixture: Mixture, seed: int):
        """`parts` are in the mixture's order; rows of a part beyond those that the mixture counts are not used."""
        self._parts = tuple(parts)
        self._mixture = mixture
        self._seed = seed

    def __len__(self) -> int:
        return int(self._mixture.first_rows[-1])

    @property
    def sequence_length(self) -> int:
        """Slots T of a row."""
        return self._parts[0].sequence_length

    def reach(self, start: int, count: int) -> None:
        """Announce to each source which of its own positions are read next."""
        before, after = (self._mixture.rows_by_source(self._seed, consumed).tolist() for consumed in (start, start + count))
        for part, first, end in zip(self._parts, before, after, strict=True):
            part.reach(first, end - first)

    def tokens(self, rows_R: INT64_ARRAY) -> TOKENS:
        """Tokens [R, T] of these rows, in the requested order."""
        tokens_RT: TOKENS | None = None
        for part, places, inside in self._by_source(rows_R):
            found = part.tokens(inside)
            tokens_RT = np.empty((len(rows_R), found.shape[1]), found.dtype) if tokens_RT is None else tokens_RT
            tokens_RT[places] = found
        return self._parts[0].tokens(rows_R) if tokens_RT is None else tokens_RT

    def labels(self, rows_R: INT64_ARRAY) -> RowLabels:
        """Labels [R] of these rows."""
        columns = np.empty((3, len(rows_R)), dtype=np.int64)
        for part, places, inside in self._by_source(rows_R):
            labels = part.labels(inside)
            columns[:, places] = labels.mixed, labels.num_tokens, labels.num_snippets
        return RowLabels(*columns)

    def _by_source(self, rows_R: INT64_ARRAY) -> Iterator[tuple[Rows, INT64_ARRAY, INT64_ARRAY]]:
        """For each source of these rows: the source, the rows' places in the request, their numbers in the source."""
        sources_R = np.searchsorted(self._mixture.first_rows, rows_R, side="right") - 1
        for source in np.unique(sources_R):
            places = np.flatnonzero(sources_R == source)
            yield self._parts[source], places, rows_R[places] - self._mixture.first_rows[source]

    def close(self) -> None:
        """Close every source."""
        for part in self._parts:
            part.close()

"""The rows of one split of a data set, by number: the table of its shards, and a reader that maps local shards into memory.

Letters: R rows, T slots of a row.
"""

import itertools
import resource
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mose.array_types import INT64_ARRAY
from mose.dataset.manifest import MANIFEST_NAME, UNFINISHED_NAME, ShardEntry, read_manifest
from mose.dataset.packed_sequence import TOKENS
from mose.dataset.row_index import INDEX_DTYPE, RowIndex, first_wrong_row, labels_of
from mose.dataset.shard_format import MEMBER_DTYPE, RowLabels, ShardReader
from mose.errors import MoseError
from mose.files.atomic_file import file_sha256
from mose.files.storage import is_local

# An open shard takes two file descriptors, one for itself and one for its index. Half of the process's descriptors are left to
# other code.
_DESCRIPTORS_A_SHARD = 4
# Where the system sets no limit: Linux allows 65,530 memory maps per process by default.
_MOST_DESCRIPTORS = 1 << 16


class SplitTable:
    """Which shard holds which rows of a split, from the manifest alone: no shard is opened."""

    def __init__(self, dataset: Path, split: str, tokenizer_fingerprint: str | None = None):
        """Read the manifest; check it for consistency and, if given, against the tokenizer.

        Raises:
            MoseError: no manifest, no such split, rows of another tokenizer, a shard whose bytes do not fit its rows, or an
                unfinished removal.
        """
        self.dataset = dataset
        self.split = split
        self._seen = _stamp(dataset / MANIFEST_NAME)
        self.manifest = read_manifest(dataset)
        if (dataset / UNFINISHED_NAME).is_file():
            path = dataset / UNFINISHED_NAME
            raise MoseError(f"{path}: a removal is unfinished; expected `mose-data remove` to be run again with the same list")
        self.layout = self.manifest.layout()
        self.shards = self.manifest.shards(split)
        self.first_rows = np.cumsum([0, *(shard.rows for shard in self.shards)])
        made_with = self.manifest.tokenizer_fingerprint
        if tokenizer_fingerprint is not None and tokenizer_fingerprint != made_with:
            where = f"{dataset / MANIFEST_NAME}: tokenizer_fingerprint: {made_with}"
            raise MoseError(f"{where}, expected that of the tokenizer given, {tokenizer_fingerprint}")
        for shard in self.shards:
            self._check_size(shard)

    def _check_size(self, shard: ShardEntry) -> None:
        expected = self.layout.file_size(shard.rows)
        if shard.num_bytes != expected:
            where = f"{self.dataset / MANIFEST_NAME}: splits.{self.split}: num_bytes of {shard.path}"
            raise MoseError(f"{where}: {shard.num_bytes}, expected {expected} for {shard.rows} rows")

    def __len__(self) -> int:
        return int(self.first_rows[-1])

    def check_generation(self) -> None:
        """Compare the manifest with the one that was read, if the file has changed since; on a local file system only.

        Every rank computes the balance of a global batch from the labels, so all must see the same generation of the data set.

        Raises:
            MoseError: `mose-data remove` or another command changed the data set.
        """
        path = self.dataset / MANIFEST_NAME
        stamp = _stamp(path)
        if stamp == self._seen:
            return
        now = read_manifest(self.dataset)
        if now.content_root != self.manifest.content_root:
            numbers = f"generation {len(now.content_generations)}, was {len(self.manifest.content_generations)}"
            raise MoseError(f"{path}: the data set changed while it is read ({numbers}); resume the run, which then reads it")
        self._seen = stamp

    def check_rows(
        self, rows_R: INT64_ARRAY, tokens_RT: TOKENS, members_R: NDArray[np.bytes_], index_R: NDArray[np.void]
    ) -> None:
        """Compare rows [R] as they were read with their index entries.

        Raises:
            MoseError: a row differs; the line names the shard and the row in it.
        """
        wrong = first_wrong_row(tokens_RT, members_R, index_R)
        if wrong is not None:
            # A label out of range says more than that it differs.
            self.labels_of(index_R)
            place, reason = wrong
            shard = int(np.searchsorted(self.first_rows, rows_R[place], side="right")) - 1
            path = self.dataset / self.shards[shard].path
            raise MoseError(f"{path}: row {rows_R[place] - self.first_rows[shard]}: {reason}")

    def by_shard(self, rows_R: INT64_ARRAY) -> Iterator[tuple[int, INT64_ARRAY, INT64_ARRAY]]:
        """For each shard of these rows: its number, the rows' places in the request, their numbers in the shard."""
        shards_R = np.searchsorted(self.first_rows, rows_R, side="right") - 1
        places_R = np.argsort(shards_R, kind="stable")
        sorted_R = shards_R[places_R]
        bounds = [0, *(np.flatnonzero(np.diff(sorted_R)) + 1).tolist(), len(rows_R)]
        for begin, end in itertools.pairwise(bounds):
            if begin < end:
                shard, places = int(sorted_R[begin]), places_R[begin:end]
                yield shard, places, rows_R[places] - self.first_rows[shard]

    def check_tokens(self, tokens_RT: TOKENS, rows_R: INT64_ARRAY) -> TOKENS:
        """Return the tokens unchanged.

        Raises:
            MoseError: one of them is no id of the vocabulary.
        """
        largest = int(tokens_RT.max(initial=0))
        if largest >= self.manifest.vocabulary_size:
            where = f"{self.dataset}: {self.split}: token id {largest} in one of rows {rows_R.min()}..{rows_R.max()}"
            raise MoseError(f"{where}, expected ids below vocabulary_size {self.manifest.vocabulary_size}: damaged")
        return tokens_RT

    def labels_of(self, index_R: NDArray[np.void]) -> RowLabels:
        """The labels in these index entries [R].

        Raises:
            MoseError: a row has more tokens than slots.
        """
        labels = labels_of(index_R)
        longest = int(labels.num_tokens.max(initial=0))
        if longest > self.layout.sequence_length:
            where = f"{self.dataset}: {self.split}: num_tokens {longest} of a row"
            raise MoseError(f"{where}, expected at most {self.layout.sequence_length}: damaged")
        return labels


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a local file is replaced; None on an object store, where it would cost a request."""
    if not is_local(path):
        return None
    try:
        facts = path.stat()
    except FileNotFoundError:
        raise MoseError(f"{path}: no such file; expected a data set that `mose-data pack` has finished") from None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def raise_descriptor_limit() -> int:
    """Raise this process's soft limit on open files to the hard limit; returns the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)


class SharedLabels(Protocol):
    """Labels of all rows of a split, read once per node (`pretrain.storage.node_labels`)."""

    def entries(self, rows_R: INT64_ARRAY) -> NDArray[np.void]:
        """Entries [R] with the fields of an index's labels."""

    def close(self) -> None:
        """Release the memory."""


class LocalRows:
    """The rows of one split on a local file system; shards are mapped when first read, and memory does not grow with the rows.

    Shards and indexes are opened apart from each other: every rank reads the labels of a whole global batch, but the tokens of
    its own rows only.
    Not thread-safe: rows that a `Prefetcher` reads must not be read by another thread.
    """

    def __init__(self, dataset: Path, split: str, tokenizer_fingerprint: str | None = None, sources: int = 1):
        """Read the manifest and open the first shard; `sources` data sets share the limit on open files.

        Raises:
            MoseError: see `SplitTable`; or the data set is not local, or its first shard is missing, truncated or no shard.
        """
        self.table = SplitTable(dataset, split, tokenizer_fingerprint)
        if not is_local(dataset):
            raise MoseError(
                f"{dataset}: not a local folder; expected data.staging.folder, where its rows are staged on this node"
            )
        self._most_open = max(2, raise_descriptor_limit() // _DESCRIPTORS_A_SHARD // sources)
        self._readers: OrderedDict[int, ShardReader] = OrderedDict()
        self._indexes: OrderedDict[int, RowIndex] = OrderedDict()
        self._shared: SharedLabels | None = None
        self._reader(0)
        self._index(0)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def sequence_length(self) -> int:
        """Slots T of a row."""
        return self.table.layout.sequence_length

    def reach(self, start: int, count: int) -> None:
        """Nothing is read ahead."""

    def share_labels(self, labels: SharedLabels | None) -> None:
        """Read labels from a table that the ranks of a node share, which is then closed with these rows; None changes nothing."""
        self._shared = labels

    def tokens(self, rows_R: INT64_ARRAY) -> TOKENS:
        """Tokens [R, T] of these rows, in the requested order; each row is checked by the CRC-32 and the labels in its index.

        Raises:
            MoseError: a shard is missing, truncated, replaced or no shard, a row differs from its index, or a token is out of
                range.
        """
        layout = self.table.layout
        tokens_RT = np.empty((len(rows_R), layout.sequence_length), dtype=layout.dtype)
        members_R, index_R = np.empty(len(rows_R), dtype=MEMBER_DTYPE), np.empty(len(rows_R), dtype=INDEX_DTYPE)
        for number, places, inside in self.table.by_shard(rows_R):
            reader = self._current_reader(number)
            tokens_RT[places] = reader.tokens(inside)
            members_R[places], index_R[places] = reader.members(inside), self._index(number).entries(inside)
        self.table.check_tokens(tokens_RT, rows_R)
        self.table.check_rows(rows_R, tokens_RT, members_R, index_R)
        return tokens_RT

    def labels(self, rows_R: INT64_ARRAY) -> RowLabels:
        """Labels [R] of these rows, from the table of the node or the indexes beside their shards; no shard is opened.

        Raises:
            MoseError: an index is missing or of another size, a label is out of range, or the data set changed.
        """
        self.table.check_generation()
        if self._shared is not None:
            return self.table.labels_of(self._shared.entries(rows_R))
        index_R = np.empty(len(rows_R), dtype=INDEX_DTYPE)
        for shard, places, inside in self.table.by_shard(rows_R):
            index_R[places] = self._index(shard).entries(inside)
        return self.table.labels_of(index_R)

    def _current_reader(self, number: int) -> ShardReader:
        """The shard as its path shows it now: opened again if another file stands there, which must be the one of the manifest.

        The map of a replaced file would show the old rows, while shards opened later show new ones.
        """
        reader, entry = self._reader(number), self.table.shards[number]
        if reader.is_replaced():
            self._readers.pop(number).close()
            self._indexes.pop(number, None)
            index = entry.index_in(self.table.dataset)
            if index.is_file() and file_sha256(index) != entry.index_sha256:
                what = f"{reader.path}: replaced while it is read, with another index than {MANIFEST_NAME} listed"
                raise MoseError(f"{what}; start the run again, which then reads the data set as it is now")
            reader = self._reader(number)
        return reader

    def _reader(self, number: int) -> ShardReader:
        if number not in self._readers:
            if len(self._readers) >= self._most_open:
                self._readers.popitem(last=False)[1].close()
            entry = self.table.shards[number]
            reader = ShardReader(entry.shard_in(self.table.dataset), self.table.layout, entry.rows)
            reader.expect_random_access()
            self._readers[number] = reader
        self._readers.move_to_end(number)
        return self._readers[number]

    def _index(self, number: int) -> RowIndex:
        if number not in self._indexes:
            if len(self._indexes) >= self._most_open:
                # Its memory map goes with its last array.
                self._indexes.popitem(last=False)
            entry = self.table.shards[number]
            self._indexes[number] = RowIndex(entry.index_in(self.table.dataset), entry.rows)
        self._indexes.move_to_end(number)
        return self._indexes[number]

    def close(self) -> None:
        """Release every memory map."""
        if self._shared is not None:
            self._shared.close()
            self._shared = None
        self._indexes.clear()
        while self._readers:
            self._readers.popitem()[1].close()

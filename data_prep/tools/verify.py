"""`mose-data verify`: checks every shard, index and lineage table against the manifest, row by row.

The checks overlap on purpose. A SHA-256 detects damage after writing; the checks of tokens, labels, CRCs and lineage also detect
files that were written wrongly and therefore have the right SHA-256, and they name the row.

Letters: R rows of a block, T slots of a row.
"""

import hashlib
import io
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser, Namespace
from numpy.typing import NDArray

from data_prep.console import counted, show_progress
from data_prep.shards.rows import RecordBlock, check_size, read_blocks, read_index, shard_number
from data_prep.tools.ledger import ledger_problems
from data_prep.tools.removal.journal import read_removed, read_unfinished, unfinished_line
from data_prep.tools.verify_lineage import Lineage, check_lineage
from mose.command import BAD_INPUT, Command
from mose.dataset.manifest import MANIFEST_NAME, Manifest, ShardEntry, read_manifest
from mose.dataset.packed_sequence import TOKENS, SpecialTokens, check_row
from mose.dataset.row_index import labels_of, token_checksums
from mose.dataset.shard_format import RecordLayout, RowLabels, ShardWriter
from mose.errors import MoseError
from mose.files.atomic_file import file_sha256
from mose.files.storage import storage_path
from mose.seeding import generator
from mose.tokenizer import Tokenizer, opened_tokenizer

MEGABYTE = 1e6


@dataclass
class Verification:
    """What was checked, and the problems: the first one of each shard, and those of the data set as a whole, one line each."""

    shards: int = 0
    rows: int = 0
    num_bytes: int = 0
    """Size of the shards, indexes and lineage tables that were read."""
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """The counts and the read rate in one line."""
        rate = f"{self.num_bytes / MEGABYTE / max(self.seconds, 1e-9):,.0f} MB/s"
        read = f"{self.num_bytes / MEGABYTE:,.0f} MB in {self.seconds:,.1f} s, {rate}"
        return f"{counted(self.rows, 'row')} of {counted(self.shards, 'shard')} ({read})"


def verify(dataset: Path, share: float = 1.0, seed: int = 0) -> Verification:
    """Check a data set, or a random share of its shards drawn with `seed`; always checks the sizes of all shards.

    Raises:
        MoseError: the manifest or the tokenizer is missing, or `share` is out of range.
    """
    if not 0 < share <= 1:
        raise MoseError(f"sample: is {share}, expected a share above 0 and up to 1")
    started = time.perf_counter()
    manifest, found = read_manifest(dataset), Verification()
    unfinished = read_unfinished(dataset)
    if unfinished is not None:
        # Some shards may be rewritten while the manifest still describes the old ones: no check of them would mean anything.
        return Verification(problems=[unfinished_line(dataset, unfinished)])
    with opened_tokenizer(dataset) as tokenizer:
        found.problems += _tokenizer_problems(dataset, manifest, tokenizer)
    checker = _Checker(dataset, manifest, tokenizer.special, _rewritten(dataset))
    shards = _shards(manifest)
    drawn = _sample(len(shards), share, seed)
    splits = _SplitNames(dataset)
    with show_progress("verifying", sum(shards[i][1].rows for i in drawn), "rows") as advance:
        for number, (split, entry) in enumerate(shards):
            try:
                if number not in drawn:
                    check_size(entry.shard_in(dataset), manifest.layout(), entry.rows)
                    continue
                found.problems += splits.add(split, checker.check(entry, advance))
            except MoseError as error:
                found.problems.append(str(error))
            found.shards += 1
            found.rows += entry.rows
    found.num_bytes = checker.num_bytes
    found.problems += _total_problems(dataset, manifest)
    found.problems += ledger_problems(dataset, manifest.statistics.get("ledger"))
    found.seconds = time.perf_counter() - started
    return found


def _shards(manifest: Manifest) -> list[tuple[str, ShardEntry]]:
    """All shards with their splits, smaller splits first."""
    splits = sorted(manifest.splits, key=manifest.rows)
    return [(split, entry) for split in splits for entry in manifest.splits[split]]


def _sample(count: int, share: float, seed: int) -> set[int]:
    wanted = count if share == 1 else max(1, round(count * share))
    return set(generator(seed, "verify").permutation(count)[:wanted].tolist())


def _rewritten(dataset: Path) -> frozenset[str]:
    """Shards with removed files: a mixed row that lost snippets need not alternate any more."""
    return frozenset(path for removal in read_removed(dataset) for path in removal.shards)


def _tokenizer_problems(dataset: Path, manifest: Manifest, tokenizer: Tokenizer) -> list[str]:
    if tokenizer.fingerprint() == manifest.tokenizer_fingerprint:
        return []
    path, found, expected = dataset / tokenizer.path.name, tokenizer.fingerprint(), manifest.tokenizer_fingerprint
    return [f"{path}: fingerprint is {found}, {MANIFEST_NAME} says {expected}: not the tokenizer of these shards"]


class _SplitNames:
    """Checks that no repository is in two splits; holds an 8-byte hash per repository instead of its name."""

    def __init__(self, dataset: Path):
        self._dataset = dataset
        self._earlier: dict[bytes, str] = {}
        self._current: dict[bytes, str] = {}
        self._split = ""
        self._is_reported = False

    def add(self, split: str, names: Iterable[str]) -> list[str]:
        """Add the repositories of one shard; reports the first one that is in an earlier split too, once per data set."""
        if split != self._split:
            self._earlier.update(self._current)
            self._current, self._split = {}, split
        for name in sorted(names):
            mark = hashlib.blake2b(name.encode("utf-8"), digest_size=8).digest()
            if mark in self._earlier and not self._is_reported:
                self._is_reported = True
                where = f"is in {self._earlier[mark]} and in {split}"
                return [f"{self._dataset}: repository {name} {where}; expected one split only"]
            self._current[mark] = split
        return []


def _total_problems(dataset: Path, manifest: Manifest) -> list[str]:
    """Counts in the statistics that differ from the sums over the shard entries."""
    problems = []
    for split, counts in manifest.statistics.get("splits", {}).items():
        for name, found in (("rows", manifest.rows(split)), ("tokens", manifest.tokens(split))):
            if counts[name] != found:
                path = dataset / MANIFEST_NAME
                problems.append(f"{path}: statistics.splits.{split}.{name} is {counts[name]}, its shards hold {found}")
    return problems


class _Checker:
    """Checks single shards, and counts the bytes that it read."""

    def __init__(self, dataset: Path, manifest: Manifest, special: SpecialTokens, rewritten: frozenset[str]):
        self._dataset, self._manifest, self._special, self._rewritten = dataset, manifest, special, rewritten
        self._layout = manifest.layout()
        self.num_bytes = 0

    def check(self, entry: ShardEntry, advance: Callable[[int], None]) -> list[str]:
        """Check one shard, its index and its lineage; returns the names of its repositories.

        Raises:
            MoseError: the first problem, with file and row.
        """
        shard, lineage = entry.shard_in(self._dataset), entry.lineage_in(self._dataset)
        check_size(shard, self._layout, entry.rows)
        index = entry.index_in(self._dataset)
        for path, expected in ((index, entry.index_sha256), (lineage, entry.lineage_sha256)):
            self.num_bytes += _check_sum(path, expected)
        index_R = read_index(index, entry.rows)
        table, digest, wrong = Lineage(lineage, entry.rows), hashlib.sha256(), ""
        records = _Records(shard, shard_number(entry), self._layout)
        # Read to the end even after a problem: the SHA-256 of the whole file shows whether the problem is damage.
        for block in read_blocks(shard, self._layout, entry.rows, digest.update):
            try:
                if not wrong:
                    self._check_block(entry, block, index_R[block.first_row :][: len(block.records)], table, records)
            except MoseError as error:
                wrong = str(error)
            advance(len(block.records))
        self.num_bytes += entry.num_bytes
        _compare_sum(shard, digest.hexdigest(), entry.sha256, wrong)
        if wrong:
            raise MoseError(wrong)
        tokens = int(index_R["num_tokens"].sum())
        if tokens != entry.tokens:
            raise MoseError(f"{shard}: holds {tokens} tokens, {MANIFEST_NAME} says {entry.tokens}")
        return table.repositories

    def _check_block(
        self, entry: ShardEntry, block: RecordBlock, index_R: NDArray[np.void], table: Lineage, records: "_Records"
    ) -> None:
        shard, labels = self._dataset / entry.path, labels_of(index_R)
        _check_tokens(shard, block.first_row, block.tokens_RT, labels, self._special, self._manifest.vocabulary_size)
        records.check(block, labels)
        differs = np.flatnonzero(token_checksums(block.tokens_RT) != index_R["crc32"])
        if len(differs):
            row = block.first_row + int(differs[0])
            raise MoseError(f"{shard}: row {row}: CRC-32 of its tokens is not the one that {entry.index_path} says")
        alternating = self._manifest.packing_mode.alternates and entry.path not in self._rewritten
        check_lineage(table, block.first_row, block.tokens_RT, labels, self._special, alternating=alternating)


def _check_sum(path: Path, expected: str) -> int:
    """Check a file's SHA-256; returns its size in bytes."""
    if not path.is_file():
        raise MoseError(f"{path}: no such file, but {MANIFEST_NAME} lists it")
    _compare_sum(path, file_sha256(path), expected)
    return path.stat().st_size


def _compare_sum(path: Path, found: str, expected: str, more: str = "") -> None:
    if found != expected:
        more = more.removeprefix(f"{path}: ")
        message = f": damaged or replaced{f'; {more}' if more else ''}"
        raise MoseError(f"{path}: SHA-256 is {found[:16]}..., {MANIFEST_NAME} says {expected[:16]}...{message}")


class _Records:
    """The expected bytes of a shard's records, made by the writer that packing uses."""

    def __init__(self, path: Path, shard: int, layout: RecordLayout):
        self._path, self._layout = path, layout
        self._sink = io.BytesIO()
        self._writer = ShardWriter(self._sink, layout, shard)

    def check(self, block: RecordBlock, labels: RowLabels) -> None:
        """Compare every byte of the next block with the record that its tokens and the labels of the index give.

        Raises:
            MoseError: the first row that differs.
        """
        self._sink.seek(0)
        self._writer.write_rows(block.tokens_RT, labels)
        expected = np.frombuffer(self._sink.getbuffer(), np.uint8)[: block.records.size].reshape(block.records.shape)
        differs_R = (block.records != expected).any(axis=1)
        if not differs_R.any():
            return
        place, start = int(differs_R.argmax()), self._layout.json_offset
        row, found = block.first_row + place, block.records[place]
        if np.array_equal(found[start:], expected[place, start:]):
            raise MoseError(
                f"{self._path}: row {row}: its record differs from what packing writes: a header, or zeros between its members"
            )
        said = found[start:].tobytes().rstrip(b"\0").decode("ascii", "replace")
        message = f"mixed {labels.mixed[place]}, num_tokens {labels.num_tokens[place]}, num_snippets {labels.num_snippets[place]}"
        raise MoseError(f"{self._path}: row {row}: its .json member is {said}, its index says {message}")


def _check_tokens(path: Path, start: int, rows_RT: TOKENS, labels: RowLabels, special: SpecialTokens, vocabulary: int) -> None:
    """Check token ids, padding, `<sep>` and `<cls>` of a block of rows that begins with row `start` of the shard.

    Whole-block array operations decide; `check_row`, which works row by row, only explains the first wrong row.
    """
    if rows_RT.max() >= vocabulary:
        row = int(rows_RT.max(axis=1).argmax())
        raise MoseError(f"{path}: row {start + row}: token {rows_RT[row].max()}, the vocabulary has {vocabulary}")
    length, num_tokens_R = rows_RT.shape[1], labels.num_tokens
    is_empty_R = num_tokens_R == 0
    start_R = np.clip(length - num_tokens_R, 0, length - 1)
    wrong_R = (rows_RT[np.arange(len(rows_RT)), start_R] != special.sep) | (rows_RT[:, -1] != special.cls) | (num_tokens_R < 3)
    wrong_R |= np.count_nonzero(rows_RT == special.cls, axis=1) != 1
    is_text_RT = rows_RT != special.pad
    # The count and the first position of the text match the label, so that no padding can be inside the text.
    wrong_R |= is_text_RT.argmax(axis=1) != start_R
    wrong_R &= ~is_empty_R
    wrong_R |= np.count_nonzero(is_text_RT, axis=1) != num_tokens_R
    wrong_R |= (rows_RT == special.mask).any(axis=1)
    wrong_R |= (np.count_nonzero(rows_RT == special.sep, axis=1) != labels.num_snippets) | (num_tokens_R > length)
    if wrong_R.any():
        row = int(wrong_R.argmax())
        said = check_row(rows_RT[row], int(labels.num_tokens[row]), int(labels.num_snippets[row]), special)
        raise MoseError(f"{path}: row {start + row}: {said or 'a <pad>, <cls> or <mask> stands among the text'}")


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("dataset", type=str, help="Folder or URL of the data set.")
    parser.add_argument(
        "--sample",
        type=float,
        default=1.0,
        help="Share of the shards to read, e.g. .05 for a quick check; sizes of all are checked.",
    )
    parser.add_argument("--seed", type=int, default=0, help="Which shards a sample holds.")


def _run(parsed: Namespace) -> int:
    found = verify(storage_path(parsed.dataset), parsed.sample, parsed.seed)
    for problem in found.problems:
        print(f"mose-data: error: {problem}", file=sys.stderr)
    if not found.problems:
        print(f"ok: {found.summary()}")
    return BAD_INPUT if found.problems else 0


COMMAND = Command("Check every shard, index and lineage table of a data set against its manifest.", _add_arguments, _run)

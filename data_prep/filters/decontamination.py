"""Finds and drops pieces that share n consecutive words with an evaluation file, so that scores do not measure memorisation.

The texts are compared by hashes of word n-grams: a Bloom filter rejects most n-grams of the training text, and the sorted hashes
of the evaluation files decide the rest, all in numpy and in blocks that fit into a processor's cache.

Letters: W words, P pieces of a file.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.filters.dropped_log import DroppedLog
from data_prep.filters.evaluation_ngrams import EvaluationNgrams
from data_prep.filters.evaluation_texts import read_examples
from data_prep.filters.filters import FilterCounts
from data_prep.filters.word_hashes import Words, find_words, fold, ngram_hashes
from data_prep.sources.repositories import TextFile
from mose.array_types import INT64_ARRAY
from mose.config import require
from mose.files.storage import storage_path

CONTAMINATED = "contaminated"
# Bytes of text whose words are in memory at a time, so that the arrays of words stay in a processor's cache.
_BLOCK_BYTES = 1 << 18
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class DecontaminationConfig:
    """Which evaluation files must not occur in the training text, and how much overlap is too much."""

    files: tuple[str, ...] = ()
    """Evaluation files, paths or URLs: .jsonl, .json, .parquet or plain text, all but parquet also as .gz; empty means none."""
    fields: tuple[str, ...] = ()
    """Fields of an example that hold its text; each file with fields must have one of them. Empty means every string at any
    depth, including paths and URLs."""
    ngram_words: int = 13
    """Drop a piece that shares this many consecutive words with an example. Words are runs of letters, digits and _, without
    regard to case; white space and punctuation are ignored. GPT-3 used 13 (Brown et al. 2020)."""
    min_words: int = 8
    """Texts shorter than ngram_words words must match as a whole; texts shorter than this are ignored and counted."""
    min_distinct_words: int = 5
    """N-grams with fewer distinct words, numbers not counted, are usually tables of numbers and drop nothing."""
    max_examples: int = 10
    """N-grams that more examples than this share are idioms and headers, and drop nothing."""

    def __post_init__(self) -> None:
        require(2 <= self.ngram_words <= 1000, f"decontamination.ngram_words: is {self.ngram_words}, expected 2 to 1000")
        require(
            1 <= self.min_words <= self.ngram_words,
            f"decontamination.min_words: is {self.min_words}, expected 1 to ngram_words, {self.ngram_words}",
        )
        require(
            0 <= self.min_distinct_words <= self.min_words,
            f"decontamination.min_distinct_words: is {self.min_distinct_words}, expected 0 to min_words, {self.min_words}",
        )
        require(self.max_examples > 0, f"decontamination.max_examples: is {self.max_examples}, expected 1 or more")


@dataclass(frozen=True, slots=True)
class Contamination:
    """What a piece shares with the evaluation files."""

    file: str
    """Name of the evaluation file of the first match."""
    text: str
    """The first match in the training text, with the matches that overlap it; at most 200 characters, on one line."""
    matches: int
    """Number of matching n-grams and whole short texts in the piece."""


@dataclass(frozen=True)
class _Matches:
    """Byte ranges in a text that match the evaluation files, in no particular order."""

    starts: INT64_ARRAY
    ends: INT64_ARRAY
    files: NDArray[np.int32]

    def chosen(self, which: NDArray[Any], offset: int = 0) -> "_Matches":
        """The selected matches (a mask or indices), with `offset` subtracted from their positions."""
        return _Matches(self.starts[which] - offset, self.ends[which] - offset, self.files[which])


class Decontaminator:
    """Finds what texts share with the evaluation files of one config; immutable after loading.

    N-grams are compared by 64-bit hashes. Two n-grams collide with probability 2^-64 (2^-59 for the same words in another
    order): 10^12 words against 10^7 n-grams give less than one false match.
    """

    def __init__(self, config: DecontaminationConfig):
        """Read the evaluation files.

        Raises:
            MoseError: a file cannot be read, does not have the format of its suffix, or lacks the fields.
        """
        self._config = config
        ngrams = EvaluationNgrams(config.ngram_words, config.min_words, config.min_distinct_words)
        for number, file in enumerate(config.files):
            for texts in read_examples(file, config.fields):
                ngrams.add(texts, number)
        self._names = [storage_path(file).name for file in config.files]
        tables = ngrams.tables(config.max_examples)
        self._long = tables.pop(config.ngram_words, None)
        self._short = tables
        self._beginnings = ngrams.beginnings()
        self.num_ngrams = sum(len(table.hashes_S) for table in (self._long, *tables.values()) if table)
        """Number of distinct n-grams and whole short texts in the tables."""
        self.num_short_texts = ngrams.num_short_texts
        """Number of texts that are ignored, because they have fewer than `min_words` words."""

    def find_batch(self, texts: Sequence[bytes], byte_offsets: Sequence[INT64_ARRAY]) -> list[list[Contamination | None]]:
        """What each piece [P] of each UTF-8 text shares with the evaluation files.

        `byte_offsets` [P + 1] per text: the start of each piece, and the end of the last one. A match over several pieces counts
        for each of them. Many texts per call are several times faster if they are small.
        """
        firsts = np.array([0, *itertools.accumulate(len(text) + 1 for text in texts)], dtype=np.int64)
        matches = self._matches(fold(b"\0".join(texts)))
        owners = np.searchsorted(firsts, matches.starts, side="right") - 1
        # Discard matches that span the end of one text and the start of the next.
        inside = matches.ends < firsts[owners + 1]
        found: list[list[Contamination | None]] = [[None] * (len(offsets) - 1) for offsets in byte_offsets]
        for owner in np.unique(owners[inside]).tolist():
            own = matches.chosen(inside & (owners == owner), int(firsts[owner]))
            for piece, contamination in self._by_piece(texts[owner], byte_offsets[owner], own):
                found[owner][piece] = contamination
        return found

    def _matches(self, folded: bytes) -> _Matches:
        nowhere = np.zeros(0, dtype=np.int64)
        found = [_Matches(nowhere, nowhere, nowhere.astype(np.int32))]
        for words, num_known in _word_blocks(folded, self._config.ngram_words - 1):
            for size, positions, files in self._lookups(words):
                # Matches that lie entirely in the repeated words were found with the previous block.
                ends = positions + size
                is_new = ends > num_known
                starts = words.starts_W[positions[is_new]]
                found.append(_Matches(starts, words.ends_W[ends[is_new] - 1], files[is_new]))
        return _Matches(
            np.concatenate([matches.starts for matches in found]),
            np.concatenate([matches.ends for matches in found]),
            np.concatenate([matches.files for matches in found]),
        )

    def _lookups(self, words: Words) -> Iterator[tuple[int, INT64_ARRAY, NDArray[np.int32]]]:
        """For each n-gram size: the index of the first word of each match, and its evaluation file."""
        if self._long:
            size = self._config.ngram_words
            yield size, *self._long.find(ngram_hashes(words.hashes_W, size))
        # Short texts have several sizes. Looking up their common-size beginnings first leaves few candidates for each size.
        beginnings = ngram_hashes(words.hashes_W, self._config.min_words) if self._short else words.hashes_W[:0]
        candidates, _ = self._beginnings.find(beginnings)
        for size, table in self._short.items() if len(candidates) else ():
            hashes_G = ngram_hashes(words.hashes_W, size)
            inside = candidates[candidates < len(hashes_G)]
            found, files = table.find(hashes_G[inside])
            yield size, inside[found], files

    def _by_piece(self, text: bytes, byte_offsets: INT64_ARRAY, matches: _Matches) -> Iterator[tuple[int, Contamination]]:
        last_piece = len(byte_offsets) - 2
        firsts = np.clip(np.searchsorted(byte_offsets, matches.starts, side="right") - 1, 0, last_piece)
        lasts = np.clip(np.searchsorted(byte_offsets, matches.ends - 1, side="right") - 1, 0, last_piece)
        for piece in range(int(firsts.min(initial=0)), last_piece + 1):
            own = matches.chosen((firsts <= piece) & (piece <= lasts))
            if len(own.starts):
                yield piece, Contamination(self._names[own.files[own.starts.argmin()]], _shown(text, own), len(own.starts))


def drop_contaminated(
    decontaminator: Decontaminator | None,
    files: Sequence[TextFile],
    byte_offsets: Sequence[INT64_ARRAY],
    counts: FilterCounts,
    dropped: DroppedLog | None = None,
) -> list[NDArray[np.bool_]]:
    """A mask [P] per file of the pieces to keep; counts and logs the others. Keeps all pieces without a decontaminator."""
    if decontaminator is None:
        return [np.ones(len(offsets) - 1, dtype=np.bool_) for offsets in byte_offsets]
    found = decontaminator.find_batch([file.utf8 for file in files], byte_offsets)
    for file, offsets, pieces in zip(files, byte_offsets, found, strict=True):
        for piece, hit in enumerate(pieces):
            if hit is not None:
                num_bytes = int(offsets[piece + 1] - offsets[piece])
                counts.count_contaminated(hit.file, num_bytes)
                source, detail = file.source, f"{hit.file}: {hit.text}"
                if dropped is not None:
                    dropped.add(source.repository, source.path, source.blob_id, CONTAMINATED, num_bytes, detail)
    return [np.array([hit is None for hit in pieces], dtype=np.bool_) for pieces in found]


def _word_blocks(folded: bytes, num_repeated: int) -> Iterator[tuple[Words, int]]:
    """The words of `folded` in blocks of bounded size; each begins with the last `num_repeated` words of the previous block.

    The repetition lets n-grams span blocks. Yields the words and how many of them are repeated.
    """
    known = find_words(b"")
    start = 0
    while start < len(folded):
        end = min(start + _BLOCK_BYTES, len(folded))
        if end < len(folded):
            # End the block between words; a run of word bytes that is longer than a block becomes one long block.
            space = folded.rfind(b"\0", start, end)
            space = space if space >= 0 else folded.find(b"\0", end)
            end = space + 1 if space >= 0 else len(folded)
        words = known.joined(find_words(folded[start:end], start))
        yield words, len(known)
        known = words.last(num_repeated)
        start = end


def _shown(text: bytes, matches: _Matches) -> str:
    """The first match and those that overlap it, on one line."""
    order = np.argsort(matches.starts, kind="stable")
    start = end = int(matches.starts[order[0]])
    for index in order.tolist():
        if matches.starts[index] > end:
            break
        end = max(end, int(matches.ends[index]))
    # A character has at most 4 bytes.
    return " ".join(text[start : min(end, start + 4 * _SHOWN_CHARACTERS)].decode("utf-8", "replace").split())[:_SHOWN_CHARACTERS]

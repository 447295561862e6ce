"""Collects the n-grams of evaluation files: every n consecutive words of their texts, and shorter texts as a whole.

Letters: T texts, W words, G n-grams.
"""

import itertools
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from data_prep.filters.ngram_table import INT32_ARRAY, NgramTable, ngram_table
from data_prep.filters.word_hashes import Words, find_words, fold, ngram_hashes
from mose.array_types import INT64_ARRAY
from mose.seeding import UINT64_ARRAY

# Bytes of text hashed at a time.
_BATCH_BYTES = 1 << 18
# Replaces every word that begins with a digit; 0, because `_says_something` expects it first after sorting.
_NUMBER = np.uint64(0)


class EvaluationNgrams:
    """Collects examples, and then builds one table per n-gram size."""

    def __init__(self, ngram_words: int, min_words: int, min_distinct_words: int):
        self._ngram_words, self._min_words, self._min_distinct_words = ngram_words, min_words, min_distinct_words
        self._file_of_example: list[int] = []
        self._texts: list[bytes] = []
        self._example_of_text: list[int] = []
        self._waiting_bytes = 0
        sizes = range(min_words, ngram_words + 1)
        self._hashes: dict[int, list[UINT64_ARRAY]] = {size: [] for size in sizes}
        self._examples: dict[int, list[INT32_ARRAY]] = {size: [] for size in sizes}
        self._beginnings: list[UINT64_ARRAY] = []
        self.num_short_texts = 0
        """Number of texts with at least one word, but fewer than `min_words`."""

    def add(self, texts: Iterable[str], file: int) -> None:
        """Add the texts of one example of evaluation file number `file`."""
        for text in texts:
            # A JSON escape such as \\ud800 decodes to a lone surrogate, which only this error handler can encode.
            content = text.encode("utf-8", "surrogatepass")
            self._texts.append(content)
            self._example_of_text.append(len(self._file_of_example))
            self._waiting_bytes += len(content)
        self._file_of_example.append(file)
        if self._waiting_bytes >= _BATCH_BYTES:
            self._hash_waiting()

    def tables(self, max_examples: int) -> dict[int, NgramTable]:
        """The tables by n-gram size, without n-grams that occur in more than `max_examples` examples."""
        self._hash_waiting()
        files = np.array(self._file_of_example, dtype=np.int32)
        tables = {}
        for size, hashes in self._hashes.items():
            if hashes:
                tables[size] = ngram_table(np.concatenate(hashes), np.concatenate(self._examples[size]), files, max_examples)
        return tables

    def beginnings(self) -> NgramTable:
        """The first `min_words` words of every short text; call it after `tables`, which hashes the last batch.

        A text of any length in [`min_words`, `ngram_words`) begins with such an n-gram, so one look-up excludes most positions.
        """
        hashes = np.concatenate([np.zeros(0, dtype=np.uint64), *self._beginnings])
        return ngram_table(hashes, np.zeros(len(hashes), dtype=np.int32), np.zeros(1, dtype=np.int32), max_examples=1)

    def _hash_waiting(self) -> None:
        firsts_T = np.array([0, *itertools.accumulate(len(text) + 1 for text in self._texts)], dtype=np.int64)[:-1]
        folded = fold(b"\0".join(self._texts))
        words = find_words(folded)
        first_bytes_W = np.frombuffer(folded, dtype=np.uint8)[words.starts_W]
        is_number_W = (first_bytes_W >= ord("0")) & (first_bytes_W <= ord("9"))
        said_W = np.where(is_number_W, _NUMBER, words.hashes_W)
        examples_T = np.array(self._example_of_text, dtype=np.int32)
        text_W = np.searchsorted(firsts_T, words.starts_W, side="right") - 1
        num_words_T = np.bincount(text_W, minlength=len(firsts_T))
        self._add_grams(words, said_W, text_W, examples_T)
        self._add_short(words, said_W, num_words_T, examples_T)
        self.num_short_texts += int(np.count_nonzero((num_words_T > 0) & (num_words_T < self._min_words)))
        self._texts, self._example_of_text, self._waiting_bytes = [], [], 0

    def _add_grams(self, words: Words, said_W: UINT64_ARRAY, text_W: INT64_ARRAY, examples_T: INT32_ARRAY) -> None:
        size = self._ngram_words
        # First and last word in the same text: an n-gram must not span two texts of the batch.
        firsts = np.flatnonzero(text_W[: max(len(text_W) - size + 1, 0)] == text_W[size - 1 :])
        firsts = firsts[self._says_something(said_W, firsts, size)]
        if len(firsts):
            self._hashes[size].append(ngram_hashes(words.hashes_W, size)[firsts])
            self._examples[size].append(examples_T[text_W[firsts]])

    def _add_short(self, words: Words, said_W: UINT64_ARRAY, num_words_T: INT64_ARRAY, examples_T: INT32_ARRAY) -> None:
        first_words_T = np.cumsum(num_words_T) - num_words_T
        for size in range(self._min_words, self._ngram_words):
            texts = np.flatnonzero(num_words_T == size)
            texts = texts[self._says_something(said_W, first_words_T[texts], size)]
            if len(texts):
                firsts = first_words_T[texts]
                self._hashes[size].append(ngram_hashes(words.hashes_W, size)[firsts])
                self._examples[size].append(examples_T[texts])
                self._beginnings.append(ngram_hashes(words.hashes_W, self._min_words)[firsts])

    def _says_something(self, said_W: UINT64_ARRAY, firsts_G: INT64_ARRAY, size: int) -> NDArray[np.bool_]:
        """Whether each n-gram of `size` words from `firsts_G` has enough distinct words; numbers in `said_W` are `_NUMBER`."""
        words_G = np.sort(said_W[firsts_G[:, None] + np.arange(size)], axis=1)
        num_distinct_G = 1 + np.count_nonzero(words_G[:, 1:] != words_G[:, :-1], axis=1)
        has_number_G = words_G[:, 0] == _NUMBER
        says_something: NDArray[np.bool_] = num_distinct_G - has_number_G >= self._min_distinct_words
        return says_something

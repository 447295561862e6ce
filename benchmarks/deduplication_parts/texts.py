"""Texts of the deduplication benchmarks: natural ones, planted mutants of them, and all of their pairs above a similarity."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy import sparse

from data_prep.dedup.minhash.shingles import normalize, shingle_set

SMALLEST, LARGEST = 200, 50_000


def natural_texts(paths: Sequence[Path], number: int, seed: int) -> list[str]:
    """A seeded sample of the distinct texts of parquet files, normalised, between 200 and 50,000 characters."""
    texts: dict[str, None] = {}
    for path in paths:
        names = pq.read_schema(path).names
        for name in ("code_a", "code_b", "func1_CSN", "func2", "files"):
            if name in names:
                for value in pq.read_table(path, columns=[name]).column(0).to_pylist():
                    found = [file["content"] for file in value] if name == "files" else [value]
                    texts.update(dict.fromkeys(normalize(text) for text in found if text))
    usable = [text for text in texts if SMALLEST <= len(text) <= LARGEST]
    order = np.random.default_rng(seed).permutation(len(usable))[: number or None]
    return [usable[place] for place in sorted(order.tolist())]


def planted_mutants(texts: Sequence[str], number: int, seed: int) -> list[str]:
    """Copies of random texts in which a random share of the words, up to a sixth, is renamed, dropped or doubled."""
    random = np.random.default_rng([seed, 1])
    mutants = []
    for place in random.integers(0, len(texts), number).tolist():
        words, share = texts[place].split(" "), random.uniform(0.0, 0.16)
        for word in np.flatnonzero(random.random(len(words)) < share).tolist():
            words[word] = ("", words[word] + " " + words[word], f"name{random.integers(10_000)}")[int(random.integers(3))]
        mutants.append(normalize(" ".join(words)))
    return mutants


def similar_pairs(texts: Sequence[str], least: float) -> dict[tuple[int, int], float]:
    """Every pair of texts with at least this exact Jaccard similarity, by a sparse product over all pairs."""
    sets = [shingle_set(text) for text in texts]
    _, columns = np.unique(np.concatenate(sets), return_inverse=True)
    offsets = np.concatenate([[0], np.cumsum([len(found) for found in sets])])
    matrix = sparse.csr_matrix((np.ones(len(columns), np.int32), columns, offsets))
    # A shingle of most texts adds nothing to the choice of pairs but most of the work; it is counted all the same.
    sizes = np.diff(offsets)
    pairs: dict[tuple[int, int], float] = {}
    for start in range(0, len(texts), 256):
        block: Any = (matrix[start : start + 256] @ matrix.T).tocoo()
        first, second, shared = block.row + start, block.col, block.data
        similarity = shared / (sizes[first] + sizes[second] - shared)
        chosen = (first < second) & (similarity >= least)
        pairs.update(
            {(int(a), int(b)): float(s) for a, b, s in zip(first[chosen], second[chosen], similarity[chosen], strict=True)}
        )
    return pairs

"""Documents per second from text to signature, and the recall of the same pairs: ours, datasketch's and rensa's."""

import argparse
import importlib.metadata
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.deduplication_parts.texts import natural_texts, similar_pairs
from data_prep.dedup.minhash.banding import band_keys, candidate_pairs
from data_prep.dedup.minhash.shingles import SHINGLE_CHARACTERS, batches, shingles_of
from data_prep.dedup.minhash.signatures import Method, signatures_of

PLACES, BANDS, ROWS, THRESHOLD = 256, 32, 8, 0.7
Signatures = NDArray[np.uint32]
Side = Callable[[Sequence[str]], Signatures]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Rates and recalls; every repeat runs all sides one after another, and ratios are medians of ratios within a repeat."""
    texts = natural_texts(options.parquet, options.documents or 2000, options.seed)
    pairs = similar_pairs(texts, THRESHOLD)
    sides: dict[str, Side] = {
        "one_permutation": lambda texts: ours(texts, "one_permutation"),
        "datasketch": datasketch_signatures,
        "rensa RMinHash, one by one": rensa_signatures,
        "rensa RMinHash, in bulk": rensa_in_bulk,
        "classic": lambda texts: ours(texts, "classic"),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    recalls = {}
    for _ in range(options.repeats):
        for name, side in sides.items():
            started = time.process_time()
            signatures = side(texts)
            rates[name].append(len(texts) / (time.process_time() - started))
            recalls[name] = recall(signatures, pairs)
    baseline = "one_permutation"
    return {
        "documents": len(texts),
        "mean_characters": round(statistics.mean(map(len, texts))),
        "natural_pairs": len(pairs),
        "versions": {name: importlib.metadata.version(name) for name in ("numpy", "datasketch", "rensa")},
        "documents_per_second": {name: [round(rate) for rate in found] for name, found in rates.items()},
        "ratio_of_one_permutation": {
            name: round(statistics.median(a / b for a, b in zip(rates[baseline], found, strict=True)), 2)
            for name, found in rates.items()
        },
        "recall_of_natural_pairs": {name: round(found, 4) for name, found in recalls.items()},
    }


def ours(texts: Sequence[str], method: Method) -> Signatures:
    """The project's signatures."""
    return np.concatenate([signatures_of(shingles_of(texts[part]), PLACES, method) for part in batches(texts)])


def grams(text: str) -> set[str]:
    """The set of character 5-grams, as others take it."""
    return {text[start : start + SHINGLE_CHARACTERS] for start in range(len(text) - SHINGLE_CHARACTERS + 1)}


def datasketch_signatures(texts: Sequence[str]) -> Signatures:
    """datasketch's, by its batch update."""
    from datasketch import MinHash

    found = []
    for text in texts:
        minhash = MinHash(num_perm=PLACES)
        minhash.update_batch([gram.encode() for gram in grams(text)])
        found.append(minhash.hashvalues)
    return np.array(found).astype(np.uint32)


def rensa_signatures(texts: Sequence[str]) -> Signatures:
    """rensa's R-MinHash, one object per text."""
    from rensa import RMinHash

    found = []
    for text in texts:
        minhash = RMinHash(num_perm=PLACES, seed=42)
        minhash.update(list(grams(text)))
        found.append(minhash.digest())
    return np.array(found, np.uint32)


def rensa_in_bulk(texts: Sequence[str]) -> Signatures:
    """rensa's R-MinHash by its bulk function, in batches, so that the sets of all texts are not in memory at once."""
    from rensa import RMinHash

    found: list[Any] = []
    for start in range(0, len(texts), 64):
        found += RMinHash.digests_from_token_sets([grams(text) for text in texts[start : start + 64]], PLACES, 42)
    return np.array(found, np.uint32)


def recall(signatures: Signatures, pairs: dict[tuple[int, int], float]) -> float:
    """The share of the true pairs that share a band."""
    found = candidates(signatures)
    return sum(pair in found for pair in pairs) / len(pairs)


def candidates(signatures: Signatures) -> set[tuple[int, int]]:
    """All pairs that share a band."""
    keys = band_keys(signatures, BANDS, ROWS, 0).ravel()
    documents = np.repeat(np.arange(len(signatures), dtype=np.uint64), BANDS)
    order = np.lexsort((documents, keys))
    first, second, _ = candidate_pairs(keys[order], documents[order], len(signatures))
    return set(zip(first.tolist(), second.tolist(), strict=True))

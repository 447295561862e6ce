"""Precision and recall at .7 against the exact similarity of all pairs, on natural texts and on planted mutants of them."""

import argparse
from typing import Any

from benchmarks.deduplication_parts.signatures import BANDS, ROWS, THRESHOLD, candidates, ours
from benchmarks.deduplication_parts.texts import natural_texts, planted_mutants, similar_pairs
from data_prep.dedup.minhash.banding import collision_probability
from data_prep.dedup.minhash.shingles import jaccard, shingle_set
from data_prep.dedup.minhash.signatures import Method


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of both methods on both kinds of pairs, before and after the exact comparison."""
    texts = natural_texts(options.parquet, options.documents or 2000, options.seed)
    mutants = planted_mutants(texts, len(texts) // 5, options.seed)
    both = [*texts, *mutants]
    pairs = similar_pairs(both, THRESHOLD)
    natural = {pair: s for pair, s in pairs.items() if pair[1] < len(texts)}
    planted = {pair: s for pair, s in pairs.items() if pair[0] < len(texts) <= pair[1]}
    methods: tuple[Method, ...] = ("one_permutation", "classic")
    return {
        "documents": len(texts),
        "mutants": len(mutants),
        "threshold": THRESHOLD,
        "bands": [BANDS, ROWS],
        "natural_pairs": len(natural),
        "planted_pairs": len(planted),
        **{method: scores(both, method, natural, planted, len(texts)) for method in methods},
    }


def scores(
    texts: list[str],
    method: Method,
    natural: dict[tuple[int, int], float],
    planted: dict[tuple[int, int], float],
    num_natural: int,
) -> dict[str, Any]:
    """Recall, precision of the candidates and of the verified pairs, and the recall that the S-curve predicts."""
    found = candidates(ours(texts, method))
    sets = [shingle_set(text) for text in texts]
    verified = {(a, b) for a, b in found if jaccard(sets[a], sets[b]) >= THRESHOLD}
    result: dict[str, Any] = {}
    for name, truth in (("natural", natural), ("planted", planted)):
        is_planted = name == "planted"
        chosen = {pair for pair in found if (pair[0] < num_natural <= pair[1] if is_planted else pair[1] < num_natural)}
        result[name] = {
            "candidates": len(chosen),
            "precision_of_candidates": round(len(chosen & truth.keys()) / max(len(chosen), 1), 4),
            "precision_verified": round(len(chosen & verified & truth.keys()) / max(len(chosen & verified), 1), 4),
            "recall": round(len(chosen & verified & truth.keys()) / len(truth), 4),
            "recall_predicted_by_the_curve": round(
                sum(collision_probability(similarity, BANDS, ROWS) for similarity in truth.values()) / len(truth), 4
            ),
        }
    return result

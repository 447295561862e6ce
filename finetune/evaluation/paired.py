"""The difference of two models on the same queries: what both find hard cancels, so its interval is the one to judge by.

Letters: S seeds, Q queries.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.metrics import Score, bootstrap, bootstrap_over_seeds, hits_at_1, reciprocal_ranks
from finetune.evaluation.results import Evaluation
from mose.errors import MoseError


def asked_alike(first: Evaluation, second: Evaluation) -> bool:
    """Whether both were scored on the same queries among the same candidates."""
    names = ("split", "seed", "queries", "corpus", "candidates", "query_places", "query_repositories")
    return all(getattr(first, name) == getattr(second, name) for name in names)


def mrr_difference(first: Evaluation, second: Evaluation, name: str) -> Score | None:
    """MRR of `first` minus that of `second` at the exit or baseline `name`; None where they cannot be paired."""
    if not asked_alike(first, second) or name not in first.ranks or name not in second.ranks:
        return None
    return bootstrap(_values(first, name, "mrr") - _values(second, name, "mrr"), first.seed, first.query_repositories)


def difference_over_seeds(firsts: Sequence[Evaluation], seconds: Sequence[Evaluation], name: str, measure: str) -> Score:
    """`measure` (mrr or recall_at_1) of `firsts` minus that of `seconds` at the exit `name`, one evaluation of each per seed.

    Raises:
        MoseError: two evaluations were not made on the same queries and candidates.
    """
    reference = firsts[0]
    for evaluation in (*firsts, *seconds):
        if not asked_alike(reference, evaluation):
            raise MoseError(f"{evaluation.checkpoint}: scored on other queries or candidates than {reference.checkpoint}")
    pairs = zip(firsts, seconds, strict=True)
    differences_SQ = np.stack([_values(a, name, measure) - _values(b, name, measure) for a, b in pairs])
    return bootstrap_over_seeds(differences_SQ, reference.seed, reference.query_repositories)


def _values(evaluation: Evaluation, name: str, measure: str) -> NDArray[np.float64]:
    ranks_Q = np.array(evaluation.ranks[name], dtype=np.int64)
    return reciprocal_ranks(ranks_Q) if measure == "mrr" else hits_at_1(ranks_Q)

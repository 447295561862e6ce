"""The difference of two models on the same queries: what both find hard cancels, so its interval is the one to judge by."""

import numpy as np

from finetune.evaluation.metrics import Score, bootstrap, reciprocal_ranks
from finetune.evaluation.results import Evaluation


def asked_alike(first: Evaluation, second: Evaluation) -> bool:
    """Whether both were scored on the same queries among the same candidates."""
    names = ("split", "seed", "queries", "corpus", "candidates", "query_places", "query_repositories")
    return all(getattr(first, name) == getattr(second, name) for name in names)


def mrr_difference(first: Evaluation, second: Evaluation, name: str) -> Score | None:
    """MRR of `first` minus that of `second` at the exit or baseline `name`; None where they cannot be paired."""
    if not asked_alike(first, second) or name not in first.ranks or name not in second.ranks:
        return None
    found = [reciprocal_ranks(np.array(evaluation.ranks[name], dtype=np.int64)) for evaluation in (first, second)]
    return bootstrap(found[0] - found[1], first.seed, first.query_repositories)

"""Which languages go in, and how often: lists, and weights that repeat or leave out files by a hash of their place."""

import difflib
import math
from collections.abc import Iterable, Mapping

from data_prep.sources.detection.rules import load_rules
from mose.config import require
from mose.seeding import derive_key

LARGEST_WEIGHT = 100.0


def check_languages(field: str, names: Iterable[str]) -> None:
    """Check that each name is a language of GitHub Linguist, in any case, or Unknown.

    Raises:
        MoseError: a name is none; the message gives the nearest one.
    """
    wanted = list(names)
    known = {name.lower(): name for name in (*load_rules().types, "Unknown")} if wanted else {}
    for name in wanted:
        near = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f" (did you mean {known[near[0]]}?)" if near else ""
        require(name.lower() in known, f"{field}: {name!r} is no language of GitHub Linguist{hint}")


def check_weights(weights: Mapping[str, float]) -> None:
    """Check names and range of the weights.

    Raises:
        MoseError: a name is no language, or a weight is negative or above 100.
    """
    check_languages("language_weights", weights)
    for name, weight in weights.items():
        require(0 <= weight <= LARGEST_WEIGHT, f"language_weights: {name}: is {weight}, expected 0 to {LARGEST_WEIGHT:g}")


def copies_of(language: str, place: str, weights: Mapping[str, float], seed: int) -> int:
    """How often a file goes in: its language's weight, rounded up or down by a hash of its place (repository and path).

    On average the weight is kept, and the outcome depends on neither the order of files nor the number of tasks.
    """
    weight = next((value for name, value in weights.items() if name.lower() == language.lower()), 1.0)
    whole = math.floor(weight)
    return whole + (derive_key(seed, "language weight", place) / 2**64 < weight - whole)

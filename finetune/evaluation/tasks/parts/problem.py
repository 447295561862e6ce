"""What a benchmark asks of a model: texts to embed, and a judge that turns similarities into values per query.

Letters: Q queries, K documents, U units that are scored (queries, or pairs).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.ranking import Similarities
from finetune.retrieval.prompts import Prompt
from mose.seeding import generator


@dataclass(frozen=True)
class Options:
    """How the files of a benchmark are read."""

    split: str = "held_out"
    distractors: int = 999
    max_queries: int = 0
    """Score only this many queries of each part, drawn with the seed; 0 scores all. Documents stay whole."""
    seed: int = 0

    def draw_queries(self, count: int) -> NDArray[np.int64]:
        """Places of the queries to score, ascending."""
        if not 0 < self.max_queries < count:
            return np.arange(count)
        return np.sort(generator(self.seed, "queries").choice(count, size=self.max_queries, replace=False))


@dataclass(frozen=True)
class Texts:
    """One list of texts of a task. `role` (query or document) is for models that embed questions differently from answers."""

    name: str
    role: str
    prompts: Sequence[Prompt]


@dataclass(frozen=True)
class Values:
    """One measure of one model by unit. The score is the ratio of the sums, so that F1 is resampled as a mean is.

    A mean has denominators of 1; precision has hits over predictions.
    """

    numerator_U: NDArray[np.float64]
    denominator_U: NDArray[np.float64]

    @classmethod
    def mean(cls, values_U: NDArray[np.floating] | NDArray[np.bool_]) -> "Values":
        """A measure that is a mean over the units."""
        return cls(values_U.astype(np.float64), np.ones(len(values_U)))

    @property
    def score(self) -> float:
        """The score on all units; 0 where the denominator is 0, as in scikit-learn."""
        denominator = float(self.denominator_U.sum())
        return float(self.numerator_U.sum()) / denominator if denominator else 0.0


@dataclass(frozen=True)
class Judged:
    """Values of one model by measure, and, where each query has one own document, their similarity [Q]."""

    values: dict[str, Values]
    own_Q: NDArray[np.float64] | None = None


class Judge(Protocol):
    """Turns the similarities of one model into values; it sees nothing else of the model."""

    def judge(self, similarities: Similarities) -> Judged:
        """Values by measure; `similarities` gives [q, K] for a slice of the queries."""


@dataclass(frozen=True)
class Part:
    """One part of a task with a score of its own: a language, a direction."""

    name: str
    documents: Texts
    judge: Judge
    queries: Texts | None = None
    """None: the queries are documents."""
    query_places: NDArray[np.int64] | None = None
    """Places [Q] of the queries in that list; None: all of it, in order."""
    groups: Sequence[str] = ()
    """The repository or problem of each unit: units of one are alike, so whole groups are resampled."""
    facts: Mapping[str, int] = field(default_factory=dict)
    """Counts for the result: queries, documents, candidates."""
    note: str = ""
    """A line for the console on what differs from the published set-up."""

    def query_prompts(self) -> Sequence[Prompt]:
        """The prompts of the queries."""
        prompts = (self.queries or self.documents).prompts
        return prompts if self.query_places is None else [prompts[place] for place in self.query_places.tolist()]


@dataclass(frozen=True)
class Benchmark:
    """A task as `mose-finetune benchmark` runs it for any number of models."""

    name: str
    """Its name in the config's `tasks`."""
    title: str
    """Its name in tables and figures."""
    files: str
    """The files it reads, in their order, in a few words."""
    measures: Mapping[str, str]
    """Column titles by measure; the first measure is the one that figures and tests between exits use."""
    read: Callable[[Sequence[Path], Options], list[Part]]
    """Reads the files.

    Raises:
        MoseError: a file cannot be used; one line.
    """

    @property
    def main_measure(self) -> str:
        """The measure of figures and tests."""
        return next(iter(self.measures))

"""`benchmark.json`: scores with intervals of every exit of every model by task and part, and the tests between exits.

It holds no times and no machine's name: a run that was killed and resumed writes the same bytes as one that was not.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.evaluation.benchmark.statistics import Difference, SimilarityTest
from finetune.evaluation.metrics import Score
from mose.files.atomic_file import write_json

RESULT_NAME = "benchmark.json"
MEAN = "mean"
Scores = Mapping[str, Mapping[str, Mapping[str, Score]]]


@dataclass(frozen=True)
class TaskResult:
    """What a task was scored on."""

    title: str
    measures: Mapping[str, str]
    files: Mapping[str, str]
    """SHA-256 by file name."""
    parts: Mapping[str, Mapping[str, int]]
    """Counts of each part; the only part of a task has the name ''."""
    notes: Sequence[str]

    @property
    def main_measure(self) -> str:
        """The measure of figures and tests."""
        return next(iter(self.measures))

    @property
    def overall(self) -> str:
        """The part that stands for the task: the mean of several, or the only one."""
        return MEAN if len(self.parts) > 1 else next(iter(self.parts))


@dataclass(frozen=True)
class ExitResult:
    """Cost and scores of one exit; a model without exits has one, named `-`."""

    layer: int | None
    parameters: int | None
    gflops_per_row: float | None
    scores: Scores
    """Score by task, part (with `mean`, over parts) and measure; tasks that the model has no answer to are left out."""

    def score(self, task: str, part: str, measure: str) -> Score | None:
        """One score, None where the model has none."""
        return self.scores.get(task, {}).get(part, {}).get(measure)


@dataclass(frozen=True)
class ExitTests:
    """Tests between the exits of one model on one part."""

    measure: str
    differences: Mapping[str, Difference]
    similarities: Mapping[str, SimilarityTest]
    """Of correctly retrieved pairs (Fig. 4); empty where queries have no own document."""


@dataclass(frozen=True)
class ModelResult:
    """One model."""

    model: str
    kind: str
    exits: Mapping[str, ExitResult]
    tests: Mapping[str, Mapping[str, ExitTests]]
    """By task and part; empty for a model with one exit."""
    mteb: Mapping[str, Mapping[str, float]]
    """mteb's main score by mteb task and exit; empty for models that do not embed."""


@dataclass(frozen=True)
class BenchmarkResult:
    """Everything that tables and figures show."""

    split: str
    distractors: int
    seed: int
    flops_tokens: int
    tasks: Mapping[str, TaskResult]
    models: Mapping[str, ModelResult]


def write_result(path: Path, result: BenchmarkResult) -> None:
    """Write it as JSON, atomically."""
    write_json(path, dataclasses.asdict(result))

"""`benchmark.json`: scores with intervals of every exit of every model by task and part, and the tests between exits.

It holds no times and no machine's name: a run that was killed and resumed writes the same bytes as one that was not.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from finetune.evaluation.benchmark.statistics import Difference, SimilarityTest
from finetune.evaluation.metrics import Score
from mose.errors import MoseError
from mose.files.atomic_file import write_json
from mose.files.json_file import parse_json
from mose.files.records import from_plain

RESULT_NAME = "benchmark.json"
MEAN = "mean"
Scores = dict[str, dict[str, dict[str, Score]]]


@dataclass(frozen=True)
class TaskResult:
    """What a task was scored on."""

    title: str
    measures: dict[str, str]
    files: dict[str, str]
    """SHA-256 by file name."""
    parts: dict[str, dict[str, int]]
    """Counts of each part; the only part of a task has the name ''."""
    notes: tuple[str, ...]

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
    differences: dict[str, Difference]
    similarities: dict[str, SimilarityTest]
    """Of correctly retrieved pairs (Fig. 4); empty where queries have no own document."""


@dataclass(frozen=True)
class ModelResult:
    """One model."""

    model: str
    kind: str
    exits: dict[str, ExitResult]
    tests: dict[str, dict[str, ExitTests]]
    """By task and part; empty for a model with one exit."""
    mteb: dict[str, dict[str, float]]
    """mteb's main score by mteb task and exit; empty for models that do not embed."""


@dataclass(frozen=True)
class BenchmarkResult:
    """Everything that tables and figures show."""

    split: str
    distractors: int
    seed: int
    flops_tokens: int
    tasks: dict[str, TaskResult]
    models: dict[str, ModelResult]


def write_result(path: Path, result: BenchmarkResult) -> None:
    """Write it as JSON, atomically."""
    write_json(path, dataclasses.asdict(result))


def read_result(path: Path) -> BenchmarkResult:
    """Read a `benchmark.json`, or the one in a folder.

    Raises:
        MoseError: it is missing, is not JSON, or has another form.
    """
    path = path if path.suffix == ".json" else path / RESULT_NAME
    try:
        return from_plain(BenchmarkResult, parse_json(path.read_bytes()))
    except FileNotFoundError:
        raise MoseError(f"{path}: no such file; expected one written by `mose-finetune benchmark`") from None
    except ValueError as error:
        raise MoseError(f"{path}: not a benchmark result of this version: {error}") from None

"""`evaluation.json`: the scores of one evaluation, written by `evaluate` and read by `--compare` and the report."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from finetune.evaluation.metrics import Score
from mose.errors import MoseError
from mose.files.atomic_file import write_json
from mose.files.json_file import parse_json
from mose.run_directory import EVALUATION_NAME


@dataclass(frozen=True)
class ExitCost:
    """One exit: its layer, parameters of the encoder that ends there, and 10^9 forward operations per row."""

    layer: int
    parameters: int
    gflops_per_row: float


class Result(Protocol):
    """A dataclass, written to evaluation.json field by field; it has these two fields at least."""

    @property
    def flops_tokens(self) -> int:
        """Row length in tokens that GFLOPs are given for."""

    @property
    def exits(self) -> Mapping[str, ExitCost]:
        """Cost and scores of each exit by its name."""


AnyResult = TypeVar("AnyResult", bound=Result)
AnyCost = TypeVar("AnyCost", bound=ExitCost)


@dataclass(frozen=True)
class ExitScores(ExitCost):
    """An exit's scores in a search task."""

    mrr: Score
    recall_at_1: Score


@dataclass(frozen=True)
class RankScores:
    """MRR and recall@1 of one way of ranking."""

    mrr: Score
    recall_at_1: Score


@dataclass(frozen=True)
class Evaluation:
    """Scores of every exit, the baselines on the same candidates, and what they were measured on."""

    checkpoint: str
    pairs: tuple[str, ...]
    split: str
    seed: int
    queries: int
    repositories: int
    corpus: int
    candidates: int
    flops_tokens: int
    chance_mrr: float
    exits: dict[str, ExitScores]
    baselines: dict[str, RankScores]
    """Scores by name: TF-IDF, BM25 and, where asked for, the bag of embeddings."""
    query_places: list[int]
    """Each query's place among the pairs of the split."""
    query_repositories: list[str]
    """Each query's repository."""
    ranks: dict[str, list[int]]
    """Rank of each query's own code, by exit and by baseline: what paired differences are made of."""


def write_evaluation(folder: Path, evaluation: Any) -> None:
    """Write the result of a task, a dataclass, to `folder/evaluation.json`, atomically."""
    write_json(folder / EVALUATION_NAME, dataclasses.asdict(evaluation))


def read_evaluation(path: Path) -> Evaluation:
    """Read an evaluation.json of docstring search, or the one in a folder; errors as in `read_result`."""
    return read_result(path, _from_plain)


def read_result(path: Path, build: Callable[[dict[str, Any]], AnyResult]) -> AnyResult:
    """Read an evaluation.json, or the one in a folder; `build` makes the task's result of its fields.

    Raises:
        MoseError: it is missing, is not JSON, or lacks a field.
    """
    path = path if path.suffix == ".json" else path / EVALUATION_NAME
    try:
        values = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise MoseError(f"{path}: no such file; expected one written by `mose-finetune evaluate`") from None
    except ValueError as error:
        raise MoseError(f"{path}: not JSON: {error}") from None
    try:
        return build(values)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise MoseError(f"{path}: not an evaluation of this version: {error}") from None


def read_exits(kind: type[AnyCost], rows: dict[str, dict[str, Any]]) -> dict[str, AnyCost]:
    """Each exit's cost and scores, read back as `kind`."""

    def read(row: dict[str, Any]) -> AnyCost:
        fields: dict[str, Any] = {name: _score(value) if isinstance(value, dict) else value for name, value in row.items()}
        return kind(**fields)

    return {name: read(row) for name, row in rows.items()}


def _from_plain(values: dict[str, Any]) -> Evaluation:
    exits = read_exits(ExitScores, values["exits"])
    baselines = {name: RankScores(_score(row["mrr"]), _score(row["recall_at_1"])) for name, row in values["baselines"].items()}
    return Evaluation(**{**values, "baselines": baselines, "pairs": tuple(values["pairs"]), "exits": exits})


def _score(plain: dict[str, Any]) -> Score:
    return Score(plain["value"], (plain["interval"][0], plain["interval"][1]))

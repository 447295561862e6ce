"""Reads a study's scores, and compares arms: the mean over seeds, and paired differences over queries, repositories and seeds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.science.jobs import (
    HELD_OUT,
    ICC,
    NSP,
    RANDOM,
    START,
    ablation_arms,
    at_chance,
    cut_arm,
    recipe_exits,
    scores_name,
)
from benchmarks.science.study import ABLATIONS, ICC_NSP, PRETRAINED, SELF_DISTILLED, SINGLE_EXIT, StudyConfig
from finetune.evaluation.metrics import Score
from finetune.evaluation.paired import difference_over_seeds
from finetune.evaluation.results import Evaluation, read_evaluation
from mose.run_directory import EVALUATION_NAME, exit_name

MEASURES = ("mrr", "recall_at_1")


@dataclass(frozen=True)
class Row:
    """One exit of a comparison on one set of queries: the values of each seed on both sides, and the paired differences."""

    exit: str
    seeds: tuple[int, ...]
    first: dict[str, tuple[float, ...]]
    second: dict[str, tuple[float, ...]]
    """By measure, one value for each of `seeds`."""
    difference: dict[str, Score]
    """By measure: first minus second."""
    masked_tokens: tuple[tuple[float, ...], tuple[float, ...]]
    """Held-out MLM loss of each seed on both sides; empty where a side was not pre-trained on its own."""


@dataclass(frozen=True)
class Comparison:
    """Two arms on one set of queries at every exit that both have."""

    part: str
    first: str
    second: str
    file: str
    """Evaluation file; empty: the held-out pairs."""
    queries: int
    repositories: int
    candidates: int
    rows: tuple[Row, ...]


class Results:
    """The results in a study's folder, read when they are asked for; an arm that was not run is left out."""

    def __init__(self, study: StudyConfig):
        self.study, self.folder = study, study.folder
        self.exits = [exit_name(layer) for layer in recipe_exits(study)]

    def scores(self, seed: int, arm: str, file: str = "") -> Evaluation | None:
        """An arm's scores, if they are there."""
        folder = self.folder / f"seed_{seed}" / arm / scores_name(file)
        return read_evaluation(folder) if (folder / EVALUATION_NAME).is_file() else None

    def held_out(self, seed: int, arm: str, name: str = HELD_OUT) -> dict[str, Any] | None:
        """An arm's held-out losses, if they are there."""
        path = self.folder / f"seed_{seed}" / arm / name
        return json.loads(path.read_text("utf-8")) if path.is_file() else None

    def gates(self) -> dict[int, str]:
        """Of each seed whose pre-training is scored: why its in-context accuracy counts as chance, or an empty text."""
        paths = {seed: self.folder / f"seed_{seed}" / ICC / HELD_OUT for seed in self.study.seeds}
        return {seed: at_chance(path) for seed, path in paths.items() if path.is_file()}

    def comparisons(self) -> list[Comparison]:
        """Every comparison of the study's parts that has results, part by part."""
        found = []
        for part, first, second in self._arms():
            for file in ("", *self.study.evaluation_files):
                comparison = self._compare(part, first, second, file)
                found += [comparison] if comparison.rows else []
        return found

    def _arms(self) -> list[tuple[str, str, str]]:
        """(part, first arm, second arm); an arm of single exits is named by its first part, `cut` or `alone`."""
        pairs = {
            PRETRAINED: [(ICC, RANDOM), (ICC, START)],
            SELF_DISTILLED: [(ICC, "cut")],
            ICC_NSP: [(ICC, NSP)],
            ABLATIONS: [("alone" if name == SINGLE_EXIT else name, ICC) for name in self.study.ablations],
        }
        return [(part, *arms) for part in self.study.parts for arms in pairs[part]]

    def _compare(self, part: str, first: str, second: str, file: str) -> Comparison:
        rows, shown = [], None
        for name in self.exits:
            arms = _arm_at(first, name), _arm_at(second, name)
            pairs = {seed: (self.scores(seed, arms[0], file), self.scores(seed, arms[1], file)) for seed in self.study.seeds}
            whole = {seed: (a, b) for seed, (a, b) in pairs.items() if a and b and name in a.exits and name in b.exits}
            if whole:
                shown = next(iter(whole.values()))[0]
                rows.append(self._row(name, arms, whole))
        counts = (shown.queries, shown.repositories, shown.candidates) if shown else (0, 0, 0)
        return Comparison(part, first, second, file, *counts, tuple(rows))

    def _row(self, name: str, arms: tuple[str, str], pairs: Mapping[int, tuple[Evaluation, Evaluation]]) -> Row:
        sides = [[pair[side] for pair in pairs.values()] for side in (0, 1)]
        values = [{measure: _values(side, name, measure) for measure in MEASURES} for side in sides]
        differences = {measure: difference_over_seeds(sides[0], sides[1], name, measure) for measure in MEASURES}
        losses = [tuple(self._masked_tokens(seed, arm, name) for seed in pairs) for arm in arms]
        known = all(loss is not None for side in losses for loss in side)
        tokens = tuple(tuple(float(loss or 0.0) for loss in side) for side in losses) if known else ((), ())
        return Row(name, tuple(pairs), values[0], values[1], differences, (tokens[0], tokens[1]))

    def _masked_tokens(self, seed: int, arm: str, name: str) -> float | None:
        report = self.held_out(seed, arm)
        return report["exits"].get(name, {}).get("mlm") if report else None


def _arm_at(arm: str, name: str) -> str:
    """The folder that holds an arm's exit: arms of single exits have one folder per exit."""
    layer = int(name)
    return {"cut": cut_arm(layer), "alone": ablation_arms(SINGLE_EXIT, [layer])[0]}.get(arm, arm)


def _values(side: Sequence[Evaluation], name: str, measure: str) -> tuple[float, ...]:
    return tuple(getattr(evaluation.exits[name], measure).value for evaluation in side)


def seconds_by_job(folder: Path) -> dict[str, float]:
    """Seconds of every finished command, by the job's name."""
    markers = sorted((folder / "jobs").glob("*.json"))
    return {path.stem.replace("__", "/"): float(json.loads(path.read_text("utf-8"))["seconds"]) for path in markers}

"""Scores models on tasks. Each part's values are kept on disk, so that a killed run computes nothing twice.

Letters: E exits, M measures, U units (queries or pairs).
"""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.evaluation.benchmark.config import BenchmarkConfig
from finetune.evaluation.benchmark.models import open_models
from finetune.evaluation.benchmark.result import MEAN, BenchmarkResult, ExitResult, ExitTests, ModelResult, TaskResult
from finetune.evaluation.benchmark.statistics import (
    FLOATS,
    exit_differences,
    grouped,
    resampled,
    similarity_tests,
)
from finetune.evaluation.metrics import Score, percentiles, unit_groups
from finetune.evaluation.systems.embedding import EmbeddingSystem
from finetune.evaluation.systems.mteb_exit import mteb_scores, named_tasks
from finetune.evaluation.systems.system import System
from finetune.evaluation.tasks.parts.problem import Benchmark, Judged, Part, Values
from finetune.evaluation.tasks.registry import benchmark_named
from mose.errors import MoseError, first_line
from mose.files.atomic_file import atomic_write, file_sha256, write_json
from mose.files.json_file import parse_json

_HIT_MEASURE = "recall_at_1"


@dataclass(frozen=True)
class OpenTask:
    """A task with its files read."""

    task: Benchmark
    parts: Sequence[Part]
    files: Mapping[str, str]

    @classmethod
    def open(cls, key: str, config: BenchmarkConfig) -> "OpenTask":
        """Read the task's files.

        Raises:
            MoseError: there is no such task, or a file cannot be used.
        """
        task, paths = benchmark_named(key), config.files(key)
        parts = task.read(paths, config.options)
        return cls(task, parts, {path.name: file_sha256(path) for path in paths})

    def result(self) -> TaskResult:
        """What the result says of the task."""
        facts = {part.name: dict(part.facts) for part in self.parts}
        notes = [f"{part.name or self.task.title}: {part.note}" for part in self.parts if part.note]
        return TaskResult(self.task.title, dict(self.task.measures), dict(self.files), facts, tuple(notes))


def run(config: BenchmarkConfig) -> BenchmarkResult:
    """Score every model on every task.

    Raises:
        MoseError: a file, a model or a server cannot be used; what was computed before stays on disk.
    """
    # All files are read before any model is opened: a fault in the last file shows at once.
    tasks = {key: OpenTask.open(key, config) for key in config.tasks}
    mteb_tasks = named_tasks(config.mteb_tasks) if config.mteb_tasks else []
    for task in tasks.values():
        for note in task.result().notes:
            print(f"{task.task.name}: {note}", file=sys.stderr)
    models = {
        system.name: dataclasses.replace(_score_model(config, system, tasks), mteb=_mteb(config, system, mteb_tasks))
        for system in open_models(config)
    }
    return BenchmarkResult(
        split=config.split,
        distractors=config.distractors,
        seed=config.seed,
        flops_tokens=config.flops_tokens,
        tasks={key: task.result() for key, task in tasks.items()},
        models=models,
    )


def _score_model(config: BenchmarkConfig, system: System, tasks: Mapping[str, OpenTask]) -> ModelResult:
    scores: list[dict[str, dict[str, dict[str, Score]]]] = [{} for _ in system.exits]
    tests: dict[str, dict[str, ExitTests]] = {}
    for key, task in tasks.items():
        judged = {part.name: _judged(config, system, key, task, part) for part in task.parts}
        found = {part.name: (part, by_exit) for part in task.parts if (by_exit := judged[part.name]) is not None}
        if not found:
            print(f"{system.name}: {key}: a {system.kind} has no answer to this task, left out", file=sys.stderr)
            continue
        draws = {name: _draws(config, key, part, by_exit) for name, (part, by_exit) in found.items()}
        for index, exit_scores in enumerate(scores):
            exit_scores[key] = _exit_scores(index, found, draws)
        if len(system.exits) > 1:
            names = [row.name for row in system.exits]
            tests[key] = {name: _tests(config, task, names, *found[name], draws[name]) for name in found}
    exits = {
        row.name: ExitResult(row.layer, row.parameters, row.gflops_per_row, exit_scores)
        for row, exit_scores in zip(system.exits, scores, strict=True)
    }
    return ModelResult(config.models[system.name], system.kind, exits, tests, {})


def _mteb(config: BenchmarkConfig, system: System, tasks: Sequence[Any]) -> dict[str, dict[str, float]]:
    """mteb's scores by task and exit, from disk where they are there."""
    if not isinstance(system, EmbeddingSystem):
        return {}
    found: dict[str, dict[str, float]] = {}
    for task in tasks:
        name = str(task.metadata.name)
        path = Path(config.output) / "values" / system.name.replace(" ", "-") / f"mteb-{name}.json"
        inputs = {"model": system.fingerprint, "revision": str(task.metadata.dataset.get("revision"))}
        there = _read_mteb(path)
        if there is not None and there.get("inputs") != inputs:
            raise MoseError(f"{path}: scores of another model or revision, expected a new `output`, or this file removed")
        if there is None:
            print(f"{system.name}: mteb {name}", file=sys.stderr, flush=True)
            names = [row.name for row in system.exits]
            there = {"inputs": inputs, "scores": dict(zip(names, mteb_scores(system, task), strict=True))}
            write_json(path, there)
        found[name] = there["scores"]
    return found


def _read_mteb(path: Path) -> dict[str, Any] | None:
    """The scores of an earlier run; None where there are none, or where the file is not whole."""
    try:
        there = parse_json(path.read_bytes()) if path.is_file() else None
    except ValueError as error:
        print(f"{path}: not a whole file of scores ({error}): computed again", file=sys.stderr)
        return None
    return there if isinstance(there, dict) else None


def _draws(config: BenchmarkConfig, key: str, part: Part, by_exit: Sequence[Judged]) -> dict[str, FLOATS]:
    """Resampled scores [R, E] by measure."""
    found = {}
    for measure, values in by_exit[0].values.items():
        group_U = unit_groups(len(values.numerator_U), part.groups)
        columns = grouped([judged.values[measure] for judged in by_exit], group_U)
        found[measure] = resampled(*columns, config.resamples, config.seed, f"{key}/{part.name}")
    return found


def _exit_scores(
    index: int, found: Mapping[str, tuple[Part, Sequence[Judged]]], draws: Mapping[str, Mapping[str, FLOATS]]
) -> dict[str, dict[str, Score]]:
    """The exit's scores by part and measure; with several parts also their plain mean, as the paper averages languages."""
    scores = {
        name: {
            measure: percentiles(values.score, draws[name][measure][:, index])
            for measure, values in by_exit[index].values.items()
        }
        for name, (_, by_exit) in found.items()
    }
    if len(found) > 1:
        scores[MEAN] = {
            measure: percentiles(
                float(np.mean([scores[name][measure].value for name in found])),
                np.mean([draws[name][measure][:, index] for name in found], axis=0),
            )
            for measure in next(iter(scores.values()))
        }
    return scores


def _tests(
    config: BenchmarkConfig,
    task: OpenTask,
    names: Sequence[str],
    part: Part,
    by_exit: Sequence[Judged],
    draws: Mapping[str, FLOATS],
) -> ExitTests:
    measure = task.task.main_measure
    values = [judged.values[measure] for judged in by_exit]
    group_U = unit_groups(len(values[0].numerator_U), part.groups)
    differences = exit_differences(names, values, group_U, draws[measure], config.permutations, config.seed)
    own = [judged.own_Q for judged in by_exit if judged.own_Q is not None]
    similarities = {}
    if len(own) == len(by_exit):
        hits = [judged.values[_HIT_MEASURE].numerator_U > 0 for judged in by_exit]
        similarities = similarity_tests(names, own, hits, config.permutations, config.seed)
    return ExitTests(measure, differences, similarities)


def _judged(config: BenchmarkConfig, system: System, key: str, task: OpenTask, part: Part) -> list[Judged] | None:
    """The values of each exit, from disk where they are there."""
    name = f"{key}-{part.name}".rstrip("-").replace(":", "-").replace(" ", "-")
    path = Path(config.output) / "values" / system.name.replace(" ", "-") / f"{name}.npz"
    inputs = {"model": system.fingerprint, "files": dict(task.files), "options": dataclasses.asdict(config.options)}
    if (there := _read_values(path, inputs, task.task.measures)) is not None:
        return there
    print(f"{system.name}: {key} {part.name}".rstrip(), file=sys.stderr, flush=True)
    by_exit = system.judge(key, part)
    if by_exit is not None:
        _write_values(path, inputs, by_exit)
    return by_exit


def _write_values(path: Path, inputs: dict[str, Any], by_exit: Sequence[Judged]) -> None:
    arrays = {
        f"{measure}-{side}": np.stack([getattr(judged.values[measure], f"{side}_U") for judged in by_exit])
        for measure in by_exit[0].values
        for side in ("numerator", "denominator")
    }
    own = [judged.own_Q for judged in by_exit if judged.own_Q is not None]
    arrays |= {"own": np.stack(own)} if own else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        np.savez(file, inputs=np.array(json.dumps(inputs, sort_keys=True)), **arrays)  # type: ignore[arg-type]


def _read_values(path: Path, inputs: dict[str, Any], measures: Mapping[str, str]) -> list[Judged] | None:
    """The values of an earlier run; None where there are none, or where the file is not whole.

    Raises:
        MoseError: they are of another model, other files or other options.
    """
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            there = json.loads(str(arrays["inputs"]))
            columns = {name: arrays[name] for name in arrays.files if name != "inputs"}
        by_measure = {name: (columns[f"{name}-numerator"], columns[f"{name}-denominator"]) for name in measures}
    # zipfile, zlib, numpy and json all raise errors of their own on a file cut anywhere.
    except Exception as error:
        print(f"{path}: not a whole file of values ({first_line(error)}): computed again", file=sys.stderr)
        return None
    if there != inputs:
        names = [name for name, value in inputs.items() if there.get(name) != value]
        raise MoseError(f"{path}: values of another {' and other '.join(names)}, expected a new `output`, or this file removed")
    own = columns.get("own")
    return [
        Judged(
            {name: Values(numerators[index], denominators[index]) for name, (numerators, denominators) in by_measure.items()},
            None if own is None else own[index],
        )
        for index in range(len(next(iter(by_measure.values()))[0]))
    ]

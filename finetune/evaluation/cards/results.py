"""Results as a model card lists them: of `evaluate`, `benchmark`, `classification` and `mose-pretrain evaluate`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.classification.evaluate import ClassificationScores, card_tasks
from finetune.evaluation.benchmark.result import MEAN, RESULT_NAME, BenchmarkResult, ExitResult, TaskResult, read_result
from finetune.evaluation.metrics import Score
from finetune.evaluation.results import Evaluation, RankScores, read_evaluation
from finetune.evaluation.table import MISSING
from mose.checkpoint.card_facts import Measured, ScoredTask
from mose.errors import MoseError
from mose.files.json_file import parse_json
from mose.files.records import from_plain
from mose.run_directory import EVALUATION_NAME

HELD_OUT_NAME = "held_out.json"
_RETRIEVAL = "text-retrieval"
_RANKED = {"mrr": "MRR", "recall_at_1": "recall@1"}
_HELD_OUT = {"mlm_accuracy": "MLM accuracy", "icc_accuracy": "row-task accuracy"}


def result_files(folder: Path) -> list[Path]:
    """The results that stand in a folder of results, or in a model's folder or run directory."""
    return [path for name in (EVALUATION_NAME, RESULT_NAME, HELD_OUT_NAME) if (path := folder / name).is_file()]


def scored_tasks(path: Path, checkpoint: Path, name: str) -> list[ScoredTask]:
    """The tasks of one file of results. `name` is the model's in a benchmark; empty: the one whose folder is `checkpoint`.

    Raises:
        MoseError: the file is missing or of another form, or a benchmark has no such model.
    """
    if path.name == RESULT_NAME:
        return _benchmark_tasks(path, read_result(path), checkpoint, name)
    values = _plain(path)
    if path.name == HELD_OUT_NAME:
        return [_held_out_task(path, values)]
    if isinstance(values, dict) and values.get("task") == "classification":
        try:
            fields = {field: value for field, value in values.items() if field != "task"}
            return list(card_tasks(from_plain(ClassificationScores, fields)))
        except ValueError as error:
            raise MoseError(f"{path}: not an evaluation of this version: {error}") from None
    return [_search_task(read_evaluation(path))]


def _plain(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes())
    except FileNotFoundError:
        raise MoseError(f"{path}: no such file; expected a file of results, or a folder that holds one") from None
    except ValueError as error:
        raise MoseError(f"{path}: not JSON: {error}") from None


def _search_task(evaluation: Evaluation) -> ScoredTask:
    chance = {"mrr": Measured(evaluation.chance_mrr), "recall_at_1": Measured(1 / evaluation.candidates)}
    return ScoredTask(
        title="Function by its docstring",
        dataset=", ".join(Path(path).name for path in evaluation.pairs),
        split=evaluation.split,
        task_type=_RETRIEVAL,
        measures=_RANKED,
        exits={scores.layer: _ranked(scores) for scores in evaluation.exits.values()},
        references={**{name: _ranked(row) for name, row in evaluation.baselines.items()}, "chance": chance},
        note=f"{evaluation.queries:,} queries of {evaluation.repositories:,} repositories, {evaluation.candidates:,} candidates",
    )


def _ranked(scores: RankScores | Any) -> dict[str, Measured]:
    return {measure: measured(getattr(scores, measure)) for measure in _RANKED}


def measured(score: Score) -> Measured:
    """A score as the card has it."""
    return Measured(score.value, score.interval)


def _held_out_task(path: Path, values: Any) -> ScoredTask:
    try:
        exits = {int(name): _held_out_scores(row) for name, row in values["exits"].items()}
        majority = values.get("icc_majority_rate")
        return ScoredTask(
            title="Held-out rows of pre-training",
            dataset="held-out rows",
            split="held_out",
            task_type="fill-mask",
            measures={name: title for name, title in _HELD_OUT.items() if any(name in row for row in exits.values())},
            exits=exits,
            references={} if majority is None else {"more frequent label": {"icc_accuracy": Measured(float(majority))}},
            note=f"{int(values['rows']):,} rows",
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MoseError(f"{path}: not a held-out result: {error!r}; expected one written by `mose-pretrain evaluate`") from None


def _held_out_scores(row: Mapping[str, Any]) -> dict[str, Measured]:
    found = {name: Measured(float(row[name])) for name in _HELD_OUT if row.get(name) is not None}
    if "icc_accuracy" in found and row.get("icc_interval"):
        low, high = row["icc_interval"]
        found["icc_accuracy"] = Measured(found["icc_accuracy"].value, (float(low), float(high)))
    return found


def _benchmark_tasks(path: Path, result: BenchmarkResult, checkpoint: Path, name: str) -> list[ScoredTask]:
    wanted = checkpoint.resolve()
    chosen = name or next(
        (key for key, model in result.models.items() if Path(model.model.removeprefix("classifier:")).resolve() == wanted), ""
    )
    if chosen not in result.models:
        models = ", ".join(f"{key} ({model.model})" for key, model in result.models.items())
        raise MoseError(f"{path}: models: no {name or checkpoint}, expected one of {models}; --name says which one the folder is")
    tasks = [
        _benchmark_task(result, key, task, part, chosen)
        for key, task in result.tasks.items()
        for part in (*task.parts, *([MEAN] if len(task.parts) > 1 else []))
        if any(part in row.scores.get(key, {}) for row in result.models[chosen].exits.values())
    ]
    return [*tasks, *_mteb_tasks(result, chosen)]


def _benchmark_task(result: BenchmarkResult, key: str, task: TaskResult, part: str, name: str) -> ScoredTask:
    def scores(row: ExitResult) -> dict[str, Measured]:
        found = {measure: row.score(key, part, measure) for measure in task.measures}
        return {measure: measured(score) for measure, score in found.items() if score is not None}

    # Models without exits stand beside; exits of another multi-exit model have a card of their own.
    peers = {other: row for other, model in result.models.items() for row in model.exits.values() if row.layer is None}
    counts = ", ".join(f"{count:,} {what}" for what, count in task.parts.get(part, {}).items())
    return ScoredTask(
        title=f"{task.title} {part}".strip(),
        dataset=", ".join(task.files),
        split=result.split,
        task_type="text-classification" if "f1" in task.measures else _RETRIEVAL,
        measures=task.measures,
        exits={row.layer: scores(row) for row in result.models[name].exits.values() if row.layer is not None},
        references={other: found for other, row in peers.items() if (found := scores(row))},
        note="; ".join(word for word in (counts, *task.notes) if word),
    )


def _mteb_tasks(result: BenchmarkResult, name: str) -> Iterator[ScoredTask]:
    model = result.models[name]
    for task, scores in model.mteb.items():
        layers = {exit_name: row.layer for exit_name, row in model.exits.items()}
        exits = {layer: {"main_score": Measured(scores[key])} for key, layer in layers.items() if layer is not None}
        others = {
            other: {"main_score": Measured(found[MISSING])}
            for other, peer in result.models.items()
            if MISSING in (found := peer.mteb.get(task, {}))
        }
        measures = {"main_score": "main score"}
        yield ScoredTask(f"mteb {task}", task, "test", _RETRIEVAL, measures, exits, others, "by mteb's own runner")


def require_exits(tasks: Sequence[ScoredTask], path: Path, layers: Sequence[int]) -> None:
    """Check that results are of a model with these exits.

    Raises:
        MoseError: they have another exit.
    """
    for task in tasks:
        foreign = sorted(set(task.exits) - set(layers))
        if foreign:
            raise MoseError(f"{path}: exit {foreign[0]}, expected some of {list(layers)}: results of another model?")

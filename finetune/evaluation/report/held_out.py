"""Reads what pre-training left for the report: the lines of its metrics, and scores on held-out rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mose.errors import MoseError
from mose.files.json_file import parse_json
from mose.run_directory import RunDirectory

HELD_OUT_NAME = "held_out.json"


@dataclass(frozen=True)
class HeldOut:
    """Held-out scores of the pre-training run: by exit name, and for all exits alike."""

    exits: dict[str, dict[str, Any]]
    unigram_cross_entropy: float | None = None
    left_bigram_cross_entropy: float | None = None
    icc_majority_rate: float | None = None
    rows: int | None = None


def read_run_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, in order.

    Raises:
        MoseError: there is no such run, or it has not written a line.
    """
    if not folder.is_dir():
        raise MoseError(f"{folder}: no such run directory; expected one written by `mose-pretrain train`")
    lines: list[dict[str, Any]] = RunDirectory(folder).read_metrics()
    if not lines:
        raise MoseError(f"{folder / 'metrics.jsonl'}: no line, expected one per interval of training")
    return lines


def read_held_out(folder: Path, metrics: list[dict[str, Any]]) -> HeldOut:
    """`held_out.json` of a run; without it the last validation that the run itself wrote down.

    Raises:
        MoseError: the file is there but is not one of these.
    """
    path = folder / HELD_OUT_NAME
    if not path.is_file():
        return HeldOut(_last_validation(metrics))
    try:
        values = parse_json(path.read_bytes())
        names = ("unigram_cross_entropy", "left_bigram_cross_entropy", "icc_majority_rate", "rows")
        known = {name: values.get(name) for name in names}
        return HeldOut({name: dict(row) for name, row in values["exits"].items()}, **known)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MoseError(f"{path}: not a held-out result: {error!r}; expected one written by `mose-pretrain evaluate`") from None


def exit_series(metrics: list[dict[str, Any]], prefix: str, suffix: str) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of `{prefix}{exit}{suffix}` for each exit, shallowest first."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    for line in metrics:
        for key, value in line.items():
            if key.startswith(prefix) and key.endswith(suffix) and isinstance(value, int | float):
                steps, values = series.setdefault(key[len(prefix) : -len(suffix)], ([], []))
                steps.append(int(line["step"]))
                values.append(float(value))
    return dict(sorted(series.items()))


def _last_validation(metrics: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    exits: dict[str, dict[str, Any]] = {}
    measures = {"mlm": ("validation/loss/exit_", "/mlm"), "icc_accuracy": ("validation/accuracy/exit_", "/icc")}
    for measure, (prefix, suffix) in measures.items():
        for name, (_, values) in exit_series(metrics, prefix, suffix).items():
            exits.setdefault(name, {})[measure] = values[-1]
    return exits

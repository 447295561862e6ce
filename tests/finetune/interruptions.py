"""Ends a fine-tuning run inside a step, and takes from its metrics what must be equal after the resume."""

from collections.abc import Callable
from typing import Any

import pytest

from mose.run_directory import RunDirectory


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the run sees it as an error of its own."""


def at_step(monkeypatch: pytest.MonkeyPatch, trainer: type[Any], wanted: int, action: Callable[[], Any]) -> None:
    """Call `action` inside optimiser step `wanted` of a stage's trainer, counted from 0."""
    plain = trainer.step

    def step(self: Any, examples: Any, number: int) -> Any:
        if number == wanted:
            action()
        return plain(self, examples, number)

    monkeypatch.setattr(trainer, "step", step)


def die() -> None:
    raise Killed


def lines_but_speed(run: RunDirectory) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    return [{name: value for name, value in line.items() if not name.startswith("throughput/")} for line in run.read_metrics()]

"""The tasks are found by name, and the configured default is one of them."""

import pytest

from finetune.config import EvaluationConfig
from finetune.evaluation.results import ExitScores
from finetune.evaluation.tasks.registry import TASKS, task_named
from mose.errors import MoseError


def test_the_default_task_is_registered() -> None:
    task = task_named(EvaluationConfig("model", "pairs", "out").task)
    assert task.name == "docstring_search" and set(task.columns) <= set(ExitScores.__dataclass_fields__)


def test_every_task_is_registered_under_its_name() -> None:
    assert all(name == task.name for name, task in TASKS.items())


def test_an_unknown_task_is_one_line_that_lists_the_others() -> None:
    with pytest.raises(MoseError, match="task: 'sonnets', expected one of docstring_search \\(reads pairs"):
        task_named("sonnets")

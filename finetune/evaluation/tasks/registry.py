"""The evaluation tasks by name."""

from finetune.evaluation.tasks.docstring_search import DOCSTRING_SEARCH
from finetune.evaluation.tasks.task import AnyTask
from mose.errors import MoseError

TASKS: dict[str, AnyTask] = {task.name: task for task in (DOCSTRING_SEARCH,)}


def task_named(name: str) -> AnyTask:
    """The task of that name.

    Raises:
        MoseError: there is none.
    """
    if name not in TASKS:
        known = ", ".join(f"{task.name} (reads {task.reads})" for task in TASKS.values())
        raise MoseError(f"task: {name!r}, expected one of {known}")
    return TASKS[name]

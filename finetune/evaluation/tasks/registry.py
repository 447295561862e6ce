"""The evaluation tasks by name. `mose-finetune benchmark` runs `BENCHMARKS`; `mose-finetune evaluate` runs both kinds.

The `TASKS` score a checkpoint themselves and have a result of their own form.
"""

import dataclasses

from finetune.evaluation.tasks.bigclonebench import BIGCLONEBENCH
from finetune.evaluation.tasks.code_translation import CODE_TRANSLATION
from finetune.evaluation.tasks.codesearchnet import CODESEARCHNET
from finetune.evaluation.tasks.docstring_search import DOCSTRING_SEARCH
from finetune.evaluation.tasks.judged_search import JUDGED_SEARCH
from finetune.evaluation.tasks.parts.problem import Benchmark
from finetune.evaluation.tasks.poj104 import POJ104
from finetune.evaluation.tasks.task import AnyTask
from mose.errors import MoseError

TASKS: dict[str, AnyTask] = {task.name: task for task in (DOCSTRING_SEARCH,)}
BENCHMARKS: dict[str, Benchmark] = {
    task.name: task for task in (CODESEARCHNET, CODE_TRANSLATION, POJ104, BIGCLONEBENCH, JUDGED_SEARCH)
}


def task_named(name: str) -> AnyTask:
    """The task of that name.

    Raises:
        MoseError: there is none.
    """
    if name not in TASKS:
        reads = {task.name: task.reads for task in TASKS.values()} | {task.name: task.files for task in BENCHMARKS.values()}
        known = ", ".join(f"{name} (reads {files})" for name, files in reads.items())
        raise MoseError(f"task: {name!r}, expected one of {known}")
    return TASKS[name]


def is_benchmark(key: str) -> bool:
    """Whether a name, or `name:label`, is that of a benchmark."""
    return key.partition(":")[0] in BENCHMARKS


def benchmark_named(key: str) -> Benchmark:
    """The benchmark of a key of the config's `tasks`: a name, or `name:label` where one task is scored on several sets of files.

    Raises:
        MoseError: there is none.
    """
    name, _, label = key.partition(":")
    if name not in BENCHMARKS:
        known = ", ".join(f"{task.name} (reads {task.files})" for task in BENCHMARKS.values())
        raise MoseError(f"tasks: {key!r}, expected one of {known}")
    task = BENCHMARKS[name]
    return dataclasses.replace(task, name=key, title=label) if label else task

"""`mose-finetune evaluate`: one task on one checkpoint."""

from pathlib import Path

from finetune.config import EvaluationConfig
from finetune.evaluation.results import write_evaluation
from finetune.evaluation.table import evaluation_table
from finetune.evaluation.tasks.registry import task_named
from mose.files.atomic_file import write_text
from mose.files.streams import table_text


def evaluate(config: EvaluationConfig) -> None:
    """Score a checkpoint, print the table, and write `evaluation.json` and `evaluation.txt`.

    Raises:
        MoseError: the task, the checkpoint, its files or a compared evaluation cannot be used.
    """
    task = task_named(config.task)
    compared = {name: task.read(path) for name, path in config.compared.items()}
    result = task.score(config)
    text = table_text(evaluation_table(task.columns, task.title(result), result, task.references(result), compared))
    write_evaluation(Path(config.output), result)
    write_text(Path(config.output) / "evaluation.txt", text)
    if note := task.note(config, result):
        print(note)
    print(text, end="")

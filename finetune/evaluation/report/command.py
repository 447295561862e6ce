"""The command `mose-finetune report`."""

from pathlib import Path

from finetune.config import ReportConfig
from finetune.evaluation.report.held_out import read_held_out, read_run_metrics
from finetune.evaluation.report.picture import draw_report
from finetune.evaluation.report.table import levels, notes, report_table
from finetune.evaluation.results import read_evaluation
from mose.files.atomic_file import write_text
from mose.files.streams import table_text

REPORT_TEXT = "report.txt"
REPORT_PICTURE = "report.png"


def report(config: ReportConfig) -> None:
    """Print the table and the TensorBoard command; write `report.txt` and `report.png`.

    Raises:
        MoseError: the run directory or an evaluation is missing or cannot be read.
    """
    metrics = read_run_metrics(Path(config.pretrain))
    evaluation = read_evaluation(Path(config.evaluation))
    control = read_evaluation(Path(config.control)) if config.control else None
    start = read_evaluation(Path(config.start)) if config.start else None
    held_out = read_held_out(Path(config.pretrain), metrics)
    table = table_text(report_table(held_out, evaluation, control, start))
    lines = "\n".join(notes(held_out, evaluation, control, start)) + "\n"
    output = Path(config.output)
    write_text(output / REPORT_TEXT, table + lines)
    losses = {name: value for name, (value, _) in levels(held_out).items() if value is not None}
    draw_report(metrics, losses, evaluation, control, start, output / REPORT_PICTURE)
    print(table + lines, end="")
    print(f"picture: {output / REPORT_PICTURE}")
    print(f"plots: tensorboard --logdir {config.pretrain}")

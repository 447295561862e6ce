"""The command `mose-finetune report`: one page of a whole run; beside it the table as text and its picture as PNG."""

from pathlib import Path
from typing import Any

from finetune.config import ReportConfig
from finetune.evaluation.benchmark.result import read_result
from finetune.evaluation.report import page
from finetune.evaluation.report.data_part import data_section
from finetune.evaluation.report.held_out import HeldOut, read_held_out, read_run_metrics
from finetune.evaluation.report.picture import draw_report
from finetune.evaluation.report.score_part import beaten_by, benchmark_section, scores_section
from finetune.evaluation.report.table import levels, notes, report_table
from finetune.evaluation.report.training_part import field, finetuning_section, pretraining_section, read_config
from finetune.evaluation.results import Evaluation, read_evaluation
from finetune.evaluation.table import parameters_cell
from mose.dataset.manifest import Manifest
from mose.files.atomic_file import write_text
from mose.files.storage import storage_path
from mose.files.streams import table_text
from mose.run_directory import RunDirectory

REPORT_PAGE = "report.html"
REPORT_TEXT = "report.txt"
REPORT_PICTURE = "report.png"


def report(config: ReportConfig) -> None:
    """Print the table and the TensorBoard command; write `report.html`, `report.txt` and `report.png`.

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
    losses = {name: value for name, (value, _) in levels(held_out).items() if value is not None}
    whole = whole_page(config, metrics, held_out, losses, (evaluation, control, start))
    write_text(output / REPORT_TEXT, table + lines)
    draw_report(metrics, losses, evaluation, control, start, output / REPORT_PICTURE)
    write_text(output / REPORT_PAGE, whole)
    print(table + lines, end="")
    print(f"page: {output / REPORT_PAGE}")
    print(f"picture: {output / REPORT_PICTURE}")
    print(f"plots: tensorboard --logdir {config.pretrain}")


def whole_page(
    config: ReportConfig,
    metrics: list[dict[str, Any]],
    held_out: HeldOut,
    losses: dict[str, float],
    evaluations: tuple[Evaluation, Evaluation | None, Evaluation | None],
) -> str:
    """The HTML page of all stages; errors as in `report`."""
    folder = Path(config.pretrain)
    run_config = read_config(RunDirectory(folder))
    named = config.data or field(run_config, "data.dataset")
    data, manifest = data_section(None if named in ("-", "") else storage_path(named), bool(config.data))
    finetuning = finetuning_section(_finetuning_run(config, evaluations[0]))
    sections = [data, pretraining_section(folder, metrics, held_out, losses), *([finetuning] if finetuning else [])]
    sections.append(scores_section(held_out, *evaluations))
    if config.benchmark:
        sections.append(benchmark_section(read_result(Path(config.benchmark))))
    subtitle = "One run from data to the scores of every exit, as its own files tell it."
    footer = f"Written by mose-finetune report from {config.pretrain} and {config.evaluation}."
    name = "/".join(folder.resolve().parts[-2:])
    return page.page(f"Run {name}", subtitle, _tiles(manifest, metrics, held_out, evaluations[0]), sections, footer)


def _finetuning_run(config: ReportConfig, evaluation: Evaluation) -> Path | None:
    """The run directory of fine-tuning: the one named, or that of the folder that was scored."""
    if config.retrieval:
        return Path(config.retrieval)
    parent = Path(evaluation.checkpoint).parent
    return parent if RunDirectory(parent).metrics.is_file() else None


def _tiles(
    manifest: Manifest | None, metrics: list[dict[str, Any]], held_out: HeldOut, evaluation: Evaluation
) -> list[page.Tile]:
    tiles = []
    if manifest is not None:
        tiles.append(page.Tile(f"{manifest.tokens('train') / 1e6:,.1f} M", "tokens in the training rows"))
    tokens = metrics[-1].get("consumed_tokens")
    if isinstance(tokens, int):
        tiles.append(page.Tile(f"{tokens / 1e6:,.1f} M", f"tokens seen in {metrics[-1]['step']:,} steps"))
    deepest = evaluation.exits[max(evaluation.exits)]
    tiles.append(page.Tile(f"{parameters_cell(deepest.parameters)} M", f"parameters, {len(evaluation.exits)} exits"))
    losses = {name: row["mlm"] for name, row in held_out.exits.items() if isinstance(row.get("mlm"), float)}
    if losses:
        name = min(losses, key=losses.__getitem__)
        tiles.append(page.Tile(f"{losses[name]:.3f}", f"lowest held-out MLM loss (exit {name})"))
    name, scores = max(evaluation.exits.items(), key=lambda item: item[1].mrr.value)
    tiles.append(page.Tile(f"{scores.mrr.value:.3f}", f"best MRR of an exit ({name}); chance is {evaluation.chance_mrr:.4f}"))
    better = beaten_by(evaluation)
    tiles.append(page.Tile(str(len(better)), f"of {len(evaluation.baselines)} baselines are better than every exit"))
    return tiles

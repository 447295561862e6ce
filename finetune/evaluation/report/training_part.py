"""The report's sections on pre-training and fine-tuning: settings, losses of every exit, speed, and what was skipped."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from finetune.evaluation.report import charts, page
from finetune.evaluation.report.data_part import mapping
from finetune.evaluation.report.held_out import HeldOut
from finetune.evaluation.report.picture import draw_losses
from mose.errors import MoseError
from mose.files.json_file import parse_json
from mose.files.yaml_file import read_yaml
from mose.run_directory import RunDirectory

_TOKENS_PER_SECOND = "throughput/tokens_per_second_per_device"
_PAIRS_PER_SECOND = "throughput/pairs_per_second"


def read_config(run: RunDirectory) -> Mapping[str, Any]:
    """The fields of a run's config.yaml; empty where there is none.

    Raises:
        MoseError: it is there and is not YAML.
    """
    return mapping(read_yaml(run.config)) if run.config.is_file() else {}


def field(config: Mapping[str, Any], path: str) -> str:
    """A field of a config by its dotted name, as text; `-` where it is missing."""
    value: Any = config
    for name in path.split("."):
        value = mapping(value).get(name)
    return "-" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _facts(config: Mapping[str, Any], names: Mapping[str, str]) -> str:
    rows = [(title, " / ".join(field(config, path) for path in paths.split())) for title, paths in names.items()]
    return page.facts(rows) if config else ""


_PRETRAINING = {
    "layers / width / feed-forward": "model.num_layers model.width model.feed_forward_width",
    "heads / key-value heads": "model.num_heads model.num_key_value_heads",
    "exits after layers": "model.exit_layers",
    "second task / exit weights": "objective.sequence_task objective.exit_weights",
    "rows per step": "batch.global_rows",
    "peak learning rate / warm-up steps": "schedule.peak_learning_rate schedule.warmup_steps",
    "weight decay / clipping": "optimizer.weight_decay optimizer.gradient_clipping",
    "precision / ZeRO / tensor parallel": "parallel.precision parallel.zero_stage parallel.tensor_parallel_size",
    "seed": "seed",
}
_FINE_TUNING = {
    "began with": "checkpoint",
    "random weights": "from_random",
    "pairs": "pairs",
    "steps / pairs per step": "steps batch_pairs",
    "loss / logit scale": "loss logit_scale",
    "peak learning rate / warm-up steps / decay": "learning_rate warmup_steps decay",
    "longest prompt": "max_length",
    "seed": "seed",
}


def pretraining_section(
    folder: Path, metrics: list[dict[str, Any]], held_out: HeldOut, levels: Mapping[str, float]
) -> page.Section:
    """Pre-training of the run directory `folder`.

    Raises:
        MoseError: a file of the run is damaged.
    """
    run = RunDirectory(folder)
    config, last = read_config(run), metrics[-1]
    task = field(config, "objective.sequence_task") if config else "icc"

    def losses(made: Figure) -> None:
        draw_losses(made.subplots(), metrics, dict(levels))

    def second_task(made: Figure) -> None:
        axes: Axes = made.subplots()
        charts.by_exit(axes, metrics, ("accuracy/exit_", f"/{task}"), ("validation/accuracy/exit_", f"/{task}"), smooth=True)
        axes.set(title=f"Second task ({task}): accuracy of each exit", xlabel="optimiser step", ylabel="accuracy")

    def schedule(made: Figure) -> None:
        axes = made.subplots()
        names = ("optimizer/learning_rate", "learning rate"), ("optimizer/gradient_norm", "gradient norm")
        charts.two_scales(axes, metrics, *names)
        axes.set_title("Learning rate and gradient norm")

    def speed(made: Figure) -> None:
        axes = made.subplots()
        steps, values = charts.series_of(metrics, _TOKENS_PER_SECOND)
        axes.plot(steps, values, color="#31688e", linewidth=1.3)
        axes.set(title="Speed", xlabel="optimiser step", ylabel="real tokens per second per device")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: charts.amount(value))
        axes.grid(alpha=0.25)

    tokens = last.get("consumed_tokens")
    seen = f" on {tokens:,} real tokens" if isinstance(tokens, int) else ""
    has_task = any(name.endswith(f"/{task}") for line in metrics for name in line)
    parts = [
        page.figures(
            page.figure(
                charts.draw("pre-training losses", losses),
                "Lines: training intervals; dots: held-out rows; dashed: counts of tokens and of neighbours on held-out rows.",
            ),
            page.figure(
                charts.draw("second task", second_task),
                "Lines: running means of training intervals; dots: validation during the run, on few rows.",
            )
            if has_task
            else "",
            page.figure(charts.draw("schedule", schedule)),
            page.figure(charts.draw("speed", speed)),
        ),
        page.figures(
            page.cell("Settings", _facts(config, _PRETRAINING)),
            page.cell(*_held_out_table(held_out), page.remarks(*_skipped(run))),
        ),
        page.folded("The whole config.yaml", _content(run.config)),
        page.folded("versions.json: packages and machine", _content(run.versions)),
    ]
    return page.Section("pre-training", "Pre-training", f"{last['step']:,} optimiser steps{seen} (run {folder.name}).", parts)


def _content(path: Path) -> str:
    return path.read_text("utf-8", errors="replace") if path.is_file() else ""


def _held_out_table(held_out: HeldOut) -> tuple[str, str]:
    """Title and table of the scores on held-out rows."""
    names = [name for row in held_out.exits.values() for name, value in row.items() if isinstance(value, int | float)]
    columns = list(dict.fromkeys(names))
    rows = [[f"exit {name}", *(_number(row.get(column)) for column in columns)] for name, row in held_out.exits.items()]
    title = "Held-out rows" if held_out.rows is None else f"Held-out rows ({held_out.rows:,})"
    return title, page.table(["", *columns], rows)


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "-"


def _skipped(run: RunDirectory) -> tuple[list[str], str]:
    """Lines on steps that changed no weight, and the style of their box."""
    lines = _content(run.skipped).splitlines()
    reasons: Counter[str] = Counter()
    for number, line in enumerate(lines, 1):
        try:
            reasons[str(mapping(parse_json(line.encode())).get("reason", "not recorded"))] += 1
        except ValueError as error:
            # The last line of a killed run may be cut; the run trims it when it resumes.
            if number < len(lines):
                raise MoseError(f"{run.skipped}: line {number}: not JSON: {error}") from None
    if not reasons:
        return ["No step was skipped."], "good"
    return [f"{count:,} steps in skipped.jsonl: {reason}" for reason, count in reasons.most_common()], "short"


def finetuning_section(folder: Path | None) -> page.Section | None:
    """Fine-tuning of the run directory `folder`; None where it is not there.

    Raises:
        MoseError: a file of the run is damaged.
    """
    if folder is None or not (metrics := RunDirectory(folder).read_metrics()):
        return None
    run = RunDirectory(folder)

    def losses(made: Figure) -> None:
        axes = made.subplots()
        loss = next((name.rpartition("/")[2] for name in metrics[0] if name.startswith("loss/exit_")), "clip")
        charts.by_exit(axes, metrics, ("loss/exit_", f"/{loss}"), ("none", "none"))
        axes.set(title="Contrastive loss of each exit", xlabel="optimiser step", ylabel="loss (nats per pair)")

    def quality(made: Figure) -> None:
        axes = made.subplots()
        charts.by_exit(axes, metrics, ("accuracy/exit_", "/in_batch"), ("validation/exit_", "/mrr"))
        axes.set(title="Own code first in its batch; MRR of the validation", xlabel="optimiser step", ylabel="share, MRR")

    def similarity(made: Figure) -> None:
        axes = made.subplots()
        charts.by_exit(axes, metrics, ("similarity/exit_", "/mean_cosine"), ("none", "none"))
        axes.set(title="Mean cosine of different texts", xlabel="optimiser step", ylabel="cosine (1: collapsed)")

    parts = [
        page.figures(
            page.figure(charts.draw("fine-tuning losses", losses)),
            page.figure(charts.draw("fine-tuning quality", quality), "Lines: training batches; dots: validation queries."),
            page.figure(charts.draw("fine-tuning similarity", similarity)),
            page.cell("Settings", _facts(read_config(run), _FINE_TUNING)),
        ),
        page.folded("The whole config.yaml", _content(run.config)),
    ]
    last = metrics[-1]
    speed = last.get(_PAIRS_PER_SECOND)
    rate = f", {speed:,.0f} pairs per second at the end" if isinstance(speed, int | float) else ""
    return page.Section("fine-tuning", "Fine-tuning", f"{last['step']:,} steps{rate} (run {folder.name}).", parts)

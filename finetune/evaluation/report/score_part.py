"""The report's sections on scores: docstring search of every exit beside its references, and the benchmarks."""

import re
from collections.abc import Sequence

from matplotlib.figure import Figure

from finetune.evaluation.benchmark.figures import exit_tests, quality_against_gflops, quality_by_depth
from finetune.evaluation.benchmark.result import BenchmarkResult
from finetune.evaluation.benchmark.table import markdown
from finetune.evaluation.report import charts, page
from finetune.evaluation.report.held_out import HeldOut
from finetune.evaluation.report.picture import draw_quality
from finetune.evaluation.report.table import notes, report_table
from finetune.evaluation.results import Evaluation

_FALLS_SHORT = "falls short: "
_RULE = re.compile(r"\| ?-{3}:?(?: \| -{3}:?)* \|")


def scores_section(
    held_out: HeldOut, evaluation: Evaluation, control: Evaluation | None, start: Evaluation | None
) -> page.Section:
    """Every exit on held-out repositories, from masked tokens to retrieval."""
    lines = notes(held_out, evaluation, control, start)
    short = [line.removeprefix(_FALLS_SHORT) for line in lines if line.startswith(_FALLS_SHORT)]
    others = [line for line in lines if not line.startswith(_FALLS_SHORT)]

    def quality(made: Figure) -> None:
        draw_quality(made.subplots(), evaluation, control, start)

    verdict = page.remarks([f"Falls short: {line}" for line in short], "short") or page.remarks(
        ["Every exit beats the references that it should beat: counts of tokens, chance, random weights."], "good"
    )
    beaten = beaten_by(evaluation)
    remark = [f"Still better than every exit: {', '.join(beaten)}."] if beaten else []
    lead = "Find a function by its docstring, in repositories that no stage has seen; intervals are over repositories."
    parts = [
        verdict,
        page.remarks(remark, "short"),
        page.rich_table(report_table(held_out, evaluation, control, start)),
        page.figures(
            page.figure(charts.draw("quality against compute", quality, charts.WIDE), "The scale is logarithmic.", whole=True)
        ),
        page.remarks(others, "soft"),
    ]
    return page.Section("scores", "Scores of every exit", lead, parts)


def beaten_by(evaluation: Evaluation) -> list[str]:
    """Baselines whose MRR no exit reaches: they belong on the first screen, not only in the table."""
    best = max(scores.mrr.value for scores in evaluation.exits.values())
    return [f"{name} ({row.mrr.value:.3f})" for name, row in evaluation.baselines.items() if row.mrr.value > best]


def benchmark_section(result: BenchmarkResult) -> page.Section:
    """The table of `mose-finetune benchmark` and its figures."""
    shown = [
        page.figure(
            charts.convert("benchmark compute", lambda: quality_against_gflops(result)), "Quality against compute.", whole=True
        )
    ]
    for number, (key, task) in enumerate(result.tasks.items()):
        if {"mrr", "recall_at_1"} <= task.measures.keys():
            svg = charts.convert(f"benchmark depth {number}", lambda key=key: quality_by_depth(result, key))  # type: ignore[misc]
            shown.append(page.figure(svg, whole=True))
    for number, (name, model) in enumerate(result.models.items()):
        if model.tests:
            make = charts.convert(f"benchmark tests {number}", lambda n=name, m=model: exit_tests(result, n, m))  # type: ignore[misc]
            shown.append(page.figure(make, "Tests between exits.", whole=True))
    lead = f"{len(result.models)} models on {len(result.tasks)} tasks, split {result.split}; percent, 95 % intervals."
    return page.Section("benchmarks", "Benchmarks", lead, [_from_markdown(markdown(result)), page.figures(*shown)])


def _from_markdown(content: str) -> str:
    """The headings, paragraphs and tables of `benchmark.md`, which is the one place that lays the numbers out."""
    parts: list[str] = []
    for block in content.split("\n\n"):
        lines = block.strip().split("\n")
        if lines[0].startswith("# "):
            continue
        if lines[0].startswith("## "):
            parts.append(page.heading(_plain(lines[0].removeprefix("## "))))
        elif len(lines) > 1 and _RULE.fullmatch(lines[1]):
            parts.append(page.table(_cells(lines[0]), [_cells(line) for line in lines[2:]]))
        else:
            parts.append(page.paragraph(_plain(" ".join(lines)), "soft"))
    return "".join(parts)


def _cells(line: str) -> Sequence[str]:
    return [_plain(cell) for cell in line.removeprefix("| ").removesuffix(" |").split(" | ")]


def _plain(words: str) -> str:
    return words.replace(r"\*", "\0").replace("**", "").replace("\0", "*")

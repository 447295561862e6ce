"""How scores are written for people: cells, the table of one evaluation, and a table as plain text."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from finetune.evaluation.metrics import Score
from finetune.evaluation.results import Result
from mose.files.streams import escaped

MISSING = "-"


def score_cell(score: Score) -> str:
    """`.412 [.381, .440]`: the value and its 95 % interval."""
    return f"{_short(score.value)} [{_short(score.interval[0])}, {_short(score.interval[1])}]"


def signed_score_cell(score: Score) -> str:
    """`+.041 [+.012, +.070]`: a difference and its 95 % interval."""
    value, low, high = (f"{number:+.3f}".replace("0.", ".", 1) for number in (score.value, *score.interval))
    return f"{value} [{low}, {high}]"


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0") if value < 1 else f"{value:.2f}"


def parameters_cell(parameters: int) -> str:
    """Parameters in millions, with three significant digits at least."""
    return _three_digits(parameters / 1e6)


def gflops_cell(gflops: float) -> str:
    """10^9 operations with three significant digits at least."""
    return _three_digits(gflops)


def _three_digits(value: float) -> str:
    return f"{value:,.1f}" if value >= 100 else f"{value:.3g}"


def chart_label(text: str) -> str:
    """A name as matplotlib draws it unchanged: a dollar sign would begin a formula, and SVG holds no control characters."""
    return escaped(text).replace("$", r"\$")


def evaluation_table(
    columns: Mapping[str, str],
    title: str,
    result: Result,
    references: Mapping[str, Sequence[str]],
    compared: Mapping[str, Result],
) -> Table:
    """Exit x parameters, GFLOPs per row and the task's columns; its references and the compared runs below."""
    table = Table(title=title, title_justify="left")
    table.add_column("exit")
    for name in ("parameters (M)", f"GFLOPs per row ({result.flops_tokens} tokens)", *columns.values()):
        table.add_column(name, justify="right")
    _add_exits(table, "", columns, result)
    table.add_section()
    for name, cells in references.items():
        table.add_row(name, MISSING, MISSING, *cells)
    for name, other in compared.items():
        table.add_section()
        _add_exits(table, f"{name}, ", columns, other)
    return table


def _add_exits(table: Table, prefix: str, columns: Mapping[str, str], result: Result) -> None:
    for name, exit_scores in result.exits.items():
        cells = (parameters_cell(exit_scores.parameters), gflops_cell(exit_scores.gflops_per_row))
        table.add_row(f"{prefix}exit {name}", *cells, *(score_cell(getattr(exit_scores, field)) for field in columns))

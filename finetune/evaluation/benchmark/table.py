"""`benchmark.md`: all models in one table, each task's scores with intervals, and the tests between exits."""

from collections.abc import Iterator, Sequence

from finetune.evaluation.benchmark.result import MEAN, BenchmarkResult, ExitResult, ModelResult, TaskResult
from finetune.evaluation.metrics import Score
from finetune.evaluation.systems.system import ONLY_EXIT
from finetune.evaluation.table import MISSING, gflops_cell, parameters_cell

_STRONG, _WEAK = 0.001, 0.05


def markdown(result: BenchmarkResult) -> str:
    """The whole page."""
    lines = ["# Benchmark", "", *summary(result), ""]
    for key, task in result.tasks.items():
        lines += [f"## {task.title}", "", *_task_lines(result, key, task), ""]
    lines += [*_mteb_lines(result), *_test_lines(result)]
    return "\n".join(lines).rstrip("\n") + "\n"


def summary(result: BenchmarkResult) -> list[str]:
    """All models and exits x the main measure of each part, in percent; the best of each column is bold."""
    columns = [
        (key, part, task.main_measure)
        for key, task in result.tasks.items()
        for part in (*task.parts, *([MEAN] if len(task.parts) > 1 else []))
    ]
    heads = [
        " ".join(word for word in (result.tasks[key].title, part, result.tasks[key].measures[measure]) if word)
        for key, part, measure in columns
    ]
    best = [
        max((found.value for _, row in _rows(result) if (found := row.score(*column)) is not None), default=0.0)
        for column in columns
    ]
    body = []
    for name, row in _rows(result):
        cells = []
        for column, highest in zip(columns, best, strict=True):
            found = row.score(*column)
            cell = MISSING if found is None else f"{100 * found.value:.1f}"
            cells.append(f"**{cell}**" if found is not None and found.value == highest else cell)
        body.append([name, *_cost_cells(row), *cells])
    head = ["model", "parameters (M)", f"GFLOPs ({result.flops_tokens} tokens)", *heads]
    return _table(head, body)


def _rows(result: BenchmarkResult) -> Iterator[tuple[str, ExitResult]]:
    for name, model in result.models.items():
        for exit_name, row in model.exits.items():
            yield _row_name(name, exit_name), row


def _row_name(name: str, exit_name: str) -> str:
    return name if exit_name == ONLY_EXIT else f"{name}, exit {exit_name}"


def _cost_cells(row: ExitResult) -> list[str]:
    parameters = MISSING if row.parameters is None else parameters_cell(row.parameters)
    return [parameters, MISSING if row.gflops_per_row is None else gflops_cell(row.gflops_per_row)]


def _task_lines(result: BenchmarkResult, key: str, task: TaskResult) -> list[str]:
    counts = [
        f"{part}{': ' if part else ''}{', '.join(f'{count:,} {name}' for name, count in facts.items())}"
        for part, facts in task.parts.items()
    ]
    lines = ["; ".join([*counts, *task.notes]) + ". Percent, 95 % intervals.", ""]
    parts = [*task.parts, *([MEAN] if len(task.parts) > 1 else [])]
    columns = [(part, measure) for part in parts for measure in task.measures]
    heads = [" ".join(word for word in (part, task.measures[measure]) if word) for part, measure in columns]
    body = [
        [name, *(_interval_cell(row.score(key, part, measure)) for part, measure in columns)]
        for name, row in _rows(result)
        if key in row.scores
    ]
    return [*lines, *_table(["model", *heads], body)]


def _interval_cell(score: Score | None) -> str:
    if score is None:
        return MISSING
    return f"{100 * score.value:.1f} [{100 * score.interval[0]:.1f}, {100 * score.interval[1]:.1f}]"


def _mteb_lines(result: BenchmarkResult) -> Iterator[str]:
    """Main scores by mteb's own code."""
    tasks = list(dict.fromkeys(task for model in result.models.values() for task in model.mteb))
    if not tasks:
        return
    yield from ("## Tasks of mteb", "", "The main score of each task (NDCG@10 for CoIR), percent, by mteb's own runner.", "")
    body = [
        [_row_name(name, exit_name), *(f"{100 * model.mteb[task][exit_name]:.1f}" for task in tasks)]
        for name, model in result.models.items()
        for exit_name in model.exits
        if model.mteb
    ]
    yield from (*_table(["model", *tasks], body), "")


def _test_lines(result: BenchmarkResult) -> Iterator[str]:
    """Differences between the exits of each model that has several."""
    for name, model in result.models.items():
        if not model.tests:
            continue
        yield f"## Exits of {name}, compared"
        yield ""
        yield "Shallower minus deeper exit, percent points, paired 95 % interval; permutations: \\* p < 0.05, \\*\\* p < 0.001."
        yield ""
        yield from _table(["exits", *_test_heads(result, model)], _test_rows(model))
        yield ""


def _test_heads(result: BenchmarkResult, model: ModelResult) -> list[str]:
    return [
        " ".join(word for word in (result.tasks[key].title, part, result.tasks[key].measures[test.measure]) if word)
        for key, parts in model.tests.items()
        for part, test in parts.items()
    ]


def _test_rows(model: ModelResult) -> list[list[str]]:
    tests = [test for parts in model.tests.values() for test in parts.values()]
    return [
        [pair, *(f"{_signed(test.differences[pair].difference)}{stars(test.differences[pair].p)}" for test in tests)]
        for pair in tests[0].differences
    ]


def _signed(score: Score) -> str:
    value, low, high = (f"{100 * number:+.1f}" for number in (score.value, *score.interval))
    return f"{value} [{low}, {high}]"


def stars(p: float) -> str:
    """Marks of significance, as in the paper's Fig. 4."""
    return " **" if p < _STRONG else " *" if p < _WEAK else ""


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    # Stars of significance are no emphasis.
    rows = [[cell.replace(" **", r" \*\*").replace(" *", r" \*") for cell in row] for row in body]
    return [_line(head), _line(["---", *["---:"] * (len(head) - 1)]), *(_line(row) for row in rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"

"""`mose-finetune benchmark`: scores models on tasks and writes benchmark.json, benchmark.md and the figures."""

from pathlib import Path

from finetune.evaluation.benchmark.config import BenchmarkConfig
from finetune.evaluation.benchmark.figures import draw_figures
from finetune.evaluation.benchmark.result import RESULT_NAME, write_result
from finetune.evaluation.benchmark.run import run
from finetune.evaluation.benchmark.table import markdown, summary
from mose.files.atomic_file import write_text
from mose.files.lock import lock_file


def benchmark(config: BenchmarkConfig) -> None:
    """Score, print the summary, and write the result; the same command continues a killed run.

    Raises:
        MoseError: another process works in `output`, or a file, a model or a server cannot be used; one line.
    """
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    with lock_file(output / "benchmark.lock", str(output), "one benchmark at a time per output folder"):
        result = run(config)
        write_text(output / "benchmark.md", markdown(result))
        figures = draw_figures(result, output / "figures")
        # The JSON comes last: where it is, the rest is.
        write_result(output / RESULT_NAME, result)
    print("\n".join(summary(result)))
    print(f"wrote {', '.join(str(path) for path in (output / RESULT_NAME, output / 'benchmark.md', *figures))}")

"""The command `mose-finetune`: train a retrieval model or a classifier, score every exit, report, and search."""

import sys
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from finetune.config import CardConfig, ClassificationConfig, EvaluationConfig, ReportConfig, RetrievalConfig
from finetune.embedding.config import ChooseExitConfig, EmbedConfig, SearchConfig
from mose.command import STOPPED, Command, add_config, read_config, run_command
from mose.config import document_fields


def main() -> None:
    """Run `mose-finetune` with the process's arguments."""
    document_fields()
    sys.exit(run_command("mose-finetune", "Fine-tune and score a pre-trained multi-exit encoder.", commands()))


def commands() -> dict[str, Command]:
    """The subcommands by name."""
    return {
        "retrieval": Command(
            "Fine-tune a converted checkpoint for text-to-code and code-to-code search.", _resumable(RetrievalConfig), _retrieval
        ),
        "classification": Command(
            "Fine-tune a converted checkpoint to classify texts or pairs, and score every exit.",
            _resumable(ClassificationConfig),
            _classification,
        ),
        "evaluate": Command(
            "Score every exit against distractors, with baselines on the same candidates.", _takes(EvaluationConfig), _evaluate
        ),
        "benchmark": Command(
            "Score models on benchmarks: every exit in one pass, one table, figures.",
            _add_benchmark,
            _benchmark,
        ),
        "report": Command(
            "Write one HTML page of a whole run, from data to the scores of every exit.", _takes(ReportConfig), _report
        ),
        "card": Command(
            "Write a folder's README.md again: a model card with scores, times of each exit, and a licence.",
            _takes(CardConfig),
            _card,
        ),
        "embed": Command("Embed texts of files at one or several exits, into .npy or .parquet.", _takes(EmbedConfig), _embed),
        "choose-exit": Command(
            "Time each exit on this machine, and recommend one for a budget.", _takes(ChooseExitConfig), _choose_exit
        ),
        "search": Command(
            "Answer a question with functions of a folder, or held-out questions of a pairs file, at several exits.",
            _add_search,
            _search,
        ),
    }


def _takes(config_class: type[Any]) -> Any:
    def add_arguments(parser: ArgumentParser) -> None:
        add_config(parser, config_class)

    return add_arguments


def _resumable(config_class: type[Any]) -> Any:
    def add_arguments(parser: ArgumentParser) -> None:
        add_config(parser, config_class)
        resume = (
            "auto: continue the run in `output` from its newest whole checkpoint; never: refuse a directory that holds a run."
        )
        parser.add_argument("--resume", type=str, choices=["auto", "never"], default="auto", help=resume)

    return add_arguments


def _add_search(parser: ArgumentParser) -> None:
    add_config(parser, SearchConfig)
    parser.add_argument("folder", type=str, nargs="?", help="Folder whose functions are searched.")
    parser.add_argument("question", type=str, nargs="*", help="What to look for, in plain words; may be given more than once.")


def _add_benchmark(parser: ArgumentParser) -> None:
    from finetune.evaluation.benchmark.config import BenchmarkConfig

    add_config(parser, BenchmarkConfig)


# Each stage is imported when it runs, so that `--help` does not wait for torch, scikit-learn and matplotlib.
def _retrieval(parsed: Namespace) -> int | None:
    from mose.files.stop_signal import launcher_processes

    # Before the imports below, which take seconds: a launcher that ends meanwhile is noticed, too.
    launcher = launcher_processes()
    from finetune.retrieval.train import train

    return None if train(read_config(parsed, RetrievalConfig), parsed.resume, launcher) else STOPPED


def _classification(parsed: Namespace) -> int | None:
    from mose.files.stop_signal import launcher_processes

    launcher = launcher_processes()
    from finetune.classification.train import train

    return None if train(read_config(parsed, ClassificationConfig), parsed.resume, launcher) else STOPPED


def _evaluate(parsed: Namespace) -> None:
    from finetune.evaluation.benchmark.command import benchmark
    from finetune.evaluation.benchmark.config import BenchmarkConfig
    from finetune.evaluation.tasks.command import evaluate
    from finetune.evaluation.tasks.registry import is_benchmark

    config = read_config(parsed, EvaluationConfig)
    if is_benchmark(config.task):
        benchmark(BenchmarkConfig.of_evaluation(config))
    else:
        evaluate(config)


def _benchmark(parsed: Namespace) -> None:
    from finetune.evaluation.benchmark.command import benchmark
    from finetune.evaluation.benchmark.config import BenchmarkConfig

    benchmark(read_config(parsed, BenchmarkConfig))


def _report(parsed: Namespace) -> None:
    from finetune.evaluation.report.command import report

    report(read_config(parsed, ReportConfig))


def _card(parsed: Namespace) -> None:
    from finetune.evaluation.cards.command import card

    card(read_config(parsed, CardConfig))


def _embed(parsed: Namespace) -> None:
    from finetune.embedding.embed import embed

    embed(read_config(parsed, EmbedConfig))


def _choose_exit(parsed: Namespace) -> None:
    from finetune.embedding.choose_exit import choose_exit

    choose_exit(read_config(parsed, ChooseExitConfig))


def _search(parsed: Namespace) -> None:
    from finetune.embedding.search.command import search

    search(read_config(parsed, SearchConfig), parsed.folder, parsed.question or [])


if __name__ == "__main__":
    main()

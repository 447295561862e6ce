"""The command `mose-finetune`: train a retrieval model or a classifier, score every exit, report, and search."""

import sys
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from finetune.config import ClassificationConfig, EvaluationConfig, ReportConfig, RetrievalConfig, SearchConfig
from mose.command import Command, add_config, read_config, run_command
from mose.config import document_fields


def main() -> None:
    """Run `mose-finetune` with the process's arguments."""
    document_fields()
    sys.exit(run_command("mose-finetune", "Fine-tune and score a pre-trained multi-exit encoder.", commands()))


def commands() -> dict[str, Command]:
    """The subcommands by name."""
    return {
        "retrieval": Command(
            "Fine-tune a converted checkpoint for text-to-code and code-to-code search.", _takes(RetrievalConfig), _retrieval
        ),
        "classification": Command(
            "Fine-tune a converted checkpoint to classify texts or pairs, and score every exit.",
            _takes(ClassificationConfig),
            _classification,
        ),
        "evaluate": Command(
            "Score every exit against distractors, with baselines on the same candidates.", _takes(EvaluationConfig), _evaluate
        ),
        "report": Command(
            "Join a pre-training run and its retrieval scores in one table and picture.", _takes(ReportConfig), _report
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


def _add_search(parser: ArgumentParser) -> None:
    add_config(parser, SearchConfig)
    parser.add_argument("folder", type=str, nargs="?", help="Folder whose Python functions are searched.")
    parser.add_argument("question", type=str, nargs="*", help="What to look for, in plain words; may be given more than once.")


# Each stage is imported when it runs, so that `--help` does not wait for torch, scikit-learn and matplotlib.
def _retrieval(parsed: Namespace) -> None:
    from finetune.retrieval.train import train

    train(read_config(parsed, RetrievalConfig))


def _classification(parsed: Namespace) -> None:
    from finetune.classification.train import train

    train(read_config(parsed, ClassificationConfig))


def _evaluate(parsed: Namespace) -> None:
    from finetune.evaluation.tasks.command import evaluate

    evaluate(read_config(parsed, EvaluationConfig))


def _report(parsed: Namespace) -> None:
    from finetune.evaluation.report import report

    report(read_config(parsed, ReportConfig))


def _search(parsed: Namespace) -> None:
    from finetune.search.command import search

    search(read_config(parsed, SearchConfig), parsed.folder, parsed.question or [])


if __name__ == "__main__":
    main()

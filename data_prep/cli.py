"""The command `mose-data`."""

from __future__ import annotations

import importlib
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # The parser takes half a second to import, in which Ctrl-C may come: `main` imports it where it catches that.
    from jsonargparse import ArgumentParser, Namespace

    from mose.command import Command

# As in `mose.command`, which must not be imported for it.
INTERRUPTED = 130
DESCRIPTION = "Repositories in, packed shards out."

# Name, module below this package, and summary of each subcommand, in the order of their use. A module is imported only when its
# command runs: importing all of them takes two seconds.
COMMANDS = (
    ("train-tokenizer", "tokenization.train_tokenizer", "Train a sentencepiece tokenizer on the training repositories."),
    ("group", "sources.ingest.grouping.command", "Group The Stack v2's rows by repository into parts, in bounded memory."),
    ("fetch", "sources.ingest.fetching.command", "Fetch bodies of The Stack v2 from Software Heritage into a blob store."),
    ("dedup", "dedup.command", "Remove near-duplicates of rows that stay: MinHash candidates, exact Jaccard."),
    ("pack", "execution.pack", "Pack repositories into a data set; a rerun completes what is missing."),
    ("status", "execution.status", "Show the progress of a data set; exit code 0 when all tasks are done, else 1."),
    ("finish", "execution.finish", "Merge the tasks of a data set that ran one by one, and check that nothing is missing."),
    ("verify", "tools.verify", "Check every shard, index and lineage table of a data set against its manifest."),
    ("inspect", "tools.inspect_row", "Print one row as text, with where its snippets come from."),
    ("lineage", "tools.lineage", "Show which files a row holds, or which rows hold a file or a repository."),
    ("stats", "tools.stats.command", "Show what a data set holds, as tables and as one page."),
    ("card", "tools.card", "Write a data card: sources, filters, licences, languages, limits, as Markdown for a Hub page."),
    ("dropped", "tools.dropped", "List the files and pieces that were dropped, each with its reason."),
    (
        "remove",
        "tools.removal.command",
        "Remove listed files from a data set; every row keeps its number; exit code 1 if an entry matches nothing.",
    ),
    ("pairs", "synthconl.mining.pairs", "Mine (docstring, function) pairs for fine-tuning from the repositories' Python files."),
    ("seeds", "synthconl.mining.seeds", "Mine documented functions of many languages, as seeds of translation."),
    ("translate", "synthconl.translation.command", "Translate seeds into a second language by a model behind a server."),
    (
        "synthconl",
        "synthconl.release.command",
        "Write triplets of text, function and translation, with a data card.",
    ),
)


def commands() -> dict[str, Command]:
    """The subcommands by name, in the order of their use; each imports its module when its arguments are needed."""
    return {name: _late(f"{__package__}.{module}", summary) for name, module, summary in COMMANDS}


def _late(module: str, summary: str) -> Command:
    def found() -> Command:
        command: Command = importlib.import_module(module).COMMAND
        return command

    def add_arguments(parser: ArgumentParser) -> None:
        try:
            found().add_arguments(parser)
        except KeyboardInterrupt:
            # Imports take most of a second, in which Ctrl-C may come, too.
            raise SystemExit(_interrupted()) from None

    def run(parsed: Namespace) -> int | None:
        try:
            return found().run(parsed)
        except KeyboardInterrupt:
            return _interrupted()

    from mose.command import Command

    return Command(summary, add_arguments, run)


def _interrupted() -> int:
    print("mose-data: interrupted; the same command goes on from what is finished", file=sys.stderr, flush=True)
    return INTERRUPTED


def main() -> None:
    """Run the command line and leave with its exit code."""
    try:
        from mose.command import run_command
        from mose.config import document_fields

        document_fields()
        code = run_command("mose-data", DESCRIPTION, commands())
    except KeyboardInterrupt:
        code = _interrupted()
    if code == INTERRUPTED:
        # A second Ctrl-C would only interrupt the end of the interpreter, with a traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    main()

"""The command `mose-data`."""

import sys
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from data_prep import pairs, tokenizer_training
from data_prep.config import PackConfig
from data_prep.dataset import finish, pack_dataset
from data_prep.inspection import show_row
from data_prep.summary import print_summary
from data_prep.verify import verify_dataset
from mose.command import BAD_INPUT, Command, add_config, read_config, run_command
from mose.config import document_fields
from mose.manifest import SPLITS, read_manifest

DESCRIPTION = "Repositories in, packed shards out."


def commands() -> dict[str, Command]:
    """The subcommands by name."""
    return {
        "train-tokenizer": tokenizer_training.COMMAND,
        "pack": Command("Pack repositories into a data set; a rerun completes what is missing.", _add_pack, _pack),
        "finish": Command("Write the manifest of a data set whose tasks ran one by one.", _add_dataset, _finish),
        "verify": Command("Check every shard and lineage table of a data set against its manifest.", _add_dataset, _verify),
        "inspect": Command("Print one row as text, with where its snippets come from.", _add_inspect, _inspect),
        "stats": Command("Print what a data set holds.", _add_dataset, _stats),
        "pairs": pairs.COMMAND,
    }


def main() -> None:
    """Run the command line and leave with its exit code."""
    document_fields()
    sys.exit(run_command("mose-data", DESCRIPTION, commands()))


def _add_pack(parser: ArgumentParser) -> None:
    add_config(parser, PackConfig)
    parser.add_argument(
        "--task", type=int | None, default=None, help="Run only this task, 0 to num_tasks - 1; then `mose-data finish`."
    )


def _pack(parsed: Namespace) -> None:
    config = read_config(parsed, PackConfig)
    manifest = pack_dataset(config, parsed.task)
    if manifest is None:
        print(f"task {parsed.task} of {config.num_tasks} is done; `mose-data finish {config.output}` when all are")
    else:
        print_summary(manifest)


def _add_dataset(parser: ArgumentParser) -> None:
    parser.add_argument("dataset", type=str, help="Folder of the data set.")


def _finish(parsed: Namespace) -> None:
    print_summary(finish(Path(parsed.dataset)))


def _stats(parsed: Namespace) -> None:
    print_summary(read_manifest(Path(parsed.dataset)))


def _verify(parsed: Namespace) -> int:
    problems = verify_dataset(Path(parsed.dataset))
    for problem in problems:
        print(f"mose-data: error: {problem}", file=sys.stderr)
    if not problems:
        print("ok")
    return BAD_INPUT if problems else 0


def _add_inspect(parser: ArgumentParser) -> None:
    _add_dataset(parser)
    parser.add_argument("--split", type=str, default=SPLITS[0], help="train or held_out.")
    parser.add_argument("--row", type=int, default=0, help="Row number in the split, from 0.")


def _inspect(parsed: Namespace) -> None:
    show_row(Path(parsed.dataset), parsed.split, parsed.row)


if __name__ == "__main__":
    main()

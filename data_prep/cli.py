"""The command `mose-data`."""

import sys

from data_prep import pairs
from data_prep.execution import finish, status
from data_prep.execution import pack as dataset
from data_prep.filters import dropped_log as dropped
from data_prep.ingest.fetching import command as fetching
from data_prep.ingest.grouping import command as grouping
from data_prep.tokenization import train_tokenizer as tokenizer_training
from data_prep.tools import inspect_row as inspection
from data_prep.tools import lineage, verify
from data_prep.tools.removal import command as removal
from data_prep.tools.stats import command as stats
from mose.command import Command, run_command
from mose.config import document_fields

DESCRIPTION = "Repositories in, packed shards out."


def commands() -> dict[str, Command]:
    """The subcommands by name, in the order of their use."""
    return {
        "train-tokenizer": tokenizer_training.COMMAND,
        "group": grouping.COMMAND,
        "fetch": fetching.COMMAND,
        "pack": dataset.COMMAND,
        "status": status.COMMAND,
        "finish": finish.COMMAND,
        "verify": verify.COMMAND,
        "inspect": inspection.COMMAND,
        "lineage": lineage.COMMAND,
        "stats": stats.COMMAND,
        "dropped": dropped.COMMAND,
        "remove": removal.COMMAND,
        "pairs": pairs.COMMAND,
    }


def main() -> None:
    """Run the command line and leave with its exit code."""
    document_fields()
    sys.exit(run_command("mose-data", DESCRIPTION, commands()))


if __name__ == "__main__":
    main()

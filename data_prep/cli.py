"""The command `mose-data`."""

import sys

from data_prep import pairs
from data_prep.execution import finish, pack, status
from data_prep.ingest.fetching import command as fetch
from data_prep.ingest.grouping import command as group
from data_prep.tokenization import train_tokenizer
from data_prep.tools import dropped, inspect_row, lineage, verify
from data_prep.tools.removal import command as remove
from data_prep.tools.stats import command as stats
from mose.command import Command, run_command
from mose.config import document_fields

DESCRIPTION = "Repositories in, packed shards out."


def commands() -> dict[str, Command]:
    """The subcommands by name, in the order of their use."""
    return {
        "train-tokenizer": train_tokenizer.COMMAND,
        "group": group.COMMAND,
        "fetch": fetch.COMMAND,
        "pack": pack.COMMAND,
        "status": status.COMMAND,
        "finish": finish.COMMAND,
        "verify": verify.COMMAND,
        "inspect": inspect_row.COMMAND,
        "lineage": lineage.COMMAND,
        "stats": stats.COMMAND,
        "dropped": dropped.COMMAND,
        "remove": remove.COMMAND,
        "pairs": pairs.COMMAND,
    }


def main() -> None:
    """Run the command line and leave with its exit code."""
    document_fields()
    sys.exit(run_command("mose-data", DESCRIPTION, commands()))


if __name__ == "__main__":
    main()

"""The `mose-cluster` command."""

import sys

from jsonargparse import ArgumentParser, Namespace

from cluster.config import PackJobConfig, PretrainJobConfig
from cluster.launch import launch_pack, launch_pretrain, render_pack, render_pretrain
from mose.command import Command, add_config, read_config, run_command
from mose.config import document_fields


def commands() -> dict[str, Command]:
    """The subcommands of `mose-cluster`."""
    return {"launch": Command("Submit a pre-training or packing job to SLURM, or print its script.", _launch_arguments, _launch)}


def _launch_arguments(parser: ArgumentParser) -> None:
    group = parser.add_subcommands(metavar="JOB")
    for name, config_class in (("pretrain", PretrainJobConfig), ("pack", PackJobConfig)):
        job = ArgumentParser(description=config_class.__doc__, exit_on_error=False)
        add_config(job, config_class)
        job.add_argument("--print-only", action="store_true", help="Print the script; submit nothing and write nothing.")
        if name == "pack":
            job.add_argument(
                "--missing-only", action="store_true", help="Submit only the tasks that are neither done nor running."
            )
        group.add_subcommand(name, job, help=config_class.__doc__)


def _launch(parsed: Namespace) -> None:
    options = parsed[parsed.subcommand]
    (_launch_pretrain if parsed.subcommand == "pretrain" else _launch_pack)(options)


def _launch_pretrain(options: Namespace) -> None:
    config = read_config(options, PretrainJobConfig)
    print(render_pretrain(config) if options.print_only else f"submitted job {launch_pretrain(config)}")


def _launch_pack(options: Namespace) -> None:
    config = read_config(options, PackJobConfig)
    if options.print_only:
        print(render_pack(config, missing_only=options.missing_only))
        return
    array, finish = launch_pack(config, missing_only=options.missing_only)
    print(f"submitted job {array} (tasks) and job {finish} (status and merge, when every task has ended)")


def main() -> None:
    """Entry point of `mose-cluster`."""
    document_fields()
    sys.exit(run_command("mose-cluster", "Jobs on a SLURM cluster.", commands()))


if __name__ == "__main__":
    main()

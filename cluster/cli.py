"""The `mose-cluster` command."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from cluster.doctor import examine
from cluster.jobs.config import (
    AllocationConfig,
    PackJobConfig,
    SuperviseConfig,
)
from cluster.jobs.stages import STAGES
from cluster.launch.pipeline import PipelineConfig, job_config, render_pipeline, submit_pipeline
from cluster.launch.submit import (
    LaunchRequest,
    launch_command,
    launch_finetune,
    launch_pack,
    launch_pretrain,
    launch_tensorboard,
    render_command,
    render_finetune,
    render_pack,
    render_pretrain,
)
from cluster.plan.show import PlanConfig, make_plan, print_plan
from cluster.preflight.command import PreflightRequest, run_preflight
from cluster.status.show import STALL_SECONDS, WatchOptions, exit_code, print_statuses, read_all, watch
from mose.command import Command, add_config, read_config, run_command
from mose.config import document_fields
from mose.errors import MoseError


def commands(after_dashes: Sequence[str] = ()) -> dict[str, Command]:
    """The subcommands of `mose-cluster`; `after_dashes` is the command that a supervisor runs."""

    def supervise(parsed: Namespace) -> int:
        from cluster.supervise.supervisor import Supervisor

        if not after_dashes:
            raise MoseError("supervise: no command, expected one after --")
        return Supervisor(read_config(parsed, SuperviseConfig), after_dashes).run()

    return {
        "launch": Command("Submit a stage to SLURM, or print its script.", _launch_arguments, _launch),
        "pipeline": Command("Submit stages as a chain; again, it goes on where it stopped.", _pipeline_arguments, _pipeline),
        "plan": Command("Memory, speed, days, failures and checkpoints of a run on a cluster.", _plan_arguments, _plan),
        "status": Command("Show what runs do; exit code 1 if one needs a look.", _status_arguments, _status),
        "watch": Command("Tell of every change of a run's state until all are done.", _watch_arguments, _watch),
        "tensorboard": Command("A job that serves the curves of runs, with its ssh line.", _tensorboard_arguments, _tensorboard),
        "doctor": Command("What a job needs of this machine, and what to do.", _doctor_arguments, _doctor),
        "preflight": Command("Measure nodes: devices, products, all-reduce, clocks, disks.", _preflight_arguments, _preflight),
        "supervise": Command("Inside a job: run the command after -- and watch it.", _supervise_arguments, supervise),
    }


def _launch_arguments(parser: ArgumentParser) -> None:
    group = parser.add_subcommands(metavar="STAGE")
    for name, stage in STAGES.items():
        job = ArgumentParser(description=stage.summary, exit_on_error=False)
        add_config(job, job_config(name))
        job.add_argument("--print-only", action="store_true", help="Print the script; submit nothing and write nothing.")
        after = "Jobs that must end well before this one starts, e.g. 12 or 12:13."
        job.add_argument("--after", type=str, default="", metavar="JOB", help=after)
        if name == "pack":
            job.add_argument(
                "--missing-only", action="store_true", help="Submit only the tasks that are neither done nor running."
            )
        if stage.is_training:
            replace = "Take this config though the run directory was launched with another one."
            job.add_argument("--replace-config", action="store_true", help=replace)
        group.add_subcommand(name, job, help=stage.summary)


def _launch(parsed: Namespace) -> None:
    stage, options = parsed.subcommand, parsed[parsed.subcommand]
    request = LaunchRequest(options.after, bool(options.get("replace_config")))
    if stage == "pack":
        _launch_pack(options, request)
        return
    config: Any = read_config(options, job_config(stage))
    if stage == "pretrain":
        print(render_pretrain(config) if options.print_only else f"submitted job {launch_pretrain(config, request)}")
    elif STAGES[stage].is_training:
        print(
            render_finetune(config, stage) if options.print_only else f"submitted job {launch_finetune(config, stage, request)}"
        )
    else:
        print(render_command(config, stage) if options.print_only else f"submitted job {launch_command(config, stage, request)}")


def _launch_pack(options: Namespace, request: LaunchRequest) -> None:
    config = read_config(options, PackJobConfig)
    if options.print_only:
        print(render_pack(config, missing_only=options.missing_only))
        return
    array, finish = launch_pack(config, request, missing_only=options.missing_only)
    print(f"submitted job {array} (tasks) and job {finish} (status and merge, when every task has ended)")


def _pipeline_arguments(parser: ArgumentParser) -> None:
    add_config(parser, PipelineConfig)
    parser.add_argument("--print-only", action="store_true", help="Print the scripts; submit nothing and write nothing.")


def _pipeline(parsed: Namespace) -> None:
    config = read_config(parsed, PipelineConfig)
    if parsed.print_only:
        for name, script in render_pipeline(config).items():
            print(f"# ---- {name}\n{script}")
        return
    for outcome in submit_pipeline(config):
        print(f"{outcome.name}: {outcome.message}")


def _plan_arguments(parser: ArgumentParser) -> None:
    add_config(parser, PlanConfig)
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")


def _plan(parsed: Namespace) -> None:
    config = read_config(parsed, PlanConfig)
    print_plan(make_plan(config), config.layouts, parsed.json)


def _add_runs(parser: ArgumentParser) -> None:
    parser.add_argument("runs", type=str, nargs="+", metavar="RUN", help="Run directories.")


def _add_stall(parser: ArgumentParser) -> None:
    stall = "Seconds without a heartbeat after which a running job counts as stalled."
    parser.add_argument("--stall-seconds", type=float, default=STALL_SECONDS, help=stall)


def _status_arguments(parser: ArgumentParser) -> None:
    _add_runs(parser)
    _add_stall(parser)
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")


def _status(parsed: Namespace) -> int:
    statuses, reason = read_all(parsed.runs, parsed.stall_seconds)
    print_statuses(statuses, reason, parsed.json)
    return exit_code(statuses)


def _watch_arguments(parser: ArgumentParser) -> None:
    _add_runs(parser)
    _add_stall(parser)
    parser.add_argument("--interval-seconds", type=float, default=30.0, help="Time between two looks.")
    hook = "Command run on every change, with RUN BEFORE AFTER NOTE as further words: a mail, a webhook."
    parser.add_argument("--on-change", type=str, default="", metavar="COMMAND", help=hook)
    parser.add_argument("--log", type=str, default="", metavar="FILE", help="Append a line per change to this file.")


def _watch(parsed: Namespace) -> int:
    return watch(parsed.runs, WatchOptions(parsed.interval_seconds, parsed.stall_seconds, parsed.on_change, parsed.log))


def _tensorboard_arguments(parser: ArgumentParser) -> None:
    _add_runs(parser)
    parser.add_class_arguments(AllocationConfig, "job", fail_untyped=True)
    parser.add_argument("--print-only", action="store_true", help="Print the script; submit nothing.")


def _tensorboard(parsed: Namespace) -> None:
    job = AllocationConfig(**{**vars(parsed.job), "name": "tensorboard" if parsed.job.name == "mose" else parsed.job.name})
    found = launch_tensorboard(job, parsed.runs, print_only=parsed.print_only)
    print(
        found
        if parsed.print_only
        else f"submitted job {found}; its log begins with the ssh line: {job.log_folder}/{job.name}-{found}.log"
    )


def _doctor_arguments(parser: ArgumentParser) -> None:
    folders = "Folders whose space and inodes are looked at."
    parser.add_argument("--folders", type=str, nargs="+", default=["."], metavar="FOLDER", help=folders)
    constraints = "File of tested versions."
    parser.add_argument("--constraints", type=str, default="constraints-cuda.txt", metavar="FILE", help=constraints)


def _doctor(parsed: Namespace) -> int:
    findings = examine([Path(folder) for folder in parsed.folders], Path(parsed.constraints))
    for finding in findings:
        print(f"{finding.name}: {finding.value}" + (f" -> {finding.advice}" if finding.advice else ""))
    return 1 if any(finding.advice for finding in findings) else 0


def _preflight_arguments(parser: ArgumentParser) -> None:
    add_config(parser, PreflightRequest)


def _preflight(parsed: Namespace) -> int:
    return run_preflight(read_config(parsed, PreflightRequest))


def _supervise_arguments(parser: ArgumentParser) -> None:
    add_config(parser, SuperviseConfig)


def main() -> None:
    """Entry point of `mose-cluster`."""
    document_fields()
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    sys.exit(run_command("mose-cluster", "Jobs on a SLURM cluster.", commands(words[cut + 1 :]), words[:cut]))


if __name__ == "__main__":
    main()

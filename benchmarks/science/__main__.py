"""The paper's claims in small: `run` the study's commands, several at a time and resumable, and write the `report`.

python -m benchmarks.science run --config configs/science/small.yaml
python -m benchmarks.science report --config configs/science/small.yaml
"""

import dataclasses
import os
import platform
import signal
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from benchmarks.science.jobs import jobs_of
from benchmarks.science.page import FACTS_NAME, write_page
from benchmarks.science.runner import Execute, Outcome, Processes, Runner
from benchmarks.science.study import StudyConfig
from mose.command import Command, add_config, read_config, run_command
from mose.config import document_fields, load_config, save_config
from mose.errors import MoseError
from mose.files.atomic_file import write_json

STUDY_NAME = "study.yaml"


def commands() -> dict[str, Command]:
    """The subcommands by name."""
    return {
        "run": Command("Run what is missing of a study; the same command continues it.", _add_run, _run),
        "report": Command("Write the page and its plots from the results that a study has so far.", _add_report, _report),
    }


def _add_run(parser: ArgumentParser) -> None:
    add_config(parser, StudyConfig)
    parser.add_argument("--plan", action="store_true", help="Print the names of the commands and what each needs, and exit.")


def _run(parsed: Namespace) -> int:
    study = read_config(parsed, StudyConfig)
    if parsed.plan:
        for job in jobs_of(study):
            print(f"{job.name}{' <- ' if job.needs else ''}{', '.join(job.needs)}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    processes = Processes(max(1, (os.cpu_count() or 1) // study.workers))
    outcome = run_study(study, processes.execute, processes)
    for name, reason in outcome.failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    counts = f"{len(outcome.done)} done, {len(outcome.stopped)} stopped at a gate, {len(outcome.failed)} failed"
    print(f"{study.output}: {counts}, {len(outcome.waiting)} left; the same command continues")
    return 1 if outcome.failed else 0


def run_study(study: StudyConfig, execute: Execute, processes: Processes | None = None) -> Outcome:
    """Run the study with `execute`, and write down its config and facts for the report.

    Raises:
        MoseError: the study cannot be planned or continued.
    """
    runner = Runner(study.folder, jobs_of(study), execute, processes.stop if processes else lambda: None)
    study.folder.mkdir(parents=True, exist_ok=True)
    save_config(study, study.folder / STUDY_NAME)
    # Before the jobs, so that a page can be written while they run or after an interruption.
    write_json(study.folder / FACTS_NAME, facts())
    return runner.run(study.workers, 60 * study.minutes)


def facts() -> dict[str, str | int]:
    """Date, machine and commit of a study."""
    line = ["git", "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    date = datetime.now(timezone.utc).date().isoformat()
    return {"date": date, "cores": os.cpu_count() or 1, "machine": platform.machine(), "commit": commit}


def _add_report(parser: ArgumentParser) -> None:
    add_config(parser, StudyConfig)
    parser.add_argument("--page", type=str, default="docs/science.md", help="Markdown page to write.")
    parser.add_argument("--images", type=str, default="docs/images", help="Folder for the plots; the page links images/NAME.")


def _report(parsed: Namespace) -> None:
    given = read_config(parsed, StudyConfig)
    path = given.folder / STUDY_NAME
    if not path.is_file():
        raise MoseError(f"{path}: no such file; expected a study that `run` has started")
    # What was run counts, whatever the config says now.
    study = dataclasses.replace(load_config(StudyConfig, path), output=given.output)
    print(write_page(study, Path(parsed.page), Path(parsed.images)))
    print(f"page: {parsed.page}")


def main() -> None:
    """Run the command with the process's arguments."""
    document_fields()
    sys.exit(run_command("science", "The paper's claims in small, with intervals.", commands()))


if __name__ == "__main__":
    main()

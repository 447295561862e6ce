"""Runs the phases: one task under its lease, all missing tasks of a phase, or all phases; the first binds the output folder."""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.dedup.candidates import write_candidates
from data_prep.dedup.config import DedupConfig, content_fields
from data_prep.dedup.cut import REASONS, cut_rows
from data_prep.dedup.grouping import write_groups
from data_prep.dedup.inputs import Plan, plan_inputs
from data_prep.dedup.phase import BANDS, CUT, GROUPS, PHASES, SIGNATURES, VERIFY, Run, run_of
from data_prep.dedup.signatures import write_signatures
from data_prep.dedup.verification import write_verified
from data_prep.execution.lease import Lease, TaskHeldError
from data_prep.execution.progress import PackingMeter, show_packing
from data_prep.execution.task_files import failure_path, list_names, remove_leftovers, write_failure
from data_prep.execution.task_runner import error_line
from data_prep.execution.worker_pool import run_tasks
from data_prep.pipeline.task_marker import TaskProgress
from mose.config import load_config, save_config
from mose.errors import MoseError
from mose.files.atomic_file import TEMPORARY_MARK, write_json
from mose.files.lock import WRITER_LOCK, lock_file

CONFIG_NAME = "config.yaml"
REPORT_NAME = "report.json"
_UNITS = {SIGNATURES: "rows", BANDS: "keys", VERIFY: "pairs", GROUPS: "rows", CUT: "duplicate rows"}


class PhaseMeter(PackingMeter):
    """Shows the progress of a phase."""

    def text(self) -> str:
        """Counts of tasks and of what the phase counts, with its rate."""
        total, seconds = self._total_progress()
        units = _UNITS[self._title.rpartition(" ")[2]]
        tasks = f"{self._done:,} of {self._total:,} tasks done, {len(self._running)} under way"
        return f"{tasks}; {total.rows:,} {units} ({total.rows / seconds:,.0f}/s)"


@dataclass(frozen=True)
class PhaseRunner:
    """What all tasks of a phase share; sent to each worker process."""

    base: Run
    phase: str
    plan: Plan

    @property
    def num_workers(self) -> int:
        """Number of worker processes."""
        return self.base.config.num_workers

    @property
    def folder(self) -> Path:
        """The folder whose `tasks` hold markers, leases and failures."""
        return self.base.folder(self.phase)

    @property
    def failure_list(self) -> str:
        """Where a person finds the failed tasks, for a message."""
        return f"{self.folder}/tasks/*.failed.json"

    def run(self, task: int, task_inputs: Any, observe: Callable[[TaskProgress], None]) -> None:
        """Run one task unless it is finished.

        Raises:
            TaskHeldError: a living process works on it.
            MoseError: it failed; `tasks/task-N.failed.json` says why until it succeeds.
        """
        with Lease(self.folder, task) as lease:

            def seen(progress: TaskProgress) -> None:
                lease.observe(progress)
                observe(progress)

            if self.base.marker(self.phase, task) is None:
                self._remove_leftovers(task)
                try:
                    self._run(task, task_inputs, seen)
                except TaskHeldError:
                    raise
                except Exception as error:
                    write_failure(self.folder, task, error_line(error))
                    raise
            failure_path(self.folder, task).unlink(missing_ok=True)

    def _run(self, task: int, task_inputs: Any, observe: Callable[[TaskProgress], None]) -> None:
        if self.phase == SIGNATURES:
            write_signatures(self.base, task, task_inputs, observe)
        elif self.phase == BANDS:
            write_candidates(self.base, task, observe)
        elif self.phase == VERIFY:
            write_verified(self.base, task, observe)
        elif self.phase == GROUPS:
            write_groups(self.base, observe)
        else:
            cut_rows(self.base, self.plan, task, task_inputs, observe)

    def _remove_leftovers(self, task: int) -> None:
        remove_leftovers(self.folder, task, ("tasks", "."))
        if self.phase == CUT:
            remove_leftovers(self.base.output, task, ("groups", "rows"))


def deduplicate(config: DedupConfig, phase: str | None = None, task: int | None = None) -> dict[str, Any] | None:
    """Run the missing tasks of all phases, of one, or one task; a rerun after a kill repeats only what is not finished.

    Returns the report when every phase is done; None with `phase`.

    Raises:
        MoseError: an input cannot be read, the output holds another run, an earlier phase is incomplete, or a task failed.
    """
    if task is not None and phase is None:
        raise MoseError(f"task: is {task} without a phase; expected --phase, one of {', '.join(PHASES)}")
    plan = plan_inputs(config)
    run = run_of(config, plan)
    if task is not None and phase is not None and not 0 <= task < run.num_tasks(phase):
        raise MoseError(f"task: is {task}, expected 0 to {run.num_tasks(phase) - 1} in the phase {phase}")
    _bind(run)
    if phase is not None:
        _run_phase(run, plan, phase, task)
        return None
    with lock_file(run.output / WRITER_LOCK, config.output, "one `mose-data dedup` per output"):
        for name in PHASES:
            _run_phase(run, plan, name, None)
        report = report_of(run)
        write_json(run.output / REPORT_NAME, report)
    return report


def report_of(run: Run) -> dict[str, Any]:
    """The counts of a finished run, by phase and in total."""
    by_phase = {phase: dict(sum((Counter(marker.counts) for marker in run.markers(phase)), Counter())) for phase in PHASES}
    rows, removed = by_phase[SIGNATURES].get("rows", 0), by_phase[CUT].get("removed", 0)
    reasons = {reason: by_phase[CUT].get(reason, 0) for reason in REASONS}
    groups = by_phase[GROUPS].get("groups", 0)
    # Whoever reads the groups checks by these that all parts are there, and are those of an earlier reading.
    facts = {"fingerprint": run.fingerprint, "parts": run.num_tasks(CUT)}
    totals = {"rows": rows, "kept": rows - removed, "removed": removed, "groups": groups}
    return {**facts, **totals, "reasons": reasons, "phases": by_phase}


def _run_phase(run: Run, plan: Plan, phase: str, task: int | None) -> None:
    before = PHASES[: PHASES.index(phase)]
    if before:
        run.markers(before[-1])
    runner = PhaseRunner(run, phase, plan if phase == CUT else Plan(plan.fingerprint))
    source = _TaskSource(plan, phase)
    missing = run.missing(phase) if task is None else [task]
    number = run.num_tasks(phase)
    done = number - len(missing) if task is None else 0
    with show_packing(number if task is None else 1, done, f"dedup {phase}", PhaseMeter) as meter:
        if task is None:
            run_tasks(runner, source, missing, meter)
        else:
            meter.expect(task, 0)
            runner.run(task, source.inputs_of(task), lambda progress: meter.update(task, progress))


@dataclass(frozen=True)
class _NoInputs:
    """The inputs of a task that only reads what earlier phases wrote."""

    expected_repositories: int = 0


@dataclass(frozen=True)
class _TaskSource:
    """The inputs of each task of a phase."""

    plan: Plan
    phase: str

    def inputs_of(self, task: int) -> Any:
        return self.plan.inputs_of(task) if self.phase in (SIGNATURES, CUT) else _NoInputs()


def _bind(run: Run) -> None:
    """Write the config into the output folder, or check that the folder holds this run.

    Raises:
        MoseError: it holds another run or other files.
    """
    path = run.output / CONFIG_NAME
    if run.output.exists() and not run.output.is_dir():
        raise MoseError(f"{run.output}: output: is a file, expected a folder")
    if not path.is_file():
        if any(not name.endswith(TEMPORARY_MARK) for name in list_names(run.output)) and not path.is_file():
            raise MoseError(f"{run.output}: output: holds files but no {CONFIG_NAME}; expected a new folder or an unfinished run")
        save_config(run.config, path)
        return
    there, asked = content_fields(load_config(DedupConfig, path)), content_fields(run.config)
    for name, value in asked.items():
        if there[name] != value:
            raise MoseError(
                f"{path}: {name}: is {there[name]!r} there, {value!r} was asked for; expected the same, or another output"
            )


def print_report(report: dict[str, Any], output: str) -> None:
    """Print what was found, on standard output."""
    share = report["removed"] / max(report["rows"], 1)
    print(f"{output}: {report['kept']:,} of {report['rows']:,} rows kept, {report['removed']:,} ({share:.1%}) removed")
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in report["reasons"].items() if count)
    print(f"{report['groups']:,} groups: {reasons or 'none'}")
    signatures = report["phases"][SIGNATURES]
    if signatures.get("empty_texts"):
        print(f"{signatures['empty_texts']:,} empty texts match nothing", file=sys.stderr)
    if large := report["phases"][BANDS].get("large_keys"):
        print(f"{large:,} bands were shared by more than max_documents_per_key texts", file=sys.stderr)

"""Where a fine-tuning run reports: metrics.jsonl and TensorBoard in its run directory, lines and a bar on the console."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from finetune.config import ClassificationConfig, RetrievalConfig
from mose.config import save_config
from mose.files.atomic_file import named_errors
from mose.files.streams import make_console, progress_bar
from mose.run_directory import RunDirectory


@dataclass(frozen=True)
class RunLog:
    """The files and the console of one run; only the first rank has one."""

    run: RunDirectory
    writer: SummaryWriter
    progress: Progress
    task: TaskID

    @classmethod
    def open(cls, config: RetrievalConfig | ClassificationConfig, stage: str, step: int) -> "RunLog":
        """Write config.yaml and versions.json into the run directory, and drop metrics of steps after `step`.

        Those are of a run that was killed after its last checkpoint; the resumed run writes them again. On a terminal a bar
        starts at `step`.
        """
        run = RunDirectory(Path(config.output))
        run.create(resume=True)
        save_config(config, run.config)
        run.write_versions()
        run.trim(step)
        writer = SummaryWriter(str(run.tensorboard), purge_step=step + 1 if step else None)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        # Bar and lines go to the same stream, so that a line moves the bar down instead of running into it.
        progress = progress_bar(*columns, console=make_console(), transient=True, disable=not sys.stdout.isatty())
        task = progress.add_task(stage, total=config.steps, completed=step)
        progress.start()
        return cls(run, writer, progress, task)

    def advance(self, step: int) -> None:
        """Move the bar to `step` steps; nothing where there is none."""
        self.progress.update(self.task, completed=step)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append one line, and one point of each scalar."""
        self.run.append_metrics({"step": step, **scalars})
        with named_errors(self.run.tensorboard):
            for name, value in scalars.items():
                self.writer.add_scalar(name, value, step)

    def print(self, line: str) -> None:
        """Print one line, above the bar where there is one."""
        self.progress.console.print(line, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Remove the bar and flush TensorBoard; a second call does nothing."""
        self.progress.stop()
        with named_errors(self.run.tensorboard):
            self.writer.close()

"""Where the scalars of a fine-tuning run go: metrics.jsonl and TensorBoard in its run directory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from finetune.config import ClassificationConfig, RetrievalConfig
from mose.config import save_config
from mose.files.atomic_file import named_errors
from mose.run_directory import RunDirectory


@dataclass(frozen=True)
class ScalarLog:
    """The two files of one run; only the first rank has one."""

    run: RunDirectory
    writer: SummaryWriter

    @classmethod
    def open(cls, config: RetrievalConfig | ClassificationConfig, step: int) -> "ScalarLog":
        """Write config.yaml and versions.json into the run directory, and drop metrics of steps after `step`.

        Those are of a run that was killed after its last checkpoint; the resumed run writes them again.
        """
        run = RunDirectory(Path(config.output))
        run.create(resume=True)
        save_config(config, run.config)
        run.write_versions()
        run.trim(step)
        return cls(run, SummaryWriter(str(run.tensorboard), purge_step=step + 1 if step else None))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append one line, and one point of each scalar."""
        self.run.append_metrics({"step": step, **scalars})
        with named_errors(self.run.tensorboard):
            for name, value in scalars.items():
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush TensorBoard."""
        with named_errors(self.run.tensorboard):
            self.writer.close()

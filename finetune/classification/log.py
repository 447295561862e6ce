"""The logs of a classification run: metrics.jsonl, TensorBoard and one console line per interval.

Letters: E exits.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from finetune.classification.evaluate import SplitScores
from finetune.config import ClassificationConfig
from finetune.run_log import RunLog
from mose.run_directory import LOSS_TOTAL, VALIDATION, exit_scalar


@dataclass(frozen=True)
class StepReport:
    """What one optimiser step measured over the whole batch: mean loss and accuracy [E] of each exit; a checkpoint holds it."""

    total: float
    losses_E: list[float]
    accuracies_E: list[float]
    gradient_norm: float
    learning_rate: float
    rows: int
    seconds: float


@dataclass
class TrainingLog:
    """Collects the first rank's steps and writes their means every `log_every_steps`, and after the last step."""

    config: ClassificationConfig
    exit_layers: Sequence[int]
    output: RunLog
    last: dict[str, float] = field(default_factory=dict)
    reports: list[StepReport] = field(default_factory=list)

    @classmethod
    def open(cls, config: ClassificationConfig, exit_layers: Sequence[int], step: int = 0) -> "TrainingLog":
        """Open the run directory's files; metrics of steps after `step` are dropped (see `RunLog`)."""
        output = RunLog.open(config, "classification", step)
        lines = [line for line in output.run.read_metrics() if LOSS_TOTAL in line]
        return cls(config, exit_layers, output, lines[-1] if lines else {})

    def add(self, step: int, report: StepReport) -> None:
        """Take in the step that made the model's step count `step`."""
        self.reports.append(report)
        self.output.advance(step)
        if step % self.config.log_every_steps == 0 or step == self.config.steps:
            scalars = self.means()
            self.last = {"step": step, **scalars}
            self.output.write(step, scalars)
            self.reports.clear()
            exits = " ".join(f"{layer:02d} {scalars[exit_scalar('loss', layer, 'classes')]:.3f}" for layer in self.exit_layers)
            norm, speed = scalars["optimizer/gradient_norm"], scalars["throughput/rows_per_second"]
            self.output.print(
                f"step {step}/{self.config.steps} loss {scalars[LOSS_TOTAL]:.3f} {exits} norm {norm:.3f} rows/s {speed:,.1f}"
            )

    def add_validation(self, step: int, split: SplitScores) -> None:
        """Write the scores of the validation files after step count `step`."""
        scalars = {}
        for scores in split.exits.values():
            for term in ("f1", "accuracy"):
                scalars[VALIDATION + exit_scalar(term, scores.layer, "argmax")] = getattr(scores.argmax, term)
        self.output.write(step, scalars)
        exits = " ".join(f"{name} {scores.argmax.f1:.3f}" for name, scores in split.exits.items())
        self.output.print(f"step {step}/{self.config.steps} validation F1 {exits}")

    def means(self) -> dict[str, float]:
        """Means over the steps since the last line, by scalar name."""
        scalars = {LOSS_TOTAL: statistics.fmean(report.total for report in self.reports)}
        for index, layer in enumerate(self.exit_layers):
            losses, accuracies = ([getattr(r, name)[index] for r in self.reports] for name in ("losses_E", "accuracies_E"))
            scalars[exit_scalar("loss", layer, "classes")] = statistics.fmean(losses)
            scalars[exit_scalar("accuracy", layer, "classes")] = statistics.fmean(accuracies)
        scalars["optimizer/learning_rate"] = self.reports[-1].learning_rate
        scalars["optimizer/gradient_norm"] = statistics.fmean(report.gradient_norm for report in self.reports)
        seconds = sum(report.seconds for report in self.reports)
        scalars["throughput/rows_per_second"] = sum(report.rows for report in self.reports) / seconds
        return scalars

    def close(self) -> None:
        """Flush TensorBoard and remove the progress bar."""
        self.output.close()

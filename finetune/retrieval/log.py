"""The logs of a retrieval run: metrics.jsonl, TensorBoard and one console line per interval."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from finetune.config import RetrievalConfig
from finetune.retrieval.loss import LossRecord, RetrievalLoss
from finetune.retrieval.optimization import learning_rate
from finetune.run_log import RunLog
from mose.run_directory import LOSS_TOTAL, exit_scalar


@dataclass(frozen=True)
class StepReport:
    """What one optimiser step measured: losses, gradient norm, pairs of the whole batch, seconds; and the exits' logit scales if
    they are learned."""

    loss: RetrievalLoss
    gradient_norm: float
    pairs: int
    seconds: float
    logit_scales: tuple[float, ...] = ()

    def record(self) -> "StepRecord":
        """Its values for a checkpoint."""
        return StepRecord(self.loss.record(), self.gradient_norm, self.pairs, self.seconds, self.logit_scales)


@dataclass(frozen=True)
class StepRecord:
    """The values of a `StepReport` as plain numbers."""

    loss: LossRecord
    gradient_norm: float
    pairs: int
    seconds: float
    logit_scales: tuple[float, ...]

    def restored(self, device: torch.device) -> StepReport:
        """The report again."""
        return StepReport(self.loss.restored(device), self.gradient_norm, self.pairs, self.seconds, self.logit_scales)


@dataclass
class TrainingLog:
    """Collects the first rank's steps and writes their means every `log_every_steps`, and after the last step."""

    config: RetrievalConfig
    exit_layers: Sequence[int]
    output: RunLog
    last: dict[str, float] = field(default_factory=dict)
    reports: list[StepReport] = field(default_factory=list)

    @classmethod
    def open(cls, config: RetrievalConfig, exit_layers: Sequence[int], step: int = 0) -> "TrainingLog":
        """Open the run directory's files; metrics of steps after `step` are dropped (see `RunLog`)."""
        output = RunLog.open(config, "retrieval", step)
        lines = output.run.read_metrics()
        return cls(config, exit_layers, output, lines[-1] if lines else {})

    def add(self, step: int, report: StepReport, validation: dict[str, float]) -> None:
        """Take in the step that made the model's step count `step`, and the validation scores if it was followed by one."""
        self.reports.append(report)
        self.output.advance(step)
        due = step % self.config.log_every_steps == 0 or step == self.config.steps
        scalars = self.means(step) if due else {}
        if due or validation:
            self._write(step, scalars | validation)
        if due:
            self.reports.clear()
            self.output.print(console_line(step, self.config.steps, scalars))
        if validation:
            whole = [exit_scalar("validation", layer, "mrr") for layer in self.exit_layers]
            shown = " ".join(f"{name.split('/')[1]} {validation[name]:.3f}" for name in whole)
            self.output.print(f"held-out MRR after step {step}: {shown}")

    def _write(self, step: int, scalars: dict[str, float]) -> None:
        self.last = {"step": step, **scalars}
        self.output.write(step, scalars)

    def means(self, step: int) -> dict[str, float]:
        """Means over the steps since the last line up to step count `step`, by scalar name."""
        scalars = {"loss/total": statistics.fmean(report.loss.total.item() for report in self.reports)}
        for index, layer in enumerate(self.exit_layers):
            losses = [float(report.loss.losses_E[index]) for report in self.reports]
            accuracies = [float(report.loss.accuracies_E[index]) for report in self.reports]
            scalars[exit_scalar("loss", layer, "clip")] = statistics.fmean(losses)
            scalars[exit_scalar("accuracy", layer, "in_batch")] = statistics.fmean(accuracies)
            cosines = [float(report.loss.cosines_E[index]) for report in self.reports]
            scalars[exit_scalar("similarity", layer, "mean_cosine")] = statistics.fmean(cosines)
        for layer, logit_scale in zip(self.exit_layers, self.reports[-1].logit_scales, strict=False):
            scalars[exit_scalar("optimizer", layer, "logit_scale")] = logit_scale
        scalars["optimizer/learning_rate"] = learning_rate(step - 1, self.config)
        scalars["optimizer/gradient_norm"] = statistics.fmean(report.gradient_norm for report in self.reports)
        seconds = sum(report.seconds for report in self.reports)
        scalars["throughput/pairs_per_second"] = sum(report.pairs for report in self.reports) / seconds
        return scalars

    def close(self) -> None:
        """Flush TensorBoard and remove the progress bar."""
        self.output.close()


def console_line(step: int, steps: int, scalars: dict[str, float]) -> str:
    """One interval for the console: total loss, loss and mean cosine of each exit, gradient norm, speed."""
    exits = " ".join(f"{name.split('/')[1]} {value:.3f}" for name, value in scalars.items() if name.startswith("loss/exit_"))
    cosines = " ".join(f"{value:.2f}" for name, value in scalars.items() if name.startswith("similarity/"))
    norm, speed = scalars["optimizer/gradient_norm"], scalars["throughput/pairs_per_second"]
    return f"step {step}/{steps} loss {scalars[LOSS_TOTAL]:.3f} {exits} cosine {cosines} norm {norm:.3f} pairs/s {speed:,.1f}"

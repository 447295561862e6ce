"""The console of a fine-tuning run: both stages draw a bar on a terminal, and the same lines with or without one."""

import io
import sys
from pathlib import Path

import pytest
import torch

import finetune.classification.log
import finetune.retrieval.log
from finetune.config import ClassificationConfig, RetrievalConfig
from finetune.retrieval.loss import RetrievalLoss

LINE = "step 3/6 loss 1.000 "


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def three_steps(stage: str, folder: Path) -> None:
    """Log steps 1 to 3 of a run of 6 that logs every 3."""
    options = {"output": str(folder), "steps": 6, "warmup_steps": 0, "log_every_steps": 3}
    if stage == "retrieval":
        values = torch.ones(1)
        report = finetune.retrieval.log.StepReport(
            RetrievalLoss(values[0], values, values, values, values[0]), gradient_norm=1.0, pairs=2, seconds=1.0
        )
        log = finetune.retrieval.log.TrainingLog.open(RetrievalConfig("m", "p", **options), [4])  # type: ignore[arg-type]
        for step in (1, 2, 3):
            log.add(step, report, {})
    else:
        given = finetune.classification.log.StepReport(1.0, [1.0], [1.0], 1.0, 0.1, 2, 1.0)
        config = ClassificationConfig("m", "t", "v", **options)  # type: ignore[arg-type]
        other = finetune.classification.log.TrainingLog.open(config, [4])
        for step in (1, 2, 3):
            other.add(step, given)
        log = other  # type: ignore[assignment]
    log.close()
    log.close()


@pytest.mark.parametrize("stage", ["retrieval", "classification"])
def test_a_terminal_gets_a_bar_and_the_same_lines(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    for name, stream in (("file", io.StringIO()), ("terminal", Terminal())):
        monkeypatch.setattr(sys, "stdout", stream)
        three_steps(stage, tmp_path / name)
        written.append(stream.getvalue())
    (line,) = written[0].splitlines()
    assert line.startswith(LINE)
    assert line in written[1]
    assert stage in written[1] and "3/6" in written[1].replace(line, "")
    # The cursor is shown again when the bar is gone.
    assert written[1].rindex("\x1b[?25h") > written[1].rindex("\x1b[?25l")

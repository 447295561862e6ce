"""Covers that a streak of skipped steps costs no data: no checkpoint lies inside one; the state before it is saved instead."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mose.files.stop_signal import StopSignal
from mose.run_directory import RunDirectory
from pretrain import train as train_module
from pretrain.checkpoints.run_state import DivergedError, Health, Progress
from pretrain.config.run import IntervalConfig, PretrainConfig, StabilityConfig
from pretrain.train import leave_early, look_after, save_due

MAX_STEPS = 20


class Saves:
    """A run whose saves are only noted: (step, skipped steps by which DeepSpeed's counters were set back)."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.saved: list[tuple[int, int]] = []
        self.back = 0
        intervals = IntervalConfig(checkpoint_every_steps=5)
        config = PretrainConfig(output=str(folder), max_steps=MAX_STEPS, intervals=intervals)
        self.run: Any = SimpleNamespace(
            config=replace(config, stability=StabilityConfig(max_skipped_in_a_row=3)),
            context=SimpleNamespace(is_main=True),
            directory=RunDirectory(folder),
            store=SimpleNamespace(from_main=lambda work: work()),
            engine=SimpleNamespace(counted_back=self.counted_back),
            watchdog=SimpleNamespace(enter=lambda stage, step=0: None),
            stop=StopSignal(),
        )
        monkeypatch.setattr(train_module, "save", self.save)
        monkeypatch.setattr(train_module, "log_step", lambda *_: None)

    @contextlib.contextmanager
    def counted_back(self, steps: int) -> Iterator[None]:
        self.back = steps
        yield
        self.back = 0

    def save(self, run: Any, progress: Progress) -> None:
        self.saved.append((progress.step, self.back))
        run.directory.checkpoint(progress.step).mkdir(parents=True)


@pytest.fixture
def saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Saves:
    return Saves(tmp_path, monkeypatch)


def at(step: int, skipped: int = 0) -> Progress:
    return Progress(step, step * 8, step * 100, Health(skipped_steps=skipped, skipped_in_a_row=skipped))


def test_a_checkpoint_that_is_due_inside_a_streak_is_that_before_it(saves: Saves) -> None:
    save_due(saves.run, at(5, skipped=1), at(4))
    assert saves.saved == [(4, 1)]
    save_due(saves.run, at(10, skipped=6), at(4))
    assert saves.saved == [(4, 1)]
    save_due(saves.run, at(15), at(15))
    assert saves.saved == [(4, 1), (15, 0)]


def test_a_streak_from_the_first_step_on_saves_nothing(saves: Saves) -> None:
    save_due(saves.run, at(5, skipped=5), at(0))
    assert saves.saved == []


def test_after_the_last_step_both_are_saved_and_it_is_said(saves: Saves, capsys: pytest.CaptureFixture[str]) -> None:
    save_due(saves.run, at(MAX_STEPS, skipped=3), at(17))
    assert saves.saved == [(17, 3), (20, 0)]
    line = "warning: the last 3 steps were skipped: nothing was learnt from their rows; --resume 17 offers them again\n"
    assert capsys.readouterr().err.endswith(line)


def test_a_signal_inside_a_streak_saves_the_state_before_it(saves: Saves) -> None:
    leave_early(saves.run, at(8, skipped=3), at(5), begun=0)
    assert saves.saved == [(5, 3)]


def test_a_run_that_gives_up_saves_the_state_before_the_streak_and_says_how_to_go_on(saves: Saves) -> None:
    result: Any = SimpleNamespace(loss=float("nan"), gradient_norm=float("inf"), skipped=True)
    with pytest.raises(DivergedError) as ended:
        look_after(saves.run, at(8, skipped=2), at(9, skipped=3), at(6), result, [])
    assert saves.saved == [(6, 3)]
    message = "resumed, the run is offered their rows again; to leave them out, raise the limit, or 0 for none"
    assert str(ended.value).endswith(message)

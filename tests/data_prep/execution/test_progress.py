"""What a run of `mose-data pack` shows of itself: one line an interval without a terminal, a bar with one."""

import sys

import pytest

from data_prep.console import INTERVAL_SECONDS
from data_prep.execution import progress as packing_progress
from data_prep.execution.progress import PackingMeter, show_packing
from data_prep.pipeline.task_marker import TaskProgress


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    return clock


def test_rates_count_what_is_done_and_what_is_under_way(now: list[float]) -> None:
    meter = PackingMeter(total_tasks=8, done_tasks=2, bar=None)
    meter.update(3, TaskProgress(1, 100, 2_000, 5_000_000))
    meter.update(4, TaskProgress(1, 50, 1_000, 5_000_000))
    meter.update(5, TaskProgress(9, 999, 9_000, 9_000_000))
    meter.end(3, is_done=True)
    meter.end(5, is_done=False)
    now[0] = 10.0
    assert meter.text() == ("3 of 8 tasks done, 1 under way; 10 MB of text (1.0 MB/s), 150 rows (15/s), 3,000 tokens (300/s)")


def test_one_line_an_interval_without_a_terminal(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with show_packing(2, 0) as meter:
        meter.expect(0, 10)
        for number in range(4):
            now[0] += INTERVAL_SECONDS / 2
            meter.update(0, TaskProgress(number, 0, 0, 0))
        meter.say("a word")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("packing: 0 of 2 tasks done, 1 under way; 0 MB of text")
    assert lines[2] == "packing: a word"


def test_a_bar_moves_within_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown: list[float] = []
    real = packing_progress.Progress.update
    monkeypatch.setattr(
        packing_progress.Progress,
        "update",
        lambda self, line, **values: (shown.append(values["completed"]), real(self, line, **values)),
    )
    with show_packing(4, 1) as meter:
        meter.expect(0, 10)
        meter.update(0, TaskProgress(5, 0, 0, 0))
        meter.end(0, is_done=True)
    assert shown == [1.0, 1.5, 2.0]

"""Progress of long work: lines at intervals where there is no terminal, a bar where there is one."""

import sys

import pytest

from data_prep import console


def test_one_line_an_interval_without_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with console.show_progress("reading", 1000, "files") as advance:
        for _ in range(4):
            now[0] += console.INTERVAL_SECONDS / 2
            advance(250)
    assert capsys.readouterr().err == "reading: 500 of 1,000 files\nreading: 1,000 of 1,000 files\n"


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with console.show_progress("reading", 2, "files") as advance:
        advance(2)
    # Far sooner than the interval after which the first line would come.
    assert "reading" in capsys.readouterr().err

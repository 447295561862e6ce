"""The history file: what a killed process leaves behind, and the end of a start that nobody wrote down."""

import dataclasses
from pathlib import Path

from cluster.supervise.history import FILE_NAME, History, Start

BEGUN = Start("12", 0, ("n1",), 1.0, 0)


def test_an_end_replaces_its_beginning_and_a_start_without_end_was_lost(tmp_path: Path) -> None:
    history = History(tmp_path / "launch")
    assert history.read() == []
    history.append(BEGUN)
    assert history.read() == [BEGUN]
    second = dataclasses.replace(BEGUN, restarts=1)
    history.append(second)
    history.append(dataclasses.replace(second, cause="finished"))
    assert [start.cause for start in history.read()] == ["lost", "finished"]


def test_an_unfinished_or_damaged_line_is_left_out(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.append(BEGUN)
    with (tmp_path / FILE_NAME).open("a") as file:
        file.write('{"job": 3}\nnot JSON\n{"job": "12", "restar')
    assert history.read() == [BEGUN]

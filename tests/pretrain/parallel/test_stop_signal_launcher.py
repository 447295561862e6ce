"""Covers ranks whose launcher died: they notice, and ask for a stop as a signal would."""

import os
import subprocess
import sys

import pytest

from mose.files.lock import process_start
from pretrain.parallel import stop_signal
from pretrain.parallel.stop_signal import BY_SIGNAL, LAUNCHER_ENDED, LauncherWatch, Process, StopSignal, launcher_processes


def test_without_a_launcher_nobody_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    assert launcher_processes() == ()


def test_the_parent_of_a_rank_and_the_launcher_above_it_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    parents = {os.getppid(): 71, 71: 72, 72: 73}
    monkeypatch.setattr(stop_signal, "_parent_of", lambda pid: parents.get(pid, 0))
    monkeypatch.setattr(stop_signal, "_is_launcher", lambda pid: pid == 71)
    assert [process.pid for process in launcher_processes()] == [os.getppid(), 71]


@pytest.mark.parametrize(("more", "expected"), [(["deepspeed"], True), ([], False)])
def test_a_launcher_is_known_by_its_command(more: list[str], expected: bool) -> None:
    command = [sys.executable, "-c", "print(flush=True); input()", *more]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        # The kernel shows a command line only some time after the process has begun to execute it.
        assert child.stdout is not None and child.stdout.readline()
        assert stop_signal._is_launcher(child.pid) is expected
        assert stop_signal._parent_of(child.pid) == os.getpid()
        child.kill()


def test_a_launcher_that_was_killed_is_noticed() -> None:
    stop = StopSignal()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        watched = Process(child.pid, process_start(child.pid))
        assert not watched.is_gone
        with LauncherWatch((watched,), stop, interval_seconds=0.01) as watch:
            child.kill()
            watch._thread.join(30)
            assert not watch._thread.is_alive()
    assert (stop.requested, stop.reason) == (True, LAUNCHER_ENDED)


def test_a_launcher_that_lives_stops_nothing() -> None:
    stop = StopSignal()
    with LauncherWatch((Process(os.getpid(), process_start(os.getpid())),), stop, interval_seconds=0.01):
        pass
    assert (stop.requested, stop.reason) == (False, BY_SIGNAL)

"""SLURM's commands: node lists, what squeue prints, and a controller that does not answer."""

from pathlib import Path

import pytest

from cluster import slurm
from mose.errors import MoseError


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("a1,b[01-03,7]", ["a1", "b01", "b02", "b03", "b7"]),
        ("r[8-10]-x,c", ["r8-x", "r9-x", "r10-x", "c"]),
    ],
)
def test_node_lists(text: str, names: list[str]) -> None:
    assert slurm.expand_nodes(text) == names


@pytest.mark.parametrize("text", ["", "a,,b", "n[1-", "n[1-x]", "n 1", "n[1][2]", "n[3-1],", "n[0-99999999]", "$(x)[]"])
def test_a_broken_node_list_is_one_line(text: str) -> None:
    with pytest.raises(MoseError, match="node list"):
        slurm.expand_nodes(text)


def install(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def test_the_queue_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MoseError, match="squeue: not found on this machine"):
        slurm.queued()
    install(
        tmp_path,
        "squeue",
        "echo '7|PENDING|Priority|'; echo '8|RUNNING|None|n[1-2]'; echo '8|PENDING|JobArrayTaskLimit|'; echo odd",
    )
    found = slurm.queued()
    assert found["7"] == slurm.QueuedJob("7", "PENDING", "Priority")
    assert found["8"] == slurm.QueuedJob("8", "RUNNING", "n[1-2]")
    assert list(slurm.queued(["8"])) == ["8"]


def test_a_controller_that_does_not_answer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "squeue", "exec /bin/sleep 60")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MoseError, match=r"squeue: no answer within 0.2 s: the controller is down or overloaded"):
        slurm.call(["squeue"], 0.2)


def test_nodes_that_the_user_excluded_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    install(tmp_path, "scontrol", "echo 'JobId=7 ReqNodeList=(null) ExcNodeList=n[1-2],x7 NumNodes=2'")
    assert slurm.excluded("7") == ["n1", "n2", "x7"]
    install(tmp_path, "scontrol", "echo 'JobId=7 ReqNodeList=(null) ExcNodeList=(null) NumNodes=2'")
    assert slurm.excluded("7") == []

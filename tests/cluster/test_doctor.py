"""`mose-cluster doctor`: each finding with what to do, on a machine that lacks things and on one that does not."""

import os
from pathlib import Path

import pytest

from cluster import doctor
from cluster.doctor import Finding, examine


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No imports of heavy libraries, and a folder of extensions of our own."""
    monkeypatch.setattr(doctor, "_IMPORTS", {"torch": "print('2.13.0')", "flash-attn": "import no_such_module"})
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    return tmp_path


def named(findings: list[Finding], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


def test_a_machine_that_lacks_things(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = quick / "extensions/shm_comm/lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (1, 1))
    (quick / "tested.txt").write_text("# set\npytest==0.0.1\nabsent-package==1.0\n")
    monkeypatch.setenv("PATH", str(quick))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    found = examine([quick, quick / "nowhere"], quick / "tested.txt")
    assert "(tested: 0.0.1)" in named(found, "versions").value and named(found, "versions").advice
    assert named(found, "torch") == Finding("torch", "2.13.0")
    assert named(found, "flash-attn") == Finding("flash-attn", "not installed; torch's own kernel is used")
    assert "load a module with a C++ compiler" in named(found, "C++ compiler").advice
    assert str(lock) in named(found, "build locks").value and "rm it" in named(found, "build locks").advice
    assert "HF_HUB_OFFLINE=1" in named(found, "offline mode").advice
    assert named(found, f"space of {quick / 'nowhere'}").value == "cannot be asked"
    assert named(found, "SLURM") == Finding(
        "SLURM", "scontrol: not found on this machine", "launch from a login node of the cluster"
    )


def test_a_machine_that_is_ready(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, body in (
        ("c++", ":"),
        ("scontrol", "echo 'SLURM_VERSION = 22.05.8'; echo 'ClusterName = one'; echo 'JobRequeue = 1'"),
    ):
        (quick / name).write_text(f"#!/bin/sh\n{body}\n")
        (quick / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(quick))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(doctor, "LEAST_BYTES", 1)
    monkeypatch.setattr(doctor, "LEAST_INODES", 1)
    (quick / "more.txt").write_text("# none\n")
    (quick / "tested.txt").write_text("-c more.txt\n")
    found = examine([quick], quick / "tested.txt")
    assert [finding for finding in found if finding.advice] == []
    assert named(found, "SLURM").value == "22.05.8, cluster one"


def test_a_library_that_was_built_for_another_torch(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "raise ImportError('undefined symbol: _ZN3c10')"
    monkeypatch.setattr(doctor, "_IMPORTS", {"flash-attn": code})
    (found,) = doctor._imports()
    assert found.value == "does not import: ImportError: undefined symbol: _ZN3c10"
    assert found.advice == "build it for this torch, or uninstall it"

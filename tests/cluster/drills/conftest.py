"""The folder in which the jobs of a drill are submitted."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.drills.launched import ROOT
from tests.cluster.private_slurm import PrivateSlurm, wait_for


@pytest.fixture
def folder(tmp_path: Path, slurm: PrivateSlurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which jobs are submitted; SLURM's commands and ours are in the PATH of the test and of its jobs."""
    if not slurm.namespaces:
        pytest.skip("this user may not give a node its own host name (unshare --user --uts), so that ranks cannot meet")
    monkeypatch.chdir(tmp_path)
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    yield tmp_path
    subprocess.run(["scancel", "--full", "--me"], check=False)
    wait_for(lambda: not slurm.call("squeue", "-h"), "the end of all jobs", 180)

"""The private SLURM itself, as an ordinary user; where the suite runs as one, every other drill shows the same."""

import multiprocessing
import os
import pwd
import tempfile
from pathlib import Path
from queue import Empty
from typing import Any

import pytest

from tests.cluster.private_slurm import PrivateSlurm, missing_daemon

NOBODY = "nobody"


def _serve(answer: Any, folder: str, user: int, group: int) -> None:
    """Run a job on two nodes as `user`. A fork, not a new interpreter: that user may not be allowed to read this one's."""
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)
    os.environ["HOME"] = folder
    cluster = PrivateSlurm(Path(folder) / "cluster", nodes=2)
    try:
        cluster.start()
        words = ("srun", "--nodes=2", "--chdir=/", "bash", "-c", 'echo "$SLURMD_NODENAME $(hostname) $(id -un)"')
        answer.put((bool(cluster.namespaces), sorted(cluster.call(*words).splitlines())))
    finally:
        cluster.stop()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user; the other drills run as this one")
def test_an_ordinary_user_starts_one_and_runs_a_job_on_two_nodes() -> None:
    if missing := missing_daemon():
        pytest.skip(f"no {missing} on this machine")
    entry, context = pwd.getpwnam(NOBODY), multiprocessing.get_context("fork")
    answer = context.Queue()
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:
        # munged refuses a socket in a folder that other users may not enter.
        Path(folder).chmod(0o755)
        os.chown(folder, entry.pw_uid, entry.pw_gid)
        process = context.Process(target=_serve, args=(answer, folder, entry.pw_uid, entry.pw_gid))
        process.start()
        try:
            isolated, lines = answer.get(timeout=120)
        except Empty:
            pytest.fail("no answer: see the error above")
        process.join()
    assert process.exitcode == 0
    hosts = ("n1", "n2") if isolated else (os.uname().nodename,) * 2
    assert lines == [f"{node} {host} {NOBODY}" for node, host in zip(("n1", "n2"), hosts, strict=True)]

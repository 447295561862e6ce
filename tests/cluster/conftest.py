"""One private SLURM for all tests of a session; skipped with the reason on a machine without its daemons."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.private_slurm import PrivateSlurm, missing_daemon

# .ci/run sets it: there a machine without SLURM is a failure, not a reason to skip.
REQUIRED = "MOSE_SLURM_REQUIRED"


@pytest.fixture(scope="session")
def slurm() -> Iterator[PrivateSlurm]:
    """Three running nodes of two cores."""
    if missing := missing_daemon():
        assert not os.environ.get(REQUIRED), f"{REQUIRED} is set and {missing} is not installed"
        pytest.skip(f"no {missing} on this machine: apt-get install munge slurmctld slurmd slurm-client")
    # Not pytest's own folder: munged refuses a socket below one that other users may not enter.
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        cluster = PrivateSlurm(Path(folder), nodes=3)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()

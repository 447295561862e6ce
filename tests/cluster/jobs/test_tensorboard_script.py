"""The TensorBoard job: its first line, and what it starts, in an environment without USER, as batch systems and cron leave it."""

import getpass
import os
import subprocess
from pathlib import Path

from cluster.jobs.config import AllocationConfig
from cluster.jobs.script import tensorboard_script


def test_the_log_begins_with_the_ssh_line(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text('#!/bin/sh\necho "tensorboard $*"\n')
    (tmp_path / "tensorboard").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "12345", "SLURM_SUBMIT_HOST": "login1"}
    script = tensorboard_script(AllocationConfig(), ["runs/one", "runs/two words"])
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    ssh, started = done.stdout.splitlines()
    host = os.uname().nodename
    assert ssh.startswith(f"ssh -N -L 6006:{host}:22345 {getpass.getuser()}@login1 ")
    runs = "one:runs/one/tensorboard,two words:runs/two words/tensorboard"
    assert started == f"tensorboard --logdir_spec {runs} --host {host} --port 22345"

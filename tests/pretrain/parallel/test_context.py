"""Covers what a process learns from its launcher: ranks of deepspeed or srun, a process of its own, a missing meeting place."""

import pytest

from mose.errors import MoseError
from pretrain.config.run import PretrainConfig
from pretrain.parallel import context
from pretrain.parallel.launch import initialize_parallel

NAMES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_STEP_ID",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NTASKS",
)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that what the code sets is taken back after the test
        monkeypatch.delenv(name)
    return monkeypatch


def test_alone_without_a_launcher(environment: pytest.MonkeyPatch) -> None:
    assert context.launched_world_size() == 1


def test_launchers_variables_count_first(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("WORLD_SIZE", "4")
    environment.setenv("SLURM_NTASKS", "8")
    assert context.launched_world_size() == 4


def test_a_batch_script_is_no_rank_of_its_job(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SLURM_NTASKS", "8")
    environment.setenv("SLURM_PROCID", "0")
    assert context.launched_world_size() == 1
    environment.setenv("SLURM_STEP_ID", "0")
    assert context.launched_world_size() == 8


def test_ranks_that_do_not_know_where_to_meet_are_refused(environment: pytest.MonkeyPatch) -> None:
    for name, value in (("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "0"), ("SLURM_LOCALID", "0"), ("SLURM_NTASKS", "2")):
        environment.setenv(name, value)
    with pytest.raises(MoseError, match="MASTER_ADDR: not set, expected where the 2 ranks meet"):
        initialize_parallel(PretrainConfig())

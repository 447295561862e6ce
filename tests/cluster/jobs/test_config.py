"""Job configs: what each field refuses, and the sentence that says so."""

from typing import Any

import pytest

from cluster.jobs.config import AllocationConfig, PackJobConfig, PreflightConfig, PretrainJobConfig
from mose.errors import MoseError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "two words"}, "job.name: 'two words', expected letters"),
        ({"account": "a;b"}, "job.account: 'a;b', expected letters"),
        ({"partition": "a\nb"}, r"job.partition: 'a\\nb', expected letters"),
        ({"time_limit": "1 day"}, "job.time_limit: '1 day', expected HH:MM:SS"),
        ({"cpus_per_task": 0}, "job.cpus_per_task: 0, expected 1 or more"),
        ({"log_folder": "my logs"}, "job.log_folder: 'my logs', expected a path without spaces"),
        ({"setup": ("one\ntwo",)}, "job.setup: an entry has a line break"),
        ({"sbatch_options": ("--qos long",)}, "job.sbatch_options: '--qos long', expected one option"),
        ({"log_folder": "lo'gs"}, "job.log_folder: .*, expected a path without spaces, quotes, backslashes and %"),
        ({"log_folder": "logs\x1b[2J"}, r"job.log_folder: 'logs\\x1b\[2J'"),
        ({"setup": ("a\rb",)}, "job.setup: an entry has a line break or control character"),
        ({"sbatch_options": ("--qos=a\x07",)}, "job.sbatch_options"),
    ],
)
def test_allocation_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(MoseError, match=message):
        AllocationConfig(**values)


@pytest.mark.parametrize("time_limit", ["90", "12:30", "24:00:00", "2-00", "2-12:00:00"])
def test_time_limits_of_sbatch_pass(time_limit: str) -> None:
    assert AllocationConfig(time_limit=time_limit).time_limit == time_limit


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"run_config": ""}, "run_config: not given"),
        ({"output": ""}, "output: not given, expected the run directory"),
        ({"options": ("data",)}, "options: 'data', expected --NAME=VALUE"),
        ({"options": ("--max_steps=3",)}, "options: '--max_steps=3', expected --NAME=VALUE other than config, output"),
        ({"nodes": 0}, "nodes: 0, expected 1 or more"),
        ({"gpus_per_node": -1}, "gpus_per_node: -1, expected 0 or more"),
        ({"gpus_per_node": 0}, "ranks_per_node: 0 without GPUs, expected 1 or more"),
        ({"gpus_per_node": 4, "ranks_per_node": 8}, "ranks_per_node: 8, expected at most one on each of 4 GPUs"),
        ({"signal_seconds": 0}, "signal_seconds: 0, expected 1..65535"),
        ({"max_restarts": -1}, "max_restarts: -1, expected 0 or more"),
    ],
)
def test_pretrain_job_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(MoseError, match=message):
        PretrainJobConfig(**{"run_config": "run.yaml", "output": "run", **values})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pack_config": ""}, "pack_config: not given"),
        ({"max_running": 0}, "max_running: 0, expected 1"),
        ({"max_array_elements": 0}, "max_array_elements: 0, expected 1"),
    ],
)
def test_pack_job_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(MoseError, match=message):
        PackJobConfig(**{"pack_config": "pack.yaml", **values})


def test_one_rank_a_gpu_unless_said_otherwise() -> None:
    assert PretrainJobConfig("run.yaml", "run", gpus_per_node=4).ranks == 4
    assert PretrainJobConfig("run.yaml", "run", gpus_per_node=4, ranks_per_node=2).ranks == 2
    assert PretrainJobConfig("run.yaml", "run", gpus_per_node=0, ranks_per_node=2).ranks == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seconds": 0}, "preflight.seconds: 0, expected more than 0"),
        ({"slow_fraction": 1.0}, "preflight.slow_fraction: 1.0, expected 0 or more and less than 1"),
        ({"clock_seconds": -1}, "preflight.clock_seconds: -1, expected more than 0"),
        ({"device_gib": -1}, "preflight.device_gib: -1, expected 0 or more"),
        ({"max_excluded": -1}, "preflight.max_excluded: -1, expected 0 or more"),
    ],
)
def test_preflight_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(MoseError, match=message):
        PreflightConfig(**values)

"""Job submission: read the values that a job needs from the run's config, write its script, submit it with sbatch."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.config import PackJobConfig, PretrainJobConfig
from cluster.script import DatasetFacts, finish_command, pack_script, pretrain_script
from mose.errors import MoseError
from mose.files.atomic_file import write_text
from mose.files.yaml_file import read_yaml
from mose.run_directory import RunDirectory


def render_pretrain(config: PretrainJobConfig) -> str:
    """The script of a pre-training job.

    Raises:
        MoseError: the run's config cannot be read, or lacks `max_steps`.
    """
    path = Path(config.run_config)
    return pretrain_script(config, _count(path, _read_yaml(path), "max_steps"))


def render_pack(config: PackJobConfig, *, missing_only: bool = False) -> str:
    """The script of a packing job; with `missing_only`, only of tasks that are neither done nor running.

    Raises:
        MoseError: see `read_dataset_facts` and `missing_tasks`.
    """
    dataset = read_dataset_facts(Path(config.pack_config))
    return pack_script(config, dataset, missing_tasks(dataset.output) if missing_only else None)


def read_dataset_facts(path: Path) -> DatasetFacts:
    """The folder and number of tasks in a data set's config.

    Raises:
        MoseError: it cannot be read, or lacks `output` or `num_tasks`.
    """
    values = _read_yaml(path)
    return DatasetFacts(_text(path, values, "output"), _count(path, values, "num_tasks"))


def launch_pretrain(config: PretrainJobConfig) -> str:
    """Write the script into the log folder and submit it; returns the job number.

    Raises:
        MoseError: see `render_pretrain`; a process works on the run; or sbatch is missing or refuses the job.
    """
    RunDirectory(Path(config.output)).require_free()
    return _submit_script(render_pretrain(config), config.job.log_folder, config.job.name)


def missing_tasks(dataset: str) -> list[int]:
    """The tasks of a data set that are neither done nor running, from `mose-data status`.

    Raises:
        MoseError: there is none, packing has not started, or `mose-data` is not installed on this machine.
    """
    command = shutil.which("mose-data") or str(Path(sys.executable).with_name("mose-data"))
    try:
        result = subprocess.run([command, "status", dataset, "--missing"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise MoseError("mose-data: not found on this machine; expected the project's `data` extra beside `cluster`") from None
    # 1 means that the data set is not complete.
    if result.returncode not in (0, 1):
        raise MoseError(" ".join(result.stderr.split()).removeprefix("mose-data: error: "))
    tasks = [task for span in result.stdout.strip().split(",") if span for task in _span(span)]
    if not tasks:
        raise MoseError(f"{dataset}: every task is done or running; expected one to submit (`mose-data finish` merges them)")
    return tasks


def launch_pack(config: PackJobConfig, *, missing_only: bool = False) -> tuple[str, str]:
    """Submit the array and the merge job that depends on it; returns both job numbers.

    Raises:
        MoseError: see `render_pack`; or sbatch is missing or refuses a job.
    """
    dataset = read_dataset_facts(Path(config.pack_config))
    array = _submit_script(render_pack(config, missing_only=missing_only), config.job.log_folder, config.job.name)
    return array, _submit(finish_command(config.job, dataset, array))


def _span(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def _submit_script(text: str, log_folder: str, name: str) -> str:
    script = Path(log_folder) / f"{name}.sbatch"
    _require_sbatch()
    write_text(script, text)
    return _submit(["sbatch", "--parsable", str(script)])


def _require_sbatch() -> None:
    if shutil.which("sbatch") is None:
        raise MoseError("sbatch: not found on this machine; expected a SLURM login node (--print-only shows the script anywhere)")


def _submit(command: Sequence[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise MoseError(f"sbatch: {' '.join(result.stderr.split()) or f'exit code {result.returncode}'}")
    # On a federated cluster, sbatch --parsable prints "number;cluster".
    return result.stdout.strip().partition(";")[0]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path)
    except FileNotFoundError:
        raise MoseError(f"{path}: no such file, expected the config of the run to launch") from None
    except OSError as error:
        raise MoseError(f"{path}: not readable YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise MoseError(f"{path}: expected a YAML mapping of config keys, found {type(values).__name__}")
    return values


def _text(path: Path, values: dict[str, Any], key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str) or not value:
        raise MoseError(f"{path}: {key}: {value!r}, expected a path: the job's script depends on it")
    return value


def _count(path: Path, values: dict[str, Any], key: str) -> int:
    value = values.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise MoseError(f"{path}: {key}: {value!r}, expected a positive whole number: the job's script depends on it")
    return value

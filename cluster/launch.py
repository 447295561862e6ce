"""Launching: read what a job must know of the run it starts, write its script, hand it to sbatch."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.config import PackJobConfig, PretrainJobConfig
from cluster.script import DatasetFacts, finish_command, pack_script, pretrain_script
from mose.atomic_file import write_text
from mose.errors import MoseError


def render_pretrain(config: PretrainJobConfig) -> str:
    """The script of a pre-training job.

    Raises:
        MoseError: the run's config cannot be read, or lacks `max_steps`.
    """
    path = Path(config.run_config)
    return pretrain_script(config, _count(path, _read_yaml(path), "max_steps"))


def render_pack(config: PackJobConfig) -> str:
    """The script of a packing job.

    Raises:
        MoseError: see `read_dataset_facts`.
    """
    return pack_script(config, read_dataset_facts(Path(config.pack_config)))


def read_dataset_facts(path: Path) -> DatasetFacts:
    """What a data set's config says of its folder and tasks.

    Raises:
        MoseError: it cannot be read, or lacks `output` or `num_tasks`.
    """
    values = _read_yaml(path)
    return DatasetFacts(_text(path, values, "output"), _count(path, values, "num_tasks"))


def launch_pretrain(config: PretrainJobConfig) -> str:
    """Write the script into the log folder and submit it; returns the job's number.

    Raises:
        MoseError: see `render_pretrain`; or sbatch is missing or refuses the job.
    """
    return _submit_script(render_pretrain(config), config.job.log_folder, config.job.name)


def launch_pack(config: PackJobConfig) -> tuple[str, str]:
    """Submit the array and the merge that waits for it; returns both jobs' numbers.

    Raises:
        MoseError: see `read_dataset_facts`; or sbatch is missing or refuses a job.
    """
    dataset = read_dataset_facts(Path(config.pack_config))
    array = _submit_script(pack_script(config, dataset), config.job.log_folder, config.job.name)
    return array, _submit(finish_command(config.job, dataset, array))


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
    # On a federation sbatch --parsable answers "number;cluster".
    return result.stdout.strip().partition(";")[0]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise MoseError(f"{path}: no such file, expected the config of the run to launch") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
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

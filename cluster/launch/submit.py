"""Job submission: check everything that a job needs, freeze it, write its script, submit it with sbatch."""

import dataclasses
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster import slurm
from cluster.jobs.config import AllocationConfig, CommandJobConfig, FinetuneJobConfig, PackJobConfig, PretrainJobConfig
from cluster.jobs.profile import with_profile
from cluster.jobs.script import (
    DatasetFacts,
    array_script,
    command_script,
    finetune_script,
    finish_command,
    pack_script,
    pretrain_script,
    tensorboard_script,
)
from cluster.jobs.stages import Stage, stage_named
from cluster.launch.freeze import (
    check_layout,
    frozen,
    record_job,
    require_same_config,
    resolved_config,
    submitted_jobs,
)
from mose.errors import MoseError
from mose.files.atomic_file import write_text
from mose.files.yaml_file import read_yaml
from mose.run_directory import RunDirectory


@dataclasses.dataclass(frozen=True)
class LaunchRequest:
    """How a job is submitted, whatever its stage."""

    after: str = ""
    """Jobs that must end well before it starts, e.g. `12` or `12:13`; empty: none."""
    replace_config: bool = False
    """Whether a run directory may hold another frozen config; the stage then checks which fields may differ."""

    def __post_init__(self) -> None:
        if self.after and not re.fullmatch(r"[0-9]+(:[0-9]+)*", self.after):
            raise MoseError(f"after: {self.after!r}, expected job numbers such as 12 or 12:13")

    @property
    def sbatch_options(self) -> list[str]:
        """Options of sbatch; a dependency that can never come true ends the job instead of keeping it in the queue forever."""
        return [f"--dependency=afterok:{self.after}", "--kill-on-invalid-dep=yes"] if self.after else []


AT_ONCE = LaunchRequest()


def render_pretrain(config: PretrainJobConfig) -> str:
    """The script of a pre-training job.

    Raises:
        MoseError: the run's config cannot be read, or lacks `max_steps`; or the profile cannot be used.
    """
    path = Path(config.run_config)
    max_steps = _count(path, _read_yaml(path), "max_steps")
    return pretrain_script(dataclasses.replace(config, job=_on_site(config.job, config.gpus_per_node, config.nodes)), max_steps)


def render_finetune(config: FinetuneJobConfig, stage: str) -> str:
    """The script of a fine-tuning job; errors as of `render_pretrain`."""
    path = Path(config.run_config)
    _read_yaml(path)
    job = _on_site(config.job, config.gpus_per_node, config.nodes)
    return finetune_script(dataclasses.replace(config, job=job), stage_named(stage))


def _on_site(job: AllocationConfig, gpus_per_node: int = 0, nodes: int = 1) -> AllocationConfig:
    """The job with its site profile applied, and its node list checked against the layout."""
    job = with_profile(job, gpus_per_node)
    for option in job.sbatch_options:
        name, _, value = option.partition("=")
        # sbatch would give a job as many nodes as the list has, whatever the layout is.
        if name == "--nodelist":
            found = _distinct_nodes(option, value)
            if found != nodes:
                raise MoseError(f"job.sbatch_options: {option}: {found} nodes, expected as many as nodes: {nodes}")
    return job


def _distinct_nodes(option: str, value: str) -> int:
    try:
        return len(set(slurm.expand_nodes(value)))
    except MoseError as error:
        raise MoseError(f"job.sbatch_options: {option}: {error}") from None


def render_pack(config: PackJobConfig, *, missing_only: bool = False) -> str:
    """The script of a packing job; with `missing_only`, only of tasks that are neither done nor running.

    Raises:
        MoseError: see `read_dataset_facts` and `missing_tasks`.
    """
    dataset = read_dataset_facts(Path(config.pack_config))
    config = dataclasses.replace(config, job=_on_site(config.job))
    return pack_script(config, dataset, missing_tasks(dataset.output) if missing_only else None)


def render_command(config: CommandJobConfig, stage: str) -> str:
    """The script of a stage that one command runs, or an array of them; errors as of `render_pretrain`."""
    path, found = Path(config.run_config), stage_named(stage)
    config = dataclasses.replace(config, job=_on_site(config.job, config.gpus))
    if found.has_tasks and "num_tasks" in (values := _read_yaml(path)):
        return array_script(config, found, _count(path, values, "num_tasks"))
    if not found.is_positional:
        _read_yaml(path)
    return command_script(config, found, launch_folder(config))


def launch_folder(config: CommandJobConfig) -> Path:
    """Where the job of a stage without a run directory keeps its frozen config and its history: beside its log."""
    return Path(config.job.log_folder) / f"{config.job.name}.launch"


def read_dataset_facts(path: Path) -> DatasetFacts:
    """The folder and number of tasks in a data set's config.

    Raises:
        MoseError: it cannot be read, or lacks `output` or `num_tasks`.
    """
    values = _read_yaml(path)
    return DatasetFacts(_text(path, values, "output"), _count(path, values, "num_tasks"))


def launch_pretrain(config: PretrainJobConfig, request: LaunchRequest = AT_ONCE) -> str:
    """Freeze the run, write its script and submit it; returns the job number.

    Raises:
        MoseError: see `render_pretrain`; the trainer refuses the config or the layout; the run directory holds another config;
            a process or a queued job works on the run; or sbatch is missing or refuses the job.
    """
    script, stage = render_pretrain(config), stage_named("pretrain")
    return _launch_training(config, stage, script, request, ranks=config.nodes * config.ranks)


def launch_finetune(config: FinetuneJobConfig, stage: str, request: LaunchRequest = AT_ONCE) -> str:
    """The same for a fine-tuning run; errors as of `launch_pretrain`."""
    return _launch_training(config, stage_named(stage), render_finetune(config, stage), request, ranks=0)


def _launch_training(
    config: PretrainJobConfig | FinetuneJobConfig, stage: Stage, script: str, request: LaunchRequest, *, ranks: int
) -> str:
    run = RunDirectory(Path(config.output))
    if run.path.exists() and not run.path.is_dir():
        raise MoseError(f"output: {run.path}: not a folder, expected the run directory")
    run.require_free()
    slurm.require_sbatch()
    _warn_of_memory("output", config.output)
    _require_no_job(run.launch, config.output)
    values = resolved_config(stage, Path(config.run_config), ["--output", config.output, *config.options])
    if not request.replace_config:
        require_same_config(run.launch, values)
    with frozen(run.launch, values, config, script):
        # What the run reads may be written only by the jobs that it waits for.
        if ranks and not request.after:
            check_layout(run.launch / "config.yaml", stage, ranks)
        number = _submit_script(script, config.job.log_folder, config.job.name, request)
    record_job(run.launch, number)
    return number


def launch_command(config: CommandJobConfig, stage: str, request: LaunchRequest = AT_ONCE) -> str:
    """Submit a stage that one command runs, or an array of them; returns the job number; errors as of `launch_pretrain`."""
    script, found, folder = render_command(config, stage), stage_named(stage), launch_folder(config)
    slurm.require_sbatch()
    _require_no_job(folder, str(folder))
    if found.is_positional:
        number = _submit_script(script, config.job.log_folder, config.job.name, request)
    else:
        values = resolved_config(found, Path(config.run_config), list(config.options))
        with frozen(folder, values, config, script):
            number = _submit_script(script, config.job.log_folder, config.job.name, request)
    record_job(folder, number)
    return number


def launch_tensorboard(job: AllocationConfig, runs: Sequence[str], *, print_only: bool = False) -> str:
    """Submit a TensorBoard server for these runs; returns its job number, or with `print_only` its script.

    Raises:
        MoseError: a run has no folder, or a name holds what separates names there; or sbatch is missing or refuses the job.
    """
    for run in runs:
        if not Path(run).is_dir():
            raise MoseError(f"{run}: no such folder, expected a run directory")
        if set(run) & {",", ":"}:
            raise MoseError(f"{run}: expected a path without , and :, which separate names in --logdir_spec")
    job = with_profile(job)
    script = tensorboard_script(job, runs)
    if print_only:
        return script
    slurm.require_sbatch()
    return _submit_script(script, job.log_folder, job.name, AT_ONCE)


def _require_no_job(folder: Path, name: str) -> None:
    """Check that no job of an earlier launch is in the queue.

    Raises:
        MoseError: one is.
    """
    numbers = [job.job for job in submitted_jobs(folder)]
    if not numbers:
        return
    for job in slurm.queued(numbers).values():
        where = f"{job.state}, {job.reason}" if job.reason else job.state
        raise MoseError(f"{name}: job {job.number} ({where}) works on it; expected it to end first: scancel {job.number}")


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


def launch_pack(config: PackJobConfig, request: LaunchRequest = AT_ONCE, *, missing_only: bool = False) -> tuple[str, str]:
    """Submit the array and the merge job that depends on it; returns both job numbers.

    Raises:
        MoseError: see `render_pack`; or sbatch is missing or refuses a job: then neither is in the queue.
    """
    dataset = read_dataset_facts(Path(config.pack_config))
    script = render_pack(config, missing_only=missing_only)
    slurm.require_sbatch()
    array = _submit_script(script, config.job.log_folder, config.job.name, request)
    try:
        return array, slurm.submit(finish_command(with_profile(config.job), dataset, array))
    except BaseException:
        # Also where a person interrupts it: an array without its merge would be half a launch.
        slurm.call(["scancel", array])
        raise


def _warn_of_memory(place: str, path: str) -> None:
    """Say so where a folder lies in this machine's memory, which no other node sees.

    A warning, since a cluster may be this one machine; of a disk nothing follows, since this machine may export it to the others.
    """
    if (kind := file_system_of(Path(path))) in ("tmpfs", "ramfs"):
        where = f"{place}: {path} lies on {kind}, the memory of this machine"
        print(f"mose-cluster: warning: {where}; expected a folder that all nodes share", file=sys.stderr)


def file_system_of(path: Path, mounts: str | None = None) -> str:
    """The type of the file system that holds a path, of `mounts` or of /proc/self/mounts; empty where it is not known."""
    try:
        lines = (Path("/proc/self/mounts").read_text("utf-8", "replace") if mounts is None else mounts).splitlines()
    except OSError:
        return ""
    fields = [line.split(" ") for line in lines if line.count(" ") >= 2]
    places = [(Path(place.replace("\\040", " ")), kind) for _, place, kind, *_ in fields]
    # A later mount hides an earlier one at the same place.
    holding = [
        (len(place.parts), number, kind) for number, (place, kind) in enumerate(places) if path.resolve().is_relative_to(place)
    ]
    return max(holding)[2] if holding else ""


def _span(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def _submit_script(text: str, log_folder: str, name: str, request: LaunchRequest) -> str:
    _warn_of_memory("job.log_folder", log_folder)
    script = Path(log_folder) / f"{name}.sbatch"
    try:
        write_text(script, text)
    except OSError as error:
        reason = f"{error.strerror}, expected a folder that can be written and that all nodes share"
        raise MoseError(f"job.log_folder: {log_folder}: {reason}") from None
    return slurm.submit(["sbatch", "--parsable", *request.sbatch_options, str(script)])


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

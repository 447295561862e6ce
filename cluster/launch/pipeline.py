"""A pipeline file: stages as a chain of dependent jobs; submitted again, it goes on where it stopped."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import slurm
from cluster.jobs.config import (
    CommandJobConfig,
    FinetuneJobConfig,
    PackJobConfig,
    PretrainJobConfig,
    check_log_folder,
    check_name,
)
from cluster.jobs.stages import STAGES, stage_named
from cluster.launch.submit import (
    LaunchRequest,
    launch_command,
    launch_finetune,
    launch_folder,
    launch_pack,
    launch_pretrain,
    read_dataset_facts,
    render_command,
    render_finetune,
    render_pack,
    render_pretrain,
)
from mose.config import load_config, require
from mose.errors import MoseError
from mose.files.atomic_file import write_json
from mose.files.json_file import parse_json
from mose.run_directory import RunDirectory

# The file that the supervisor writes when its command has ended well.
DONE_NAME = "done.json"
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class PipelineStep:
    """One stage of a pipeline."""

    stage: str
    """Stage as `mose-cluster launch` names it."""
    job: dict[str, Any]
    """Fields of the stage's job file."""
    name: str = ""
    """Name of the step; empty: the stage's."""

    def __post_init__(self) -> None:
        stage_named(self.stage)
        if self.name:
            check_name("steps.name", self.name)

    @property
    def label(self) -> str:
        """The name, given or that of the stage."""
        return self.name or self.stage


@dataclass(frozen=True)
class PipelineConfig:
    """Stages in order; each one waits until the one before has ended well."""

    name: str = "pipeline"
    """Name of the file in `log_folder` that remembers the jobs."""
    log_folder: str = "logs"
    """Folder on a file system shared by all nodes."""
    steps: tuple[PipelineStep, ...] = field(default=())
    """Stages in order, each with its job."""

    def __post_init__(self) -> None:
        labels = [step.label for step in self.steps]
        require(bool(labels), "steps: is empty, expected the stages of the pipeline")
        twice = next((label for label in labels if labels.count(label) > 1), "")
        require(not twice, f"steps.name: {twice!r} stands twice, expected another name for each step")
        require(self.name.replace("-", "").replace("_", "").isalnum(), f"name: {self.name!r}, expected letters, digits, - and _")
        check_log_folder("log_folder", self.log_folder)


@dataclass(frozen=True)
class StepOutcome:
    """What a submission did about one step."""

    name: str
    jobs: tuple[str, ...]
    """Jobs that the next step waits for; none if the step is done."""
    message: str


def job_config(stage: str) -> type[Any]:
    """The config class of a stage's job."""
    if stage == "pretrain":
        return PretrainJobConfig
    if stage == "pack":
        return PackJobConfig
    return FinetuneJobConfig if STAGES[stage].is_training else CommandJobConfig


def _configs(config: PipelineConfig) -> list[Any]:
    """The job config of every step.

    Raises:
        MoseError: one is not valid, or writes where another one does; the message names the step.
    """
    found: list[Any] = []
    taken: dict[tuple[str, str], str] = {}
    for step in config.steps:
        try:
            found.append(load_config(job_config(step.stage), None, step.job))
        except MoseError as error:
            raise MoseError(f"steps.{step.label}: {error}") from None
        job = found[-1].job
        # Jobs of one name share a script and a launch folder: the end of the first would count as that of the second.
        for place in [("job.name", f"{job.log_folder}/{job.name}"), ("output", str(getattr(found[-1], "output", "")))]:
            other = taken.setdefault(place, step.label)
            if place[1] and other != step.label:
                raise MoseError(f"steps.{step.label}: {place[0]}: {place[1]} is that of step {other}, expected another one")
    return found


def render_pipeline(config: PipelineConfig) -> dict[str, str]:
    """The script of every step by name.

    Raises:
        MoseError: a step's job or config cannot be used; the message names the step.
    """
    return {step.label: _render(step, job) for step, job in zip(config.steps, _configs(config), strict=True)}


def _render(step: PipelineStep, job: Any) -> str:
    try:
        if step.stage == "pretrain":
            return render_pretrain(job)
        if step.stage == "pack":
            return render_pack(job)
        return render_finetune(job, step.stage) if STAGES[step.stage].is_training else render_command(job, step.stage)
    except MoseError as error:
        raise MoseError(f"steps.{step.label}: {error}") from None


def submit_pipeline(config: PipelineConfig) -> list[StepOutcome]:
    """Submit every step that is neither done nor in the queue, each behind the one before it.

    Raises:
        MoseError: a step cannot be rendered; or sbatch refuses one: then those that this call submitted are cancelled.
    """
    render_pipeline(config)
    path = Path(config.log_folder) / f"{config.name}.pipeline.json"
    known, queue = _known_jobs(path), slurm.queued()
    outcomes: list[StepOutcome] = []
    submitted: list[str] = []
    try:
        for step, job in zip(config.steps, _configs(config), strict=True):
            waiting = tuple(number for number in known.get(step.label, ()) if number in queue)
            if is_done(step.stage, job):
                outcomes.append(StepOutcome(step.label, (), "done"))
            elif waiting:
                outcomes.append(StepOutcome(step.label, waiting[-1:], f"job {waiting[-1]} is in the queue"))
            else:
                before = next((one.jobs for one in reversed(outcomes) if one.jobs), ())
                numbers = _submit(step.stage, job, LaunchRequest(":".join(before)))
                submitted += numbers
                known[step.label] = numbers
                # At once: a pipeline that is cut off here must know its jobs.
                write_json(path, known)
                outcomes.append(StepOutcome(step.label, (numbers[-1],), f"submitted job {' and '.join(numbers)}"))
    except BaseException:
        # Also where a person interrupts it: half a chain must not run.
        for number in submitted:
            with contextlib.suppress(slurm.SlurmError):
                slurm.call(["scancel", number])
        raise
    return outcomes


def is_done(stage: str, job: Any) -> bool:
    """Whether a step has ended well: by a file that its stage writes last, or by what its supervisor left."""
    if stage == "pack":
        return (Path(read_dataset_facts(Path(job.pack_config)).output) / MANIFEST_NAME).exists()
    if STAGES[stage].is_training:
        return (RunDirectory(Path(job.output)).launch / DONE_NAME).exists()
    # Of an array there is no such file: its tasks do nothing where they are done.
    return (launch_folder(job) / DONE_NAME).exists()


def _submit(stage: str, job: Any, request: LaunchRequest) -> Sequence[str]:
    if stage == "pack":
        return list(launch_pack(job, request))
    if stage == "pretrain":
        return [launch_pretrain(job, request)]
    if STAGES[stage].is_training:
        return [launch_finetune(job, stage, request)]
    return [launch_command(job, stage, request)]


def _known_jobs(path: Path) -> dict[str, Sequence[str]]:
    try:
        values = parse_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise MoseError(
            f"{path}: {error}; expected the jobs of the pipeline (remove it if none of them is in the queue)"
        ) from None
    return (
        {str(name): [str(number) for number in numbers] for name, numbers in values.items()} if isinstance(values, dict) else {}
    )

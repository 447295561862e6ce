"""A site profile: what all jobs of one cluster have in common, in one YAML file."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from cluster.jobs.config import AllocationConfig, check_environment
from mose.config import load_config, require
from mose.errors import MoseError
from mose.files.yaml_file import read_yaml


@dataclass(frozen=True)
class SiteProfile:
    """What all jobs of one cluster have in common."""

    account: str = ""
    """Account to charge."""
    partition: str = ""
    """Partition to run in."""
    gpus_per_node: int = 0
    """GPUs of a node; a job that asks for more is refused. 0: not known."""
    cpus_per_node: int = 0
    """CPU cores of a node; a job that asks for more is refused. 0: not known."""
    modules: tuple[str, ...] = ()
    """Environment modules to load, e.g. `cuda/12.4`."""
    setup: tuple[str, ...] = ()
    """Shell lines before those of the job."""
    container: tuple[str, ...] = ()
    """Words before each command on a node, e.g. [apptainer, exec, --nv, mose.sif]."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of every job, such as those of NCCL; a job's own value of the same name counts."""
    sbatch_options: tuple[str, ...] = ()
    """Further sbatch options, one per entry."""

    def __post_init__(self) -> None:
        for name in ("gpus_per_node", "cpus_per_node"):
            require(getattr(self, name) >= 0, f"{name}: {getattr(self, name)}, expected 0 or more")
        for module in self.modules:
            one_word = module.isprintable() and bool(module) and not set(module) & set(" \t'\"`$\\;&|<>()")
            require(one_word, f"modules: {module!r}, expected the name of a module such as cuda/12.4")
        check_environment("environment", self.environment)


def with_profile(job: AllocationConfig, gpus_per_node: int = 0) -> AllocationConfig:
    """The job's allocation with what its site profile adds; `gpus_per_node` is what it asks of a node.

    Raises:
        MoseError: the profile cannot be read or has an unknown key, or its nodes are smaller than the job asks for.
    """
    if not job.profile:
        return job
    path = Path(job.profile)
    if not path.is_file():
        raise MoseError(f"job.profile: {path}: no such file, expected a site profile such as those in configs/cluster/sites")
    names = [field.name for field in dataclasses.fields(SiteProfile)]
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise MoseError(f"{path}: expected a YAML mapping of {', '.join(names)}, found {type(values).__name__}")
    unknown = [name for name in values if name not in names]
    if unknown:
        raise MoseError(f"{path}: unknown key {unknown[0]!r}, expected one of {', '.join(names)}")
    site = load_config(SiteProfile, path)
    if site.gpus_per_node and gpus_per_node > site.gpus_per_node:
        raise MoseError(f"gpus_per_node: {gpus_per_node}, expected at most the {site.gpus_per_node} of a node of {path}")
    if site.cpus_per_node and job.cpus_per_task > site.cpus_per_node:
        raise MoseError(f"job.cpus_per_task: {job.cpus_per_task}, expected at most the {site.cpus_per_node} of a node of {path}")
    loaded = ("module purge", f"module load {' '.join(site.modules)}") if site.modules else ()
    # A profile's values go through the job's own checks: `replace` constructs it anew.
    return dataclasses.replace(
        job,
        account=job.account or site.account,
        partition=job.partition or site.partition,
        setup=(*loaded, *site.setup, *job.setup),
        container=job.container or site.container,
        environment={**site.environment, **job.environment},
        sbatch_options=(*site.sbatch_options, *job.sbatch_options),
        profile="",
    )

"""The configs of SLURM jobs: one dataclass per kind of job, validated before anything is written or submitted."""

import re
from dataclasses import dataclass, field

from mose.config import require

LAUNCHERS = ("deepspeed", "srun")
# A - in front would make an option of it, and the name of a log file . or .. would be a folder.
_NAME = re.compile(r"[\w+][\w.+-]*")
# Of a file, with what is put before and behind it: file systems allow 255 bytes.
_LONGEST_NAME = 200
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# The formats of sbatch --time: minutes, [days-]hours:minutes[:seconds].
_TIME = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}", re.ASCII)


def check_environment(place: str, environment: dict[str, str]) -> None:
    """Check names and values of environment variables; `place` is the field that holds them.

    Raises:
        MoseError: a name is not one of a shell variable, or a value holds a NUL, which would end it.
    """
    for name, value in environment.items():
        require(bool(_VARIABLE.fullmatch(name)), f"{place}: {name!r}, expected a name of letters, digits and _")
        require("\0" not in value, f"{place}: {name}: {value!r}, expected text without NUL")


def check_name(place: str, name: str) -> None:
    """Check a name that becomes part of a file's name and of an option; `place` is its field.

    Raises:
        MoseError: it has other characters, begins with one that would change its meaning, or is too long.
    """
    require(bool(_NAME.fullmatch(name)), f"{place}: {name!r}, expected letters, digits and . _ + -, and none of . - in front")
    size = len(name.encode())
    require(size <= _LONGEST_NAME, f"{place}: {name[:20]!r}...: {size} bytes, expected at most {_LONGEST_NAME}")


def check_path(place: str, path: str) -> None:
    """Check a path that is a word of a job's command; `place` is its field.

    Raises:
        MoseError: the command would take it for an option, or it is none of a file system.
    """
    require(not path.startswith("-"), f"{place}: {path!r}, expected a path that does not begin with - (write ./{path})")
    shared = "\0" not in path and "://" not in path
    require(shared, f"{place}: {path!r}, expected a path on a file system that all nodes share")


def check_log_folder(place: str, path: str) -> None:
    """Check a folder that stands in an #SBATCH line, where sbatch expands %, ends the line at # and takes quotes off.

    Raises:
        MoseError: it has such a character.
    """
    one_word = bool(path) and path.isprintable() and not re.search(r"[\s%#'\"\\]", path) and not path.startswith("-")
    expected = "a path without spaces, quotes, backslashes and %, without #, and with no - in front"
    require(one_word, f"{place}: {path!r}, expected {expected}")


@dataclass(frozen=True)
class AllocationConfig:
    """The resources of a job; empty names are left to the site's defaults."""

    name: str = "mose"
    """Name of the job in the queue, and of its log and script files."""
    time_limit: str = "24:00:00"
    """Time limit of one start, in sbatch's format (HH:MM:SS or D-HH:MM:SS)."""
    cpus_per_task: int = 8
    """CPU cores per task: of a node's launcher with all its ranks, or of one packing task."""
    account: str = ""
    """Account to charge."""
    partition: str = ""
    """Partition to run in."""
    log_folder: str = "logs"
    """Folder on a file system shared by all nodes, for logs, scripts and host files."""
    setup: tuple[str, ...] = ()
    """Shell lines that make the commands available, e.g. `source .venv/bin/activate`; run on the first node."""
    sbatch_options: tuple[str, ...] = ()
    """Further sbatch options, one per entry, e.g. `--qos=long` or `--exclude=node7`."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of the job, such as NCCL_SOCKET_IFNAME."""
    container: tuple[str, ...] = ()
    """Words before each command on a node, e.g. [apptainer, exec, --nv, mose.sif]; empty runs it without a container."""
    profile: str = ""
    """Site profile (YAML, see configs/cluster/sites): what the fields above leave empty is taken from it, lists are joined."""

    def __post_init__(self) -> None:
        for name in ("account", "partition"):
            value = getattr(self, name)
            if value:
                check_name(f"job.{name}", value)
        check_name("job.name", self.name)
        require(bool(_TIME.fullmatch(self.time_limit)), f"job.time_limit: {self.time_limit!r}, expected HH:MM:SS or D-HH:MM:SS")
        require(self.cpus_per_task > 0, f"job.cpus_per_task: {self.cpus_per_task}, expected 1 or more")
        check_log_folder("job.log_folder", self.log_folder)
        plain = all(line.replace("\t", " ").isprintable() for line in self.setup)
        require(plain, "job.setup: an entry has a line break or control character, expected one line an entry")
        for option in self.sbatch_options:
            # In a script's line sbatch takes quotes off and ends the line at #; on its command line it does neither.
            one_word = option.isprintable() and bool(re.fullmatch(r"--[^\s#'\"\\]+", option))
            expected = "one option such as --qos=long, without spaces, quotes, backslashes and #"
            require(one_word, f"job.sbatch_options: {option!r}, expected {expected}")
        check_environment("job.environment", self.environment)


@dataclass(frozen=True)
class RecoveryConfig:
    """What the supervisor of a job does about failures."""

    same_step_failures: int = 3
    """Failures in a row without a new checkpoint between, after which the run is not started again: a crash loop."""
    node_failures: int = 2
    """Failures that name the same node after which the node is excluded from further starts."""
    hang_seconds: float = 1200
    """A run that shows no progress for this long is killed and started again. Above parallel.collective_timeout_seconds (600),
    after which the ranks end by themselves, and above the longest validation or save; 0: never."""
    start_seconds: float = 3600
    """The same before the first step of a start, which reads a checkpoint and compiles."""
    stacks_seconds: float = 20
    """Time for the ranks of a run that hangs to write their stacks, before they are killed."""

    def __post_init__(self) -> None:
        for name in ("same_step_failures", "node_failures"):
            require(getattr(self, name) > 0, f"recovery.{name}: {getattr(self, name)}, expected 1 or more")
        for name in ("hang_seconds", "start_seconds", "stacks_seconds"):
            require(getattr(self, name) >= 0, f"recovery.{name}: {getattr(self, name)}, expected 0 or more")


@dataclass(frozen=True)
class PreflightConfig:
    """What every node must show before a training job starts on it; a node that does not is excluded, and the job requeued.

    Peers take similar limits for a slow device: nvidia-resiliency-ext .75 and NeMo .7 of the fastest rank, DLRover half of the
    median rate. The median of the others is steadier than the fastest, which may be an outlier itself.
    """

    enabled: bool = True
    """Whether a training job measures its nodes before each start."""
    seconds: float = 180
    """Time limit of the whole preflight, imports included; a node that has not answered by then counts as broken."""
    slow_fraction: float = 0.75
    """A device whose matrix products, or a node whose all-reduce, run at less than this fraction of the others' median is slow;
    0: never."""
    clock_seconds: float = 2.0
    """Largest difference between a node's clock and the median of all clocks."""
    device_gib: float = 0
    """Free memory that each GPU must have: the column `needed` of `mose-cluster plan`. 0: only as much as GPUs of its kind."""
    run_gib: float = 2
    """Free space of the run directory, in GiB."""
    temporary_gib: float = 1
    """Free space of each node's temporary folder, in GiB."""
    max_excluded: int = 8
    """Most nodes that preflights may exclude from a run; beyond it slow nodes are only named, and broken ones end the job."""

    def __post_init__(self) -> None:
        require(self.seconds > 0, f"preflight.seconds: {self.seconds}, expected more than 0")
        fraction = f"preflight.slow_fraction: {self.slow_fraction}, expected 0 or more and less than 1"
        require(0 <= self.slow_fraction < 1, fraction)
        require(self.clock_seconds > 0, f"preflight.clock_seconds: {self.clock_seconds}, expected more than 0")
        for name in ("device_gib", "run_gib", "temporary_gib", "max_excluded"):
            require(getattr(self, name) >= 0, f"preflight.{name}: {getattr(self, name)}, expected 0 or more")


@dataclass(frozen=True)
class TrainingJobConfig:
    """One training run on one or many nodes, started again until it is finished."""

    run_config: str = ""
    """Config file of the run, as the stage's command takes it by --config; it must hold the number of steps."""
    output: str = ""
    """Run directory, shared by all nodes."""
    options: tuple[str, ...] = ()
    """Further options of the stage's command, one per entry, e.g. `--data.dataset=data/stack_v2`."""
    nodes: int = 1
    """Number of nodes."""
    gpus_per_node: int = 8
    """GPUs per node, with one rank each; 0 requests none and needs `ranks_per_node`."""
    ranks_per_node: int = 0
    """Ranks per node; 0 means one per GPU."""
    signal_seconds: int = 120
    """Seconds before the time limit at which ranks are told to finish their step and save; ended after two thirds of them."""
    max_restarts: int = 100
    """Most restarts of a job; after that it ends with a message."""
    job: AllocationConfig = field(default_factory=AllocationConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    preflight: PreflightConfig = field(default_factory=PreflightConfig)

    def __post_init__(self) -> None:
        require(bool(self.run_config), "run_config: not given, expected the config file of the run")
        require(bool(self.output), "output: not given, expected the run directory")
        check_path("run_config", self.run_config)
        check_path("output", self.output)
        for option in self.options:
            taken = option.startswith(("--output", "--max_steps", "--steps", "--config", "--print_config"))
            named = option.startswith("--") and "=" in option and not taken
            require(named, f"options: {option!r}, expected --NAME=VALUE other than config, output and max_steps")
        require(self.nodes > 0, f"nodes: {self.nodes}, expected 1 or more")
        require(self.gpus_per_node >= 0, f"gpus_per_node: {self.gpus_per_node}, expected 0 or more")
        require(self.ranks > 0, f"ranks_per_node: {self.ranks_per_node} without GPUs, expected 1 or more")
        crowded = f"ranks_per_node: {self.ranks_per_node}, expected at most one on each of {self.gpus_per_node} GPUs"
        require(not self.gpus_per_node or self.ranks <= self.gpus_per_node, crowded)
        # sbatch stores the number in 16 bits.
        require(0 < self.signal_seconds < 1 << 16, f"signal_seconds: {self.signal_seconds}, expected 1..65535")
        require(self.max_restarts >= 0, f"max_restarts: {self.max_restarts}, expected 0 or more")

    @property
    def ranks(self) -> int:
        """Ranks that the launcher starts per node."""
        return self.ranks_per_node or self.gpus_per_node


@dataclass(frozen=True)
class PretrainJobConfig(TrainingJobConfig):
    """One pre-training run on many nodes, started again until it is finished."""

    launcher: str = "deepspeed"
    """deepspeed: its launcher once per node, without ssh; srun: one task per rank, without a launcher between."""

    def __post_init__(self) -> None:
        require(bool(self.run_config), "run_config: not given, expected the config file of a pre-training run")
        super().__post_init__()
        require(self.launcher in LAUNCHERS, f"launcher: {self.launcher!r}, expected one of {', '.join(LAUNCHERS)}")


@dataclass(frozen=True)
class FinetuneJobConfig(TrainingJobConfig):
    """One fine-tuning run through torchrun, started again until it is finished."""


@dataclass(frozen=True)
class PackJobConfig:
    """One data set packed by an array of tasks, and merged by a job that waits for all of them."""

    pack_config: str = ""
    """Config file as `mose-data pack --config` takes it; it must contain `output` and `num_tasks`."""
    max_running: int = 64
    """Most array elements that run at the same time."""
    max_array_elements: int = 1000
    """Largest array that the site allows: MaxArraySize of `scontrol show config` minus one. With more tasks, an element runs
    several, one after another."""
    job: AllocationConfig = field(default_factory=AllocationConfig)

    def __post_init__(self) -> None:
        require(bool(self.pack_config), "pack_config: not given, expected the config file of a data set")
        check_path("pack_config", self.pack_config)
        require(self.max_running > 0, f"max_running: {self.max_running}, expected 1 or more")
        require(self.max_array_elements > 0, f"max_array_elements: {self.max_array_elements}, expected 1 or more")


@dataclass(frozen=True)
class CommandJobConfig:
    """One command of a stage in one job, started again after a failure; every one of them goes on where it was stopped."""

    run_config: str = ""
    """Config file, as the stage's command takes it by --config."""
    options: tuple[str, ...] = ()
    """Further options of the command, one per entry, e.g. `--num_workers=8`."""
    gpus: int = 0
    """GPUs of the job."""
    max_running: int = 64
    """Of a stage with `num_tasks` in its config: most array elements that run at the same time."""
    max_restarts: int = 3
    """Most restarts after a failure."""
    job: AllocationConfig = field(default_factory=AllocationConfig)

    def __post_init__(self) -> None:
        require(bool(self.run_config), "run_config: not given, expected the config file of the stage")
        check_path("run_config", self.run_config)
        for option in self.options:
            named = option.startswith("--") and "=" in option and not option.startswith(("--config", "--print_config", "--task"))
            require(named, f"options: {option!r}, expected --NAME=VALUE other than config and task")
        require(self.gpus >= 0, f"gpus: {self.gpus}, expected 0 or more")
        require(self.max_running > 0, f"max_running: {self.max_running}, expected 1 or more")
        require(self.max_restarts >= 0, f"max_restarts: {self.max_restarts}, expected 0 or more")


@dataclass(frozen=True)
class SuperviseConfig:
    """Inside a job: starts the ranks by the command after `--`, watches them, and decides whether the job runs again."""

    launch_folder: str = "launch"
    """Folder of the frozen config, and of the history of starts."""
    run: str = ""
    """Run directory, whose heartbeat and checkpoints are watched; empty for a command that is no training run."""
    finished: str = ""
    """File whose presence says that the run is finished; empty: the command's exit code 0."""
    needs_code_0: bool = False
    """Whether the command must also have ended with 0."""
    hostfile: str = ""
    """File to write with one line per node, as deepspeed reads it."""
    ranks_per_node: int = 1
    """Ranks per node, for the host file."""
    patience_seconds: float = 80
    """Time between the warning and the end of ranks that have not saved."""
    max_restarts: int = 100
    """Most restarts of a job."""
    poll_seconds: float = 0.5
    """Time between two looks at the run."""
    gpus_per_node: int = 0
    """GPUs per node, for the preflight; 0: it measures the CPU."""
    container: tuple[str, ...] = ()
    """Words before the preflight's command on a node."""
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    preflight: PreflightConfig = field(default_factory=PreflightConfig)

    def __post_init__(self) -> None:
        require(self.poll_seconds > 0, f"poll_seconds: {self.poll_seconds}, expected more than 0")
        require(self.ranks_per_node > 0, f"ranks_per_node: {self.ranks_per_node}, expected 1 or more")

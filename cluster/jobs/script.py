"""The text of a job's sbatch script from its config: pure functions, so that tests can compare every line."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.jobs.config import (
    AllocationConfig,
    CommandJobConfig,
    FinetuneJobConfig,
    PackJobConfig,
    PreflightConfig,
    PretrainJobConfig,
)
from cluster.jobs.stages import Stage
from cluster.jobs.words import joined, quoted
from mose.files.streams import presentable
from mose.run_directory import RunDirectory

DEEPSPEED, SRUN, TORCHRUN = "deepspeed", "srun", "torchrun"
_NOT_SEEN = '[[ -s "$hostfile" ]] || { echo "$(hostname): $hostfile: not seen on this node" >&2; exit 2; }'
_ON_EACH_NODE = {
    DEEPSPEED: rf"""
# Without a host file deepspeed would run on one node alone and say nothing. Its own processes ignore what asks the ranks to
# stop or to write their stacks, so that they live to pass on how the ranks ended.
readonly on_each_node='
    {_NOT_SEEN}
    trap "" TERM USR1 USR2
    exec deepspeed --hostfile "$hostfile" --no_ssh --node_rank "$SLURM_NODEID" \
        --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" --no_local_rank \
        --module MODULE COMMAND "$@"'
""",
    TORCHRUN: rf"""
# torchrun ignores what asks the ranks to stop or to write their stacks, so that it lives to pass on how the ranks ended.
readonly on_each_node='
    {_NOT_SEEN}
    trap "" USR1 USR2
    exec torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$ranks_per_node" --node-rank "$SLURM_NODEID" \
        --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" \
        -m MODULE COMMAND "$@"'
""",
}
_TRAINING = """
# The supervisor exports where the ranks meet (MASTER_ADDR, MASTER_PORT), writes the host file, measures the nodes (preflight),
# starts srun and watches the run; after srun's end it queues this job again, or ends it with a message.
exec mose-cluster supervise --run "$run" --launch_folder "$launch" --finished "$last_checkpoint" {code}\\
    {hostfile}--patience_seconds {patience} --max_restarts {restarts} \\
    --recovery.same_step_failures {same} --recovery.node_failures {nodes} \\
    --recovery.hang_seconds {hang:g} --recovery.start_seconds {start:g} --recovery.stacks_seconds {stacks:g} \\
    {preflight} -- \\
    srun {tasks} --kill-on-bad-exit=1 {container}{command}
"""
_COMMAND = """
# The supervisor runs the command, queues this job again after a failure, and leaves {launch}/done.json after success.
exec mose-cluster supervise --launch_folder "$launch" --max_restarts {restarts} -- \\
    {container}{command}
"""
_SEVERAL_TASKS = """failed=0
for ((task = SLURM_ARRAY_TASK_ID; task < {num_tasks}; task += {elements})); do
    {command} "$task" || failed=1
done
exit $failed
"""
_TENSORBOARD = """port=$((20000 + SLURM_JOB_ID % 10000))
host=$(hostname)
echo "ssh -N -L 6006:$host:$port $(id -un)@${{SLURM_SUBMIT_HOST:-LOGIN_NODE}}   # then open http://localhost:6006"
# It asks nobody for a password: whoever reaches this port of the node sees the curves.
exec {before}tensorboard --logdir_spec {named} --host "$host" --port "$port"
"""
# The warning before the time limit must not end a script whose supervisor is not up yet.
_TRAP = "trap '' USR1 # a warning that comes before the supervisor is up must not end the job\n"
# srun does not take it from the job since SLURM 22.05.
_SRUN_CPUS = "export SRUN_CPUS_PER_TASK={cpus} # without it srun gives a task one core\n"


@dataclass(frozen=True)
class DatasetFacts:
    """The values of a data set that its packing job needs: its folder, and the number of its tasks."""

    output: str
    num_tasks: int


def pretrain_script(config: PretrainJobConfig, max_steps: int) -> str:
    """The sbatch script of a pre-training job whose run ends after `max_steps` steps."""
    # A checkpoint's manifest is written last, so its presence means that the checkpoint is complete.
    last = RunDirectory(Path(config.output)).checkpoint(max_steps) / "manifest.json"
    about = f"Pre-training of {config.run_config} on {config.nodes} x {config.ranks} ranks, started again until it is finished."
    return _training_script(config, config.launcher, ("pretrain.cli", "train"), about, last, needs_code_0=False)


def finetune_script(config: FinetuneJobConfig, stage: Stage) -> str:
    """The sbatch script of a fine-tuning job."""
    # Other folders may follow the checkpoint, so that it is the file and the exit code together that say so.
    last = Path(config.output) / "checkpoint" / "config.json"
    about = f"{stage.command.capitalize()} of {config.run_config} on {config.nodes} x {config.ranks} ranks, started again until"
    return _training_script(config, TORCHRUN, (stage.module, stage.command), f"{about} it is finished.", last, needs_code_0=True)


def _training_script(
    config: PretrainJobConfig | FinetuneJobConfig,
    launcher: str,
    program: tuple[str, str],
    about: str,
    last: Path,
    *,
    needs_code_0: bool,
) -> str:
    job, ranks, recovery = config.job, config.ranks, config.recovery
    launch = RunDirectory(Path(config.output)).launch
    per_rank = launcher == SRUN
    tasks = ranks if per_rank else 1
    options = [f"--nodes={config.nodes}", f"--ntasks-per-node={tasks}", "--exclusive"]
    options += [f"--gpus-per-node={config.gpus_per_node}"] if config.gpus_per_node else []
    # --exclusive gives all cores of a node, but only as much memory as is asked for: by default a share per core.
    options += ["--mem=0"] if not any(option.startswith("--mem") for option in job.sbatch_options) else []
    options += [f"--output={job.log_folder}/%x-%j.log", "--open-mode=append"]
    options += ["--requeue", f"--signal=B:USR1@{config.signal_seconds}"]
    words = ["--config", str(launch / "config.yaml"), "--output", config.output]
    settings = {
        "options": f"({joined(words)})",
        "run": quoted(config.output),
        "launch": quoted(str(launch)),
        "last_checkpoint": quoted(str(last)),
    }
    if not per_rank:
        settings |= {"hostfile": f"{quoted(job.log_folder)}/hostfile-$SLURM_JOB_ID", "ranks_per_node": str(ranks)}
    on_node = _ON_EACH_NODE.get(launcher, "").replace("MODULE", program[0]).replace("COMMAND", program[1])
    started = f"mose-pretrain {program[1]}" if per_rank else f'bash -c "$on_each_node" {launcher}'
    body = _TRAINING.format(
        code="--needs_code_0 true " if needs_code_0 else "",
        hostfile="" if per_rank else '--hostfile "$hostfile" --ranks_per_node "$ranks_per_node" ',
        patience=config.signal_seconds * 2 // 3,
        restarts=config.max_restarts,
        same=recovery.same_step_failures,
        nodes=recovery.node_failures,
        hang=recovery.hang_seconds,
        start=recovery.start_seconds,
        stacks=recovery.stacks_seconds,
        preflight=_preflight_words(config),
        tasks=f"--ntasks-per-node={tasks}",
        container=_before(job),
        command=f'{started} "${{options[@]}}"',
    )
    lines = [f"readonly {name}={value}" for name, value in settings.items()]
    lines += ["export hostfile ranks_per_node"] if not per_rank else []
    # A whole node's cores are divided over its tasks.
    cpus = max(1, job.cpus_per_task // tasks)
    before = f"{_TRAP}{_SRUN_CPUS.format(cpus=cpus)}"
    return _script([about], job, options, before, "\n".join(lines) + "\n" + on_node + body, cpus)


def _preflight_words(config: PretrainJobConfig | FinetuneJobConfig) -> str:
    """The supervisor's options for the preflight; what is left at its default is not written."""
    limits, defaults = config.preflight, PreflightConfig()
    if not limits.enabled:
        return "--preflight.enabled false"
    words = [f"--gpus_per_node {config.gpus_per_node}", f"--preflight.seconds {limits.seconds:g}"]
    # A list for the option's parser, which reads YAML.
    words += [f"--container {quoted(json.dumps(list(config.job.container)))}"] if config.job.container else []
    for field in dataclasses.fields(limits):
        value = getattr(limits, field.name)
        if value != getattr(defaults, field.name) and field.name not in ("enabled", "seconds"):
            words.append(f"--preflight.{field.name} {value:g}")
    return " ".join(words)


def command_script(config: CommandJobConfig, stage: Stage, launch: Path) -> str:
    """The sbatch script of a stage that one process runs, with its own workers; it goes on where it was stopped."""
    job = config.job
    options = [f"--gpus={config.gpus}"] if config.gpus else []
    options += [f"--output={job.log_folder}/%x-%j.log", "--open-mode=append", "--requeue"]
    words = [config.run_config, *config.options] if stage.is_positional else ["--config", str(launch / "config.yaml")]
    command = joined([stage.program, stage.command, *stage.words, *words])
    body = _COMMAND.format(launch="$launch", restarts=config.max_restarts, container=_before(job), command=command)
    about = [f"{stage.summary[:-1]}: {config.run_config}."]
    return _script(about, job, options, _TRAP, f"readonly launch={quoted(str(launch))}\n{body}")


def array_script(config: CommandJobConfig, stage: Stage, num_tasks: int) -> str:
    """The sbatch script of an array over the tasks of a stage; a task that is finished does nothing."""
    job = config.job
    options = [f"--array=0-{num_tasks - 1}%{config.max_running}", f"--output={job.log_folder}/%x-%A_%a.log"]
    options += ["--open-mode=append", "--requeue"]
    command = joined([stage.program, stage.command, *stage.words, "--config", config.run_config, *config.options])
    body = f'exec {_before(job)}{command} --task "$SLURM_ARRAY_TASK_ID"\n'
    return _script([f"{stage.summary[:-1]}: {config.run_config} in {num_tasks} tasks."], job, options, "", body)


def pack_script(config: PackJobConfig, dataset: DatasetFacts, tasks: Sequence[int] | None = None) -> str:
    """The sbatch script of a packing job: an array over all tasks of the data set, or over `tasks`.

    Tasks that are finished already do nothing. Where there are more tasks than array elements, element e runs the tasks e,
    e + elements, ...; after a failed task it goes on to the next.
    """
    job, elements = config.job, min(dataset.num_tasks, config.max_array_elements)
    numbers = f"0-{elements - 1}" if tasks is None else ",".join(map(str, sorted({task % elements for task in tasks})))
    options = [f"--array={numbers}%{config.max_running}", f"--output={job.log_folder}/%x-%A_%a.log"]
    options += ["--open-mode=append", "--requeue"]
    finish = joined(finish_command(job, dataset, "JOB"))
    about = [f"Packing of {config.pack_config} in {dataset.num_tasks} tasks; JOB below is this job's number:", f"  {finish}"]
    pack = f"{_before(job)}mose-data pack --config {quoted(config.pack_config)} --task"
    if elements == dataset.num_tasks:
        return _script(about, job, options, "", f'exec {pack} "$SLURM_ARRAY_TASK_ID"\n')
    return _script(about, job, options, "", _SEVERAL_TASKS.format(num_tasks=dataset.num_tasks, elements=elements, command=pack))


def finish_command(job: AllocationConfig, dataset: DatasetFacts, job_id: str) -> list[str]:
    """The command that submits the merge after a packing job; its log names missing tasks, if any failed."""
    folder = quoted(dataset.output)
    exports = [_export(name, value) for name, value in sorted(job.environment.items())]
    program = f"{_before(job)}mose-data"
    steps = [*job.setup, *exports, f"{{ {program} status {folder} || true; }}", f"{program} finish {folder}"]
    # Not afterok: the merge says which tasks are missing. A dependency that can never come true ends it.
    options = [f"--dependency=afterany:{job_id}", "--kill-on-invalid-dep=yes", f"--output={job.log_folder}/%x-%j.log"]
    options += _asked_for(job, f"{job.name}-finish", job.cpus_per_task)
    return ["sbatch", "--parsable", *options, f"--wrap={joined(['bash', '-ec', ' && '.join(steps)])}"]


def tensorboard_script(job: AllocationConfig, runs: Sequence[str]) -> str:
    """The sbatch script of a TensorBoard server for these runs; its log begins with the ssh line that reaches it."""
    options = [f"--output={job.log_folder}/%x-%j.log", "--open-mode=append"]
    named = ",".join(f"{Path(run).name}:{RunDirectory(Path(run)).tensorboard}" for run in runs)
    body = _TENSORBOARD.format(before=_before(job), named=quoted(named))
    return _script([f"TensorBoard of {', '.join(runs)}."], job, options, "", body)


def _before(job: AllocationConfig) -> str:
    return f"{joined(job.container)} " if job.container else ""


def _export(name: str, value: str) -> str:
    return f"export {name}={quoted(value)}"


def _asked_for(job: AllocationConfig, name: str, cpus: int) -> list[str]:
    options = [f"--job-name={name}", f"--time={job.time_limit}", f"--cpus-per-task={cpus}"]
    options += [f"--{key}={value}" for key, value in (("account", job.account), ("partition", job.partition)) if value]
    return [*options, *job.sbatch_options]


def _script(about: list[str], job: AllocationConfig, options: list[str], trap: str, body: str, cpus: int = 0) -> str:
    head = [
        "#!/usr/bin/env bash",
        *(f"# {line}" for line in about),
        f"# The folder {job.log_folder} must be there before sbatch is called.",
    ]
    head += [f"#SBATCH {option}" for option in [*_asked_for(job, job.name, cpus or job.cpus_per_task), *options]]
    exports = [_export(name, value) for name, value in sorted(job.environment.items())]
    # Modules and conda read variables that are not set, which would end the script.
    lines = ["set +u", *job.setup, "set -u"] if job.setup else []
    setup = [*lines, *exports, ""] if lines or exports else []
    # Each is one line: a line break in a name would end the comment, and the rest of the name would be a command.
    head = [presentable(line).replace("\n", "\\n") for line in head]
    return "\n".join([*head, "set -euo pipefail", f"{trap}", *setup, body])

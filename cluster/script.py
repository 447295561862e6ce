"""The text of a job's sbatch script from its config: pure functions, so that tests can compare every line."""

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.config import AllocationConfig, PackJobConfig, PretrainJobConfig
from mose.files.streams import presentable
from mose.run_directory import RunDirectory


@dataclass(frozen=True)
class DatasetFacts:
    """The values of a data set that its packing job needs: its folder, and the number of its tasks."""

    output: str
    num_tasks: int


_PRETRAIN_BODY = r"""
# The last checkpoint says that the run is finished; srun's exit code does not (it was 0 after a node had died).
finished() { [[ -e "$last_checkpoint" ]]; }
diverged() { grep -qs '"stage": "diverged"' "$run/heartbeat.json"; }
newest_checkpoint() { { find "$run/checkpoints" -maxdepth 1 -name 'step-*' 2>/dev/null || true; } | sort | tail -n 1; }
say() { echo "$(date -Is) job $SLURM_JOB_ID: $*"; }

start_again() {
    local restarts=${SLURM_RESTART_COUNT:-0} # not set in the first start
    if ((restarts >= max_restarts)); then
        say "not started again: $restarts restarts, max_restarts is $max_restarts" >&2
        exit 1
    fi
    say "queued again after $restarts restarts"
    scontrol requeue "$SLURM_JOB_ID" && sleep 300 # the requeue ends this script
    exit 75 # where users may not requeue, sites can list 75 as RequeueExit
}

if finished; then
    say "$run is finished"
    exit 0
fi

scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/\$/ slots=$ranks_per_node/" > "$hostfile"
read -r MASTER_ADDR _ < "$hostfile"
MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000)) # two jobs on one node must not meet; below the ports that systems hand out
export hostfile MASTER_ADDR MASTER_PORT
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

before=$(newest_checkpoint)
# Without a host file deepspeed would run on one node alone and say nothing. Its own processes ignore what asks the ranks to
# stop (ranks set handlers, ignored signals are inherited), so that they live to pass on how the ranks ended.
srun --ntasks-per-node=1 --kill-on-bad-exit=1 bash -c '
    [[ -s "$hostfile" ]] || { echo "$(hostname): $hostfile: not seen on this node" >&2; exit 2; }
    trap "" TERM USR1
    exec deepspeed --hostfile "$hostfile" --no_ssh --node_rank "$SLURM_NODEID" \
        --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" --no_local_rank \
        --module pretrain.cli train "$@"' deepspeed "${options[@]}" &
launcher=$!

warned=no
near_the_limit() {
    warned=yes
    kill -USR1 "$launcher" # srun passes it on: the ranks finish their step, save, and end with 75
    (sleep "$patience" && kill -TERM "$launcher") >/dev/null 2>&1 & # ranks that hang must not let the job run into its limit
    insisting=$!
}
insisting=
trap near_the_limit USR1
code=0
wait "$launcher" || code=$?
while kill -0 "$launcher" 2>/dev/null; do wait "$launcher" || code=$?; done # a signal ends `wait` early
[[ -z $insisting ]] || kill "$insisting" 2>/dev/null || true
rm -f "$hostfile"

if finished; then
    say "$run is finished"
elif ((code == 3)) || diverged; then
    say "$run diverged: see skipped.jsonl; it is not started again" >&2
    exit 3
elif [[ $code == 75 || $warned == yes || $(newest_checkpoint) != "$before" ]]; then
    start_again
else
    say "stopped with code $code before a new checkpoint; started again it would stop again" >&2
    exit $((code == 0 ? 1 : code))
fi
"""

_SEVERAL_TASKS = """failed=0
for ((task = SLURM_ARRAY_TASK_ID; task < {num_tasks}; task += {elements})); do
    {pack} "$task" || failed=1
done
exit $failed
"""


def pretrain_script(config: PretrainJobConfig, max_steps: int) -> str:
    """The sbatch script of a pre-training job whose run ends after `max_steps` steps."""
    job, ranks = config.job, config.ranks
    # A checkpoint's manifest is written last, so its presence means that the checkpoint is complete.
    last_checkpoint = RunDirectory(Path(config.output)).checkpoint(max_steps) / "manifest.json"
    words = ["--config", config.run_config, "--output", config.output, *config.options]
    options = [f"--nodes={config.nodes}", "--ntasks-per-node=1", "--exclusive"]
    options += [f"--gpus-per-node={config.gpus_per_node}"] if config.gpus_per_node else []
    options += [f"--output={job.log_folder}/%x-%j.log", "--open-mode=append"]
    options += ["--requeue", f"--signal=B:USR1@{config.signal_seconds}"]
    settings = {
        "options": f"({_joined(words)})",
        "run": _quoted(config.output),
        "last_checkpoint": _quoted(str(last_checkpoint)),
        "ranks_per_node": str(ranks),
        "max_restarts": str(config.max_restarts),
        "patience": str(config.signal_seconds * 2 // 3),
        "hostfile": f"{_quoted(job.log_folder)}/hostfile-$SLURM_JOB_ID",
    }
    about = [f"Pre-training of {config.run_config} on {config.nodes} x {ranks} ranks, started again until it is finished."]
    lines = [f"readonly {name}={value}" for name, value in settings.items()]
    return _script(about, job, options, "\n".join(lines) + "\n" + _PRETRAIN_BODY)


def pack_script(config: PackJobConfig, dataset: DatasetFacts, tasks: Sequence[int] | None = None) -> str:
    """The sbatch script of a packing job: an array over all tasks of the data set, or over `tasks`.

    Tasks that are finished already do nothing. Where there are more tasks than array elements, element e runs the tasks e,
    e + elements, ...; after a failed task it goes on to the next.
    """
    job, elements = config.job, min(dataset.num_tasks, config.max_array_elements)
    numbers = f"0-{elements - 1}" if tasks is None else ",".join(map(str, sorted({task % elements for task in tasks})))
    options = [f"--array={numbers}%{config.max_running}", f"--output={job.log_folder}/%x-%A_%a.log"]
    options += ["--open-mode=append", "--requeue"]
    finish = _joined(finish_command(job, dataset, "JOB"))
    about = [f"Packing of {config.pack_config} in {dataset.num_tasks} tasks; JOB below is this job's number:", f"  {finish}"]
    pack = f"mose-data pack --config {_quoted(config.pack_config)} --task"
    if elements == dataset.num_tasks:
        return _script(about, job, options, f'exec {pack} "$SLURM_ARRAY_TASK_ID"\n')
    return _script(about, job, options, _SEVERAL_TASKS.format(num_tasks=dataset.num_tasks, elements=elements, pack=pack))


def finish_command(job: AllocationConfig, dataset: DatasetFacts, job_id: str) -> list[str]:
    """The command that submits the merge after a packing job; its log names missing tasks, if any failed."""
    folder = _quoted(dataset.output)
    steps = [*job.setup, f"{{ mose-data status {folder} || true; }}", f"mose-data finish {folder}"]
    options = [f"--dependency=afterany:{job_id}", f"--output={job.log_folder}/%x-%j.log"]
    options += _asked_for(job, f"{job.name}-finish")
    return ["sbatch", "--parsable", *options, f"--wrap={shlex.join(['bash', '-euc', ' && '.join(steps)])}"]


def _asked_for(job: AllocationConfig, name: str) -> list[str]:
    options = [f"--job-name={name}", f"--time={job.time_limit}", f"--cpus-per-task={job.cpus_per_task}"]
    options += [f"--{key}={value}" for key, value in (("account", job.account), ("partition", job.partition)) if value]
    return [*options, *job.sbatch_options]


def _script(about: list[str], job: AllocationConfig, options: list[str], body: str) -> str:
    head = [
        "#!/usr/bin/env bash",
        *(f"# {line}" for line in about),
        f"# The folder {job.log_folder} must be there before sbatch is called.",
    ]
    head += [f"#SBATCH {option}" for option in [*_asked_for(job, job.name), *options]]
    setup = [*job.setup, ""] if job.setup else []
    # Each is one line: a line break in a name would end the comment, and the rest of the name would be a command.
    head = [presentable(line).replace("\n", "\\n") for line in head]
    return "\n".join([*head, "set -euo pipefail", "", *setup, body])


def _joined(words: Sequence[str]) -> str:
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    """`word` for bash, on one line and without control characters, which would act on the terminal that shows the script."""
    if not re.search(r"[^ -~]", word):
        return shlex.quote(word)
    # Octal, because \xHH would take further hexadecimal digits of the text in some shells; bytes do not depend on the locale.
    plain = {ord("'"): "\\'", ord("\\"): "\\\\"}
    safe = [plain.get(byte, chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}") for byte in os.fsencode(word)]
    return f"$'{''.join(safe)}'"

"""sbatch scripts: every line against golden text, bash's own parser, and what a script does when srun ends in each way.

Where a script changes on purpose, delete its golden file: the failing test then shows the text to put there.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.jobs.config import (
    AllocationConfig,
    CommandJobConfig,
    FinetuneJobConfig,
    PackJobConfig,
    PreflightConfig,
    PretrainJobConfig,
    RecoveryConfig,
)
from cluster.jobs.script import (
    DatasetFacts,
    array_script,
    command_script,
    finetune_script,
    finish_command,
    pack_script,
    pretrain_script,
)
from cluster.jobs.stages import STAGES

GOLDEN = Path(__file__).parent / "golden"
JOB = AllocationConfig(
    name="mose-1b",
    cpus_per_task=32,
    account="abc123",
    partition="boost",
    setup=("source .venv/bin/activate",),
    sbatch_options=("--qos=long",),
)
SITE = AllocationConfig(
    environment={"NCCL_DEBUG": "WARN", "NOTE": "it's $HOME"}, container=("apptainer", "exec", "--nv", "my image.sif")
)
CPU = {"gpus_per_node": 0, "ranks_per_node": 2, "preflight": PreflightConfig(enabled=False)}
SCRIPTS = {
    "pretrain_srun": pretrain_script(
        PretrainJobConfig("configs/mose_1b.yaml", "runs/mose_1b", (), 2, 4, job=SITE, launcher="srun"), 245000
    ),
    "retrieval": finetune_script(FinetuneJobConfig("retrieval.yaml", "runs/r", (), 2, 4, job=SITE), STAGES["retrieval"]),
    "group": command_script(CommandJobConfig("group.yaml", job=SITE), STAGES["group"], Path("logs/mose.launch")),
    "export": command_script(CommandJobConfig("runs/m", ("--output=out",)), STAGES["export"], Path("logs/mose.launch")),
    "fetch": array_script(CommandJobConfig("fetch.yaml", ("--attempts=3",), max_running=4), STAGES["fetch"], 16),
    "dedup_bands": array_script(CommandJobConfig("dedup.yaml", job=JOB), STAGES["dedup-bands"], 64),
    "dedup_groups": command_script(CommandJobConfig("dedup.yaml", job=JOB), STAGES["dedup-groups"], Path("logs/near.launch")),
    "pretrain_gpu": pretrain_script(
        PretrainJobConfig("configs/mose_1b.yaml", "runs/mose_1b", ("--data.dataset=data/stack_v2",), 128, 4, job=JOB), 245000
    ),
    "pretrain_cpu": pretrain_script(
        PretrainJobConfig("my run.yaml", "my run", ("--data.dataset=my data",), max_restarts=3, **CPU),
        30,
    ),
    "pack": pack_script(PackJobConfig("configs/pack.yaml", max_running=16, job=JOB), DatasetFacts("data/stack_v2", 64)),
    "pack_many": pack_script(PackJobConfig("configs/pack.yaml", max_array_elements=3), DatasetFacts("data/stack_v2", 10)),
}


def test_setup_may_read_variables_that_are_not_set(tmp_path: Path) -> None:
    """As environment modules and conda do; the script itself still may not."""
    write_tool(tmp_path, "mose-data", "echo ran $- >> ran")
    job = AllocationConfig(setup=('echo "$NOT_SET_ANYWHERE" > setup',))
    scripts = [array_script(CommandJobConfig("fetch.yaml", job=job), STAGES["fetch"], 2)]
    scripts.append(finish_command(job, DatasetFacts("data", 2), "17")[-1].removeprefix("--wrap="))
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "0"}
    for script in scripts:
        subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, check=True)
    assert len((tmp_path / "ran").read_text().splitlines()) == 3
    assert "set -u\n" in scripts[0].partition("NOT_SET")[2]


def test_a_job_gets_the_whole_memory_and_its_tasks_their_cores() -> None:
    """By default SLURM gives a share of the memory per core, and srun one core per task."""
    assert "#SBATCH --mem=0\n" in SCRIPTS["pretrain_gpu"] and "export SRUN_CPUS_PER_TASK=32 " in SCRIPTS["pretrain_gpu"]
    assert "export SRUN_CPUS_PER_TASK=2 " in SCRIPTS["pretrain_srun"]
    asked = PretrainJobConfig("a.yaml", "run", job=AllocationConfig(sbatch_options=("--mem=480G",)))
    assert "--mem=0" not in pretrain_script(asked, 30)


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_is_the_golden_one(name: str) -> None:
    golden = GOLDEN / f"{name}.sbatch"
    assert golden.exists(), f"{golden.name} is missing; the script is:\n{SCRIPTS[name]}"
    assert SCRIPTS[name] == golden.read_text("utf-8")


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_can_parse_it(name: str) -> None:
    result = subprocess.run(["bash", "-n"], input=SCRIPTS[name], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck on this machine: apt-get install shellcheck")
def test_shellcheck_finds_nothing(tmp_path: Path) -> None:
    hostile = {f"hostile_{number}": script for number, script in enumerate(hostile_scripts())}
    for name, script in (SCRIPTS | hostile).items():
        (tmp_path / f"{name}.sh").write_text(script)
    # SC2016: the words of `on_each_node` are expanded on the nodes; SC1091: a setup line sources a file of the site.
    command = ["shellcheck", "--exclude=SC2016,SC1091", "--norc", *sorted(map(str, tmp_path.glob("*.sh")))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("name", SCRIPTS)
def test_options_come_before_the_first_command(name: str) -> None:
    """sbatch stops reading options at the first command."""
    lines = SCRIPTS[name].splitlines()
    last_option = max(i for i, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert all(line.startswith("#") for line in lines[:last_option])


def test_finish_waits_for_the_end_of_every_task_and_says_what_is_missing() -> None:
    command = finish_command(JOB, DatasetFacts("my data", 3), "17")
    assert command[:3] == ["sbatch", "--parsable", "--dependency=afterany:17"]
    wrapped = shlex.split(command[-1].removeprefix("--wrap="))
    # A wrapped line is run by /bin/sh, which need not know `source`.
    shown = "{ mose-data status 'my data' || true; }"
    assert wrapped == ["bash", "-ec", f"source .venv/bin/activate && {shown} && mose-data finish 'my data'"]


@pytest.mark.parametrize(("status", "finish", "code"), [(1, 2, 2), (0, 0, 0)])
def test_the_merge_runs_whatever_status_says_and_its_code_counts(tmp_path: Path, status: int, finish: int, code: int) -> None:
    write_tool(tmp_path, "mose-data", f'echo "$*" >> calls; [[ $1 == status ]] && exit {status}; exit {finish}')
    wrapped = finish_command(AllocationConfig(), DatasetFacts("my data", 3), "17")[-1].removeprefix("--wrap=")
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = subprocess.run(["sh", "-c", wrapped], cwd=tmp_path, env=environment, check=False)
    assert result.returncode == code
    assert (tmp_path / "calls").read_text() == "status my data\nfinish my data\n"


def test_missing_tasks_are_the_only_elements() -> None:
    some = pack_script(PackJobConfig("pack.yaml"), DatasetFacts("data", 64), [9, 3])
    assert "#SBATCH --array=3,9%64\n" in some
    folded = pack_script(PackJobConfig("pack.yaml", max_array_elements=4), DatasetFacts("data", 64), [9, 3, 5])
    assert "#SBATCH --array=1,3%64\n" in folded


def test_an_element_does_several_tasks_and_goes_on_after_a_failed_one(tmp_path: Path) -> None:
    write_tool(tmp_path, "mose-data", 'echo "${@: -1}" >> calls; [[ ${@: -1} != 4 ]]')
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "1"}
    command = ["bash", "-c", SCRIPTS["pack_many"]]
    result = subprocess.run(command, cwd=tmp_path, env=environment, check=False)
    assert result.returncode == 1
    assert (tmp_path / "calls").read_text().split() == ["1", "4", "7"]


def write_tool(folder: Path, name: str, body: str) -> None:
    """A stand-in for one of SLURM's commands."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
    (folder / name).chmod(0o755)


def play(tmp_path: Path, srun: str, restarts: int | None = None, script: str = SCRIPTS["pretrain_cpu"]) -> tuple[int, str, str]:
    """Run the CPU script with stand-ins; returns its exit code, its output, and the `scontrol` calls it made."""
    tools = tmp_path / "tools"
    write_tool(tools, "srun", srun)
    write_tool(tools, "scontrol", 'echo "$*" >> calls; [[ $1 == show ]] && printf "n1\\nn2\\n"')
    (tmp_path / "logs").mkdir(exist_ok=True)
    slurm = {"SLURM_JOB_ID": "30017", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CPUS_PER_TASK": "8", "SLURM_NODEID": "0"}
    if restarts is not None:
        slurm["SLURM_RESTART_COUNT"] = str(restarts)
    environment = {**os.environ, **slurm, "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", "-c", script]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60)
    calls = tmp_path / "calls"
    return result.returncode, result.stdout + result.stderr, calls.read_text() if calls.exists() else ""


ONE_FAILURE = pretrain_script(PretrainJobConfig("run.yaml", "my run", recovery=RecoveryConfig(same_step_failures=1), **CPU), 30)
NO_PATIENCE = pretrain_script(PretrainJobConfig("run.yaml", "my run", signal_seconds=1, **CPU), 30)
SAVE_10 = "mkdir -p 'my run/checkpoints/step-000010'"
WAIT = "exec {idle}<> <(:); for i in {1..500}; do read -rt .01 -u $idle || true; done"
SAVE_LAST = "mkdir -p 'my run/checkpoints/step-000030' && touch 'my run/checkpoints/step-000030/manifest.json'"


def test_a_finished_run_is_not_started(tmp_path: Path) -> None:
    (tmp_path / "my run/checkpoints/step-000030").mkdir(parents=True)
    (tmp_path / "my run/checkpoints/step-000030/manifest.json").touch()
    code, output, calls = play(tmp_path, "echo srun was called")
    assert (code, calls) == (0, "")
    assert "my run is finished" in output
    assert "srun was called" not in output


def test_a_run_that_finishes_ends_well(tmp_path: Path) -> None:
    code, output, calls = play(tmp_path, SAVE_LAST)
    assert (code, calls) == (0, "")
    assert "my run is finished" in output
    assert list((tmp_path / "logs").iterdir()) == []


def test_a_run_that_finishes_is_done_whatever_srun_says(tmp_path: Path) -> None:
    assert play(tmp_path, f"{SAVE_LAST}; exit 143")[0] == 0


def test_the_launcher_gets_every_node_and_the_port_of_the_start(tmp_path: Path) -> None:
    """Pain of users: a host file that is not found, and a job that silently runs on one node."""
    write_tool(tmp_path / "tools", "deepspeed", f'cat "$2"; printf "<%s> " "$@"; {SAVE_LAST}')
    code, output, _ = play(tmp_path, 'shift 2; exec "$@"')
    assert code == 0
    assert "n1 slots=2\nn2 slots=2\n" in output
    flags = r"<--no_ssh> <--node_rank> <0> <--master_addr> <n1> <--master_port> <[12]\d{4}> <--no_local_rank>"
    train = "<train> <--config> <my run/launch/config.yaml> <--output> <my run>"
    assert re.search(f"<--hostfile> <logs/hostfile-30017> {flags} <--module> <pretrain.cli> {train}", output)


def test_a_node_that_does_not_see_the_host_file_says_so(tmp_path: Path) -> None:
    code, output, _ = play(tmp_path, 'shift 2; rm logs/hostfile*; exec "$@"')
    assert code == 2
    assert "hostfile-30017: not seen on this node" in output


def test_a_failure_before_a_checkpoint_stops_the_job(tmp_path: Path) -> None:
    code, output, calls = play(tmp_path, "exit 2")
    assert code == 2
    assert "stopped with code 2 before a new checkpoint" in output
    assert "requeue" not in calls


def test_exit_code_0_without_the_last_checkpoint_is_a_failure(tmp_path: Path) -> None:
    """Seen: srun ends with 0 after a node has died and the rank on the other one had finished."""
    assert play(tmp_path, "exit 0", script=ONE_FAILURE)[0] == 1


def test_an_old_checkpoint_is_no_progress(tmp_path: Path) -> None:
    (tmp_path / "my run/checkpoints/step-000010").mkdir(parents=True)
    assert play(tmp_path, "exit 9", script=ONE_FAILURE)[0] == 9


def test_a_failure_after_a_checkpoint_queues_the_job_again(tmp_path: Path) -> None:
    write_tool(tmp_path / "tools", "sleep", "exit 0")
    code, output, calls = play(tmp_path, f"{SAVE_10}; exit 9", restarts=2)
    assert code == 75
    assert "queued again after 2 restarts" in output
    assert calls.endswith("requeue 30017\n")


def test_the_time_limit_queues_the_job_again(tmp_path: Path) -> None:
    """The warning comes while the script waits; it passes USR1 on, waits for srun's end, and asks to be queued."""
    write_tool(tmp_path / "tools", "sleep", "[[ $1 == 300 ]] || exec /bin/sleep 60")
    code, output, calls = play(tmp_path, f"trap 'echo ranks saved; exit 75' USR1; kill -USR1 $PPID; {WAIT}; exit 1")
    assert code == 75
    assert "ranks saved" in output
    assert calls.endswith("requeue 30017\n")


def test_ranks_that_do_not_save_in_time_are_ended_and_the_job_is_queued_again(tmp_path: Path) -> None:
    write_tool(tmp_path / "tools", "sleep", "exit 0")
    code, output, calls = play(
        tmp_path, f"trap : USR1; trap 'echo ranks ended; exit 143' TERM; kill -USR1 $PPID; {WAIT}; exit 1", script=NO_PATIENCE
    )
    assert code == 75
    assert "ranks ended" in output
    assert calls.endswith("requeue 30017\n")


def test_a_preempted_run_that_saved_is_queued_again(tmp_path: Path) -> None:
    write_tool(tmp_path / "tools", "sleep", "exit 0")
    code, _, calls = play(tmp_path, "exit 75")
    assert code == 75
    assert calls.endswith("requeue 30017\n")


@pytest.mark.parametrize("srun", ["exit 3", """echo '{"stage": "diverged"}' > 'my run/heartbeat.json'; exit 137"""])
def test_a_run_that_diverged_is_not_started_again(tmp_path: Path, srun: str) -> None:
    """Whatever checkpoints it wrote before; on several nodes srun's code may be that of ranks it killed itself."""
    code, output, calls = play(tmp_path, f"{SAVE_10}; {srun}")
    assert code == 3
    assert "my run diverged" in output
    assert "requeue" not in calls


def test_processes_of_the_launcher_ignore_what_asks_the_ranks_to_stop(tmp_path: Path) -> None:
    write_tool(tmp_path / "tools", "deepspeed", "kill -USR1 $$; kill -TERM $$; echo still here; exit 75")
    code, output, _ = play(tmp_path, 'shift 2; exec "$@"', restarts=3)
    assert code == 1
    assert "still here" in output


def test_restarts_are_capped(tmp_path: Path) -> None:
    code, output, calls = play(tmp_path, f"{SAVE_10}; exit 9", restarts=3)
    assert code == 1
    assert "not started again: 3 restarts, max_restarts is 3" in output
    assert "requeue" not in calls


def measuring(facts: str, then: str = SAVE_LAST) -> str:
    """srun whose preflight finds n1 healthy and these facts of n2."""
    healthy = '"stage":"done","run_free":99999999999,"temporary_free":99999999999'
    lines = (f'mose-preflight {{"rank":0,"node":"n1",{healthy}}}', f'mose-preflight {{"rank":1,"node":"n2",{healthy}{facts}}}')
    return f"""if [[ "$*" == *" preflight "* ]]; then printf '%s\\n' '{lines[0]}' '{lines[1]}'; exit; fi; {then}"""


MEASURED = pretrain_script(PretrainJobConfig("run.yaml", "my run", gpus_per_node=0, ranks_per_node=2, max_restarts=3), 30)


def test_healthy_nodes_are_measured_and_trained_on(tmp_path: Path) -> None:
    code, output, calls = play(tmp_path, measuring(""), script=MEASURED)
    assert (code, calls) == (0, "")
    assert "my run is finished" in output and "preflight" not in output
    assert (tmp_path / "my run/launch/preflight-30017-0.json").exists()


def test_a_node_that_fails_its_preflight_is_excluded_before_anything_runs(tmp_path: Path) -> None:
    write_tool(tmp_path / "tools", "sleep", "exit 0")
    code, output, calls = play(tmp_path, measuring(',"fault":"device: ECC error"', "echo trained"), script=MEASURED)
    assert code == 75
    assert "preflight: n2: rank 1, device: ECC error" in output and "trained" not in output
    assert "after its preflight, without n2" in output and calls.endswith("requeue 30017\n")


def test_a_preflight_that_cannot_run_is_no_reason_not_to_train(tmp_path: Path) -> None:
    body = f'[[ "$*" == *" preflight "* ]] && exit 1; {SAVE_LAST}'
    code, output, _ = play(tmp_path, body, script=MEASURED)
    assert code == 0
    assert "preflight: no process answered within" in output and "training starts without it" in output


def test_a_warning_during_the_preflight_queues_the_job_again(tmp_path: Path) -> None:
    write_tool(tmp_path / "tools", "sleep", "[[ $1 == 300 ]] || exec /bin/sleep 60")
    body = f'[[ "$*" == *" preflight "* ]] || echo trained; kill -USR1 $PPID; {WAIT}; exit 1'
    code, output, calls = play(tmp_path, body, script=MEASURED)
    assert code == 75
    assert calls.endswith("requeue 30017\n") and "trained" not in output


def test_limits_of_the_preflight_are_in_the_script_unless_they_are_the_defaults() -> None:
    limits = PreflightConfig(seconds=60, slow_fraction=0.5, device_gib=33, max_excluded=2)
    script = pretrain_script(PretrainJobConfig("run.yaml", "run", nodes=2, gpus_per_node=4, preflight=limits, job=SITE), 30)
    line = next(line for line in script.splitlines() if "--preflight" in line)
    container = """--container '["apptainer", "exec", "--nv", "my image.sif"]'"""
    options = "--preflight.slow_fraction 0.5 --preflight.device_gib 33 --preflight.max_excluded 2 -- \\"
    assert line.split() == f"--gpus_per_node 4 --preflight.seconds 60 {container} {options}".split()


# A line break, quotes, a command, an escape of the terminal, right-to-left override, a byte that is no UTF-8.
HOSTILE = "evil\ntouch PWNED #'\"$(touch PWNED)`touch PWNED`\x1b[2J\u202e\\\udcff.yaml"


def hostile_scripts() -> list[str]:
    data = DatasetFacts(HOSTILE, 10)
    return [
        pretrain_script(
            PretrainJobConfig(HOSTILE, HOSTILE, (f"--data.dataset={HOSTILE}",), gpus_per_node=0, ranks_per_node=1), 8
        ),
        pack_script(PackJobConfig(HOSTILE), data),
        pack_script(PackJobConfig(HOSTILE, max_array_elements=3), data),
    ]


@pytest.mark.parametrize("number", range(3))
def test_a_name_cannot_leave_its_line_or_control_a_terminal(number: int, tmp_path: Path) -> None:
    calm = [line.partition(" ")[0] for line in hostile_scripts()[number].replace("$'", "'").splitlines()]
    assert "touch" not in calm
    assert hostile_scripts()[number].replace("\n", "").isprintable()
    assert hostile_scripts()[number].isascii()
    # Up to what depends on SLURM: comments and settings.
    head, _, _ = hostile_scripts()[number].partition("\n# Without a host file")
    tool = "printf '%s\\0' \"$@\" > words"
    write_tool(tmp_path, "mose-data", tool)
    show = "\nprintf '%s\\0' \"${options[@]}\" > words\n" if "options=" in head else ""
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "3"}
    subprocess.run(["bash", "-c", head + show], cwd=tmp_path, env=environment, check=True)
    assert os.fsencode(HOSTILE) in (tmp_path / "words").read_bytes().split(b"\0")
    assert not (tmp_path / "PWNED").exists()


def test_the_merge_of_a_hostile_name_reads_that_name(tmp_path: Path) -> None:
    write_tool(tmp_path, "mose-data", "printf '%s\\0' \"$@\" > words")
    wrapped = finish_command(AllocationConfig(), DatasetFacts(HOSTILE, 3), "17")[-1].removeprefix("--wrap=")
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", wrapped], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "words").read_bytes().split(b"\0")[:2] == [b"finish", os.fsencode(HOSTILE)]
    assert not (tmp_path / "PWNED").exists()

"""`mose-cluster launch`: printing, submitting through a stand-in for sbatch, and each bad input as a user would meet it."""

import json
import os
import sys
from pathlib import Path

import pytest

from cluster.cli import commands
from cluster.launch.submit import file_system_of
from mose.command import run_command
from mose.run_directory import RunDirectory

ROOT = Path(__file__).parents[3]
RUN = "max_steps: 30\nmodel: {num_layers: 4}\n"
TRAIN = ("--run_config", "run.yaml", "--output", "runs/one")
SBATCH = f"""#!{sys.executable}
import json, sys
from pathlib import Path
calls = Path("calls")
lines = calls.read_text().splitlines() if calls.exists() else []
calls.write_text("\\n".join([*lines, json.dumps(sys.argv[1:])]))
print(f"{{41 + len(lines)}};somecluster")
"""
# A stand-in for the stage's command, whose imports take seconds: resolves nothing, and refuses six ranks.
STAGE = f"""#!{sys.executable}
import sys
if "--dry-run" in sys.argv:
    sys.exit("mose-pretrain: error: a.yaml: ranks do not fit" if sys.argv[-1] == "6" else 0)
print(open(sys.argv[sys.argv.index("--config") + 1]).read())
"""


def launch(*words: str) -> int:
    return run_command("mose-cluster", "Jobs.", commands(), ["launch", *words])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "tools"))
    (tmp_path / "run.yaml").write_text(RUN)
    (tmp_path / "pack.yaml").write_text("output: data/one\nnum_tasks: 3\n")
    return tmp_path


def install_sbatch(folder: Path, text: str = SBATCH) -> None:
    (folder / "tools").mkdir()
    (folder / "tools/sbatch").write_text(text)
    (folder / "tools/sbatch").chmod(0o755)
    for program in ("mose-pretrain", "mose-finetune", "mose-data"):
        (folder / "tools" / program).write_text(STAGE)
        (folder / "tools" / program).chmod(0o755)


def install_squeue(folder: Path, lines: str) -> None:
    (folder / "tools/squeue").write_text(f"#!/bin/sh\nprintf '{lines}'\n")
    (folder / "tools/squeue").chmod(0o755)


def test_print_only_prints_and_leaves_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.rglob("*"))
    assert launch("pretrain", *TRAIN, "--nodes", "4", "--job.account", "abc", "--print-only") == 0
    pretrain = capsys.readouterr().out
    assert pretrain.startswith("#!/usr/bin/env bash\n")
    assert "#SBATCH --nodes=4\n" in pretrain
    assert "#SBATCH --account=abc\n" in pretrain
    assert "last_checkpoint=runs/one/checkpoints/step-000030/manifest.json\n" in pretrain
    assert launch("pack", "--pack_config", "pack.yaml", "--print-only") == 0
    assert "#SBATCH --array=0-2%64\n" in capsys.readouterr().out
    assert sorted(folder.rglob("*")) == before


def test_a_job_file_is_read_and_overridden(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "job.yaml").write_text(
        "run_config: run.yaml\noutput: runs/one\nnodes: 2\njob: {name: mine, setup: [module load cuda]}\n"
    )
    assert launch("pretrain", "--config", "job.yaml", "--nodes", "3", "--print-only") == 0
    script = capsys.readouterr().out
    assert "#SBATCH --job-name=mine\n" in script
    assert "#SBATCH --nodes=3\n" in script
    assert "\nmodule load cuda\n" in script


def test_launch_submits_the_script_it_wrote(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install_sbatch(folder)
    assert launch("pretrain", *TRAIN, "--job.name", "mine") == 0
    assert capsys.readouterr().out == "submitted job 41\n"
    assert (folder / "calls").read_text() == '["--parsable", "logs/mine.sbatch"]'
    assert (folder / "logs/mine.sbatch").read_text().startswith("#!/usr/bin/env bash\n# Pre-training of run.yaml on 1 x 8 ranks")


def test_launch_pack_submits_the_merge_behind_the_array(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install_sbatch(folder)
    assert launch("pack", "--pack_config", "pack.yaml") == 0
    assert capsys.readouterr().out == "submitted job 41 (tasks) and job 42 (status and merge, when every task has ended)\n"
    array, finish = (folder / "calls").read_text().splitlines()
    assert array == '["--parsable", "logs/mose.sbatch"]'
    assert "--dependency=afterany:41" in finish
    assert "mose-data finish data/one" in finish


def install_status(folder: Path, shown: str, code: int) -> None:
    (folder / "tools").mkdir(exist_ok=True)
    error = "echo 'mose-data: error: data/one: holds no config.yaml' >&2" if code == 2 else ":"
    text = f'#!/bin/sh\n[ "$*" = "status data/one --missing" ] || exit 9\necho {shown!r}\n{error}\nexit {code}\n'
    (folder / "tools/mose-data").write_text(text)
    (folder / "tools/mose-data").chmod(0o755)


def test_only_the_missing_tasks_are_submitted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install_sbatch(folder)
    install_status(folder, "0,2", 1)
    assert launch("pack", "--pack_config", "pack.yaml", "--missing-only") == 0
    assert "#SBATCH --array=0,2%64\n" in (folder / "logs/mose.sbatch").read_text()
    install_status(folder, "1-2", 1)
    assert launch("pack", "--pack_config", "pack.yaml", "--missing-only", "--print-only") == 0
    assert "#SBATCH --array=1,2%64\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shown", "code", "expected"),
    [
        ("", 0, "data/one: every task is done or running; expected one to submit (`mose-data finish` merges them)"),
        ("", 2, "data/one: holds no config.yaml"),
    ],
)
def test_nothing_to_submit_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], shown: str, code: int, expected: str
) -> None:
    install_sbatch(folder)
    install_status(folder, shown, code)
    assert launch("pack", "--pack_config", "pack.yaml", "--missing-only") == 2
    assert capsys.readouterr().err == f"mose-cluster: error: {expected}\n"
    assert not (folder / "calls").exists()


def test_no_sbatch_on_this_machine(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("pretrain", *TRAIN) == 2
    assert capsys.readouterr().err.startswith(
        "mose-cluster: error: sbatch: not found on this machine; expected a SLURM login node"
    )
    assert not (folder / "logs").exists()


def test_sbatch_refuses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install_sbatch(folder, "#!/bin/sh\necho 'sbatch: error: invalid account' >&2\nexit 1\n")
    assert launch("pretrain", *TRAIN) == 2
    assert capsys.readouterr().err == "mose-cluster: error: sbatch: sbatch: error: invalid account\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrain"], "run_config: not given, expected the config file of a pre-training run"),
        (["pretrain", *TRAIN, "--run_config", "none.yaml"], "none.yaml: no such file, expected the config of the run to launch"),
        (["pretrain", *TRAIN, "--run_config", "pack.yaml"], "pack.yaml: max_steps: None, expected a positive whole number"),
        (["pretrain", *TRAIN, "--run_config", "list.yaml"], "list.yaml: expected a YAML mapping of config keys, found list"),
        (["pretrain", *TRAIN, "--run_config", "broken.yaml"], "broken.yaml: not readable YAML"),
        (["pretrain", "--run_config", "run.yaml"], "output: not given, expected the run directory"),
        (["pack", "--pack_config", "untold.yaml"], "untold.yaml: num_tasks: None, expected a positive whole number"),
        (["pretrain", "--nodez", "3"], "unknown key 'nodez'; expected one of: nodes"),
        (["pretrain", "--nodes", "three"], "nodes: Expected a int. Got value: three"),
        (["pack", "--pack_config", "unnamed.yaml"], "unnamed.yaml: output: None, expected a path"),
        (["nothing"], "invalid choice: 'nothing' (choose from"),
    ],
)
def test_bad_input_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    (folder / "list.yaml").write_text("- 1\n")
    (folder / "broken.yaml").write_text("a: [1\n")
    (folder / "unnamed.yaml").write_text("num_tasks: 3\n")
    (folder / "untold.yaml").write_text("output: data/one\n")
    assert launch(*words, "--print-only") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.parametrize("path", sorted((ROOT / "configs/cluster").glob("*_job.yaml")), ids=lambda path: path.stem)
def test_shipped_job_files_render(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The first word of the file's name is the kind of job."""
    monkeypatch.chdir(ROOT)
    assert launch(path.stem.partition("_")[0], "--config", str(path), "--print-only") == 0
    assert capsys.readouterr().out.startswith("#!/usr/bin/env bash\n")


def test_a_run_that_a_process_works_on_is_not_launched(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install_sbatch(folder)
    with RunDirectory(Path("runs/one")).hold():
        assert launch("pretrain", *TRAIN) == 2
        line = capsys.readouterr().err
        assert line.startswith(f"mose-cluster: error: runs/one: process {os.getpid()} of ")
        assert line.endswith(": works on it; expected one process at a time per run directory\n")
        assert launch("pretrain", *TRAIN, "--print-only") == 0
    assert not (folder / "calls").exists()
    assert launch("pretrain", *TRAIN) == 0


def test_a_launch_freezes_what_the_job_runs(folder: Path) -> None:
    install_sbatch(folder)
    assert launch("pretrain", *TRAIN, "--options", '["--seed=3"]', "--job.environment", '{"NCCL_DEBUG": "INFO"}') == 0
    launched = RunDirectory(Path("runs/one")).launch
    assert (launched / "config.yaml").read_text() == "max_steps: 30\nmodel:\n  num_layers: 4\n"
    assert (launched / "job.sbatch").read_text() == (folder / "logs/mose.sbatch").read_text()
    facts = json.loads((launched / "environment.json").read_text())
    assert facts["packages"]["torch"] and facts["python"]
    assert json.loads((launched / "jobs.jsonl").read_text())["job"] == "41"
    assert "export NCCL_DEBUG=INFO\n" in (launched / "job.sbatch").read_text()


def test_a_second_launch_is_refused_while_the_first_job_lives(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install_sbatch(folder)
    assert launch("pretrain", *TRAIN) == 0
    install_squeue(folder, "40|RUNNING|None|n3\\n41|RUNNING|None|n[1-2]\\n")
    capsys.readouterr()
    assert launch("pretrain", *TRAIN) == 2
    expected = "runs/one: job 41 (RUNNING, n[1-2]) works on it; expected it to end first: scancel 41"
    assert capsys.readouterr().err == f"mose-cluster: error: {expected}\n"
    assert len((folder / "calls").read_text().splitlines()) == 1
    install_squeue(folder, "40|RUNNING|None|n3\\n")
    assert launch("pretrain", *TRAIN) == 0


def test_a_run_directory_of_another_config_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install_sbatch(folder)
    assert launch("pretrain", *TRAIN) == 0
    install_squeue(folder, "")
    (folder / "run.yaml").write_text(RUN.replace("4", "8"))
    capsys.readouterr()
    assert launch("pretrain", *TRAIN) == 2
    line = capsys.readouterr().err
    assert "runs/one: holds a run of another config: model.num_layers is 4 there and 8 here; expected the same config" in line
    assert launch("pretrain", *TRAIN, "--replace-config") == 0
    assert "num_layers: 8" in (folder / "runs/one/launch/config.yaml").read_text()


def test_ranks_that_do_not_fit_the_config_are_refused_by_the_trainer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install_sbatch(folder)
    assert launch("pretrain", *TRAIN, "--nodes", "3", "--gpus_per_node", "2") == 2
    assert capsys.readouterr().err == "mose-cluster: error: a.yaml: ranks do not fit\n"
    assert not (folder / "calls").exists()


def test_a_job_waits_for_another(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install_sbatch(folder)
    assert launch("pretrain", *TRAIN, "--after", "12:13") == 0
    words = '"--parsable", "--dependency=afterok:12:13", "--kill-on-invalid-dep=yes", "logs/mose.sbatch"'
    assert (folder / "calls").read_text() == f"[{words}]"
    assert launch("pretrain", *TRAIN, "--after", "12,x") == 2
    assert "after: '12,x', expected job numbers such as 12 or 12:13" in capsys.readouterr().err


def test_a_merge_that_is_refused_takes_its_array_with_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is submitted half."""
    refuses = "sys.exit('sbatch: error: no such dependency') if '--parsable' in sys.argv and len(lines) == 1 else None\n"
    install_sbatch(folder, SBATCH.replace('print(f"', f'{refuses}print(f"'))
    (folder / "tools/scancel").write_text('#!/bin/sh\necho "$*" > cancelled\n')
    (folder / "tools/scancel").chmod(0o755)
    assert launch("pack", "--pack_config", "pack.yaml") == 2
    assert capsys.readouterr().err == "mose-cluster: error: sbatch: sbatch: error: no such dependency\n"
    assert (folder / "cancelled").read_text() == "41\n"


@pytest.mark.parametrize("stage", ["group", "translate", "dedup", "evaluate", "fetch", "dedup-verify", "dedup-groups"])
def test_every_other_stage_is_launched(stage: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install_sbatch(folder)
    (folder / "tasks.yaml").write_text("num_tasks: 5\n")
    is_array = stage in ("fetch", "dedup-verify")
    config = "tasks.yaml" if is_array or stage == "dedup-groups" else "run.yaml"
    assert launch(stage, "--run_config", config, "--job.name", "mine") == 0
    script = (folder / "logs/mine.sbatch").read_text()
    program = "mose-finetune" if stage == "evaluate" else "mose-data"
    words = "--config tasks.yaml --task" if is_array else "--config logs/mine.launch/config.yaml"
    assert f"{program} {stage.replace('-', ' --phase ')} {words}" in script
    assert ("#SBATCH --array=0-4%64\n" in script) == is_array


@pytest.mark.parametrize("stage", ["retrieval", "classification"])
def test_fine_tuning_is_launched_through_torchrun(stage: str, folder: Path) -> None:
    install_sbatch(folder)
    assert launch(stage, "--run_config", "run.yaml", "--output", "runs/tuned", "--gpus_per_node", "2") == 0
    assert f"-m finetune.cli {stage}" in (folder / "runs/tuned/launch/job.sbatch").read_text()


PROFILE = ("--job.profile", "site.yaml")


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("acount: a\n", PROFILE, "site.yaml: unknown key"),
        ("gpus_per_node: 4\n", PROFILE, "gpus_per_node: 8, expected at most the 4 of a node of site.yaml"),
        ("cpus_per_node: 4\n", PROFILE, "job.cpus_per_task: 8, expected at most the 4 of a node of site.yaml"),
        ("modules: ['a b']\n", PROFILE, "modules: 'a b', expected the name of a module"),
        ("environment: {A-B: c}\n", PROFILE, "environment: 'A-B', expected a name of letters"),
        ("partition: a b\n", PROFILE, "job.partition: 'a b', expected letters"),
        ("", ("--job.profile", "none.yaml"), "job.profile: none.yaml: no such file"),
        ("", ("--job.sbatch_options", '["--nodelist=n[1-3]"]'), "--nodelist=n[1-3]: 3 nodes, expected as many as nodes: 1"),
        ("", ("--job.sbatch_options", '["--nodelist=n[1-"]'), "node list 'n[1-': expected names such as n1,n[02-05]"),
        ("", ("--nodes", "2", "--job.sbatch_options", '["--nodelist=n1,n1"]'), "--nodelist=n1,n1: 1 nodes, expected as many as"),
        ("gpus_per_node: many\n", PROFILE, "site.yaml: gpus_per_node: Expected a int. Got value: many"),
        ("sbatch_options: --qos=a\n", PROFILE, "site.yaml: sbatch_options: Expected a tuple. Got value: --qos=a"),
        ("42\n", PROFILE, "site.yaml: expected a YAML mapping of account, partition"),
        ("a: [1\n", PROFILE, "site.yaml: not readable YAML"),
        ('"a\\nb": 1\n', PROFILE, r"site.yaml: unknown key 'a\nb', expected one of account"),
        ("modules: ['$(touch PWNED)']\n", PROFILE, "modules: '$(touch PWNED)', expected the name of a module"),
    ],
)
def test_a_bad_site_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, words: tuple[str, ...], message: str
) -> None:
    (folder / "site.yaml").write_text(text or "{}")
    assert launch("pretrain", *TRAIN, *words, "--print-only") == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.parametrize("site", sorted((ROOT / "configs/cluster/sites").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_sites_are_applied(site: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("pretrain", *TRAIN, "--gpus_per_node", "4", "--job.profile", str(site), "--print-only") == 0
    script = capsys.readouterr().out
    assert "\nexport NCCL_DEBUG=WARN\n" in script and "#SBATCH --partition=" in script


HOSTILE = "a b'\"$(touch PWNED)`touch PWNED`\n\x1b[2J\u202e"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--job.name", HOSTILE], r"""job.name: 'a b\'"$(touch PWNED)`touch PWNED`\n\x1b[2J\u202e', expected letters, digits"""),
        (["--job.name=-x"], "job.name: '-x', expected letters, digits and . _ + -, and none of . - in front"),
        (["--job.name=.."], "job.name: '..', expected letters, digits"),
        (["--job.name", "x" * 300], "job.name: 'xxxxxxxxxxxxxxxxxxxx'...: 300 bytes, expected at most 200"),
        (["--job.account=-x"], "job.account: '-x', expected letters, digits"),
        (["--job.log_folder", HOSTILE], "expected a path without spaces, quotes, backslashes and %, without #"),
        (["--job.log_folder=-logs"], "job.log_folder: '-logs', expected a path without spaces"),
        (["--job.log_folder=lo#gs"], "job.log_folder: 'lo#gs', expected a path without spaces"),
        (["--job.log_folder=run.yaml"], "job.log_folder: run.yaml: File exists, expected a folder that can be written and that"),
        (["--output=-x"], "output: '-x', expected a path that does not begin with - (write ./-x)"),
        (["--output=s3://b/run"], "output: 's3://b/run', expected a path on a file system that all nodes share"),
        (["--output=a\0b"], r"output: 'a\x00b', expected a path on a file system"),
        (["--output=pack.yaml"], "output: pack.yaml: not a folder, expected the run directory"),
        (["--run_config=-run.yaml"], "run_config: '-run.yaml', expected a path that does not begin with -"),
        (["--run_config", HOSTILE], r"touch PWNED` \x1b[2J\u202e: no such file, expected the config of the run to launch"),
        (["--job.sbatch_options", '["--comment=a#b"]'], "'--comment=a#b', expected one option such as --qos=long, without"),
        (["--job.environment", json.dumps({HOSTILE: "1"})], "expected a name of letters, digits and _"),
        (["--job.environment", json.dumps({"A": "a\0b"})], r"job.environment: A: 'a\x00b', expected text without NUL"),
        (["--after", "\u0661"], "after: '\u0661', expected job numbers such as 12 or 12:13"),
    ],
)
def test_a_name_that_cannot_be_used_is_one_line_and_leaves_nothing(
    words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install_sbatch(folder)
    before = sorted(folder.rglob("*"))
    assert launch("pretrain", *TRAIN, *words) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert message in captured.err and captured.err[:-1].isprintable()
    assert sorted(folder.rglob("*")) == before


def test_hostile_names_that_can_be_used_are_submitted_as_they_are(folder: Path) -> None:
    install_sbatch(folder)
    (folder / HOSTILE).write_text(RUN)
    words = ["--run_config", HOSTILE, "--output", f"runs {HOSTILE}", "--job.environment", json.dumps({"A": HOSTILE})]
    assert launch("pretrain", *words, "--job.name", "m\xf6s\xe9", "--job.log_folder", "l\xf6gs/$(touch${IFS}PWNED)") == 0
    assert RunDirectory(Path(f"runs {HOSTILE}")).launch.is_dir()
    assert not list(folder.rglob("PWNED"))


def test_a_refused_launch_leaves_the_run_directory_as_it_was(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Else the config of a launch that never ran would count as that of a run, and the mended one would be refused."""
    install_sbatch(folder, "#!/bin/sh\necho 'sbatch: error: invalid partition specified: nope' >&2\nexit 1\n")
    assert launch("pretrain", *TRAIN, "--job.partition", "nope") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (folder / "runs").exists()
    (folder / "tools/sbatch").write_text(SBATCH)
    assert launch("pretrain", *TRAIN) == 0
    frozen = RunDirectory(Path("runs/one")).launch
    before = {path: path.read_bytes() for path in frozen.iterdir()}
    install_squeue(folder, "")
    (folder / "run.yaml").write_text(RUN.replace("4", "8"))
    ranks = ("--nodes", "3", "--gpus_per_node", "2")
    assert launch("pretrain", *TRAIN, *ranks, "--replace-config") == 2
    assert {path: path.read_bytes() for path in frozen.iterdir()} == before


def test_a_folder_in_the_memory_of_this_machine_is_pointed_out() -> None:
    mounts = "/dev/sda1 / ext4 rw 0 0\ntmpfs /dev/shm tmpfs rw 0 0\nnas:/a /shared\\040disk nfs4 rw 0 0\n"
    found = [file_system_of(Path(path), mounts) for path in ("/dev/shm/logs", "/dev/shmx", "/shared disk/a", "/")]
    assert found == ["tmpfs", "ext4", "nfs4", "ext4"]

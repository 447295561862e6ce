"""A pipeline file: the chain it submits, what a second submission leaves out, and bad files, with stand-ins for SLURM."""

import json
from pathlib import Path

import pytest

from cluster import slurm
from cluster.cli import commands
from cluster.launch.pipeline import PipelineConfig, render_pipeline
from mose.command import run_command
from mose.config import load_config
from tests.cluster.launch.test_submit import SBATCH, STAGE

STEPS = [
    {"stage": "group", "job": {"run_config": "group.yaml", "job": {"name": "g"}}},
    {"stage": "pack", "job": {"pack_config": "pack.yaml", "job": {"name": "p"}}},
    {"stage": "pretrain", "job": {"run_config": "run.yaml", "output": "runs/one", "nodes": 2, "job": {"name": "t"}}},
    {"stage": "export", "job": {"run_config": "runs/one", "options": ["--output=out"], "job": {"name": "e"}}},
    {"stage": "evaluate", "name": "scores", "job": {"run_config": "run.yaml", "job": {"name": "s"}}},
]
TUNING = {"stage": "retrieval", "name": "tuning", "job": {"run_config": "run.yaml", "output": "runs/one", "job": {"name": "r"}}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "tools"))
    (tmp_path / "tools").mkdir()
    for name in ("mose-pretrain", "mose-finetune", "mose-data"):
        install(name, STAGE)
    install("sbatch", SBATCH)
    install("squeue", "#!/bin/sh\n")
    install("scancel", '#!/bin/sh\necho "$1" >> cancelled\n')
    (tmp_path / "run.yaml").write_text("max_steps: 30\n")
    (tmp_path / "pack.yaml").write_text("output: data/one\nnum_tasks: 3\n")
    (tmp_path / "group.yaml").write_text("output: data/grouped\n")
    write(STEPS)
    return tmp_path


def install(name: str, text: str) -> None:
    path = Path("tools", name)
    path.write_text(text)
    path.chmod(0o755)


def write(steps: list[dict[str, object]]) -> None:
    Path("pipeline.json").write_text(json.dumps({"name": "all", "steps": steps}))


def submit(*words: str) -> int:
    return run_command("mose-cluster", "Jobs.", commands(), ["pipeline", "--config", "pipeline.json", *words])


def dependencies() -> list[str]:
    calls = [json.loads(line) for line in Path("calls").read_text().splitlines()]
    return [next((word.partition("=")[2] for word in call if word.startswith("--dependency=")), "") for call in calls]


@pytest.mark.usefixtures("folder")
def test_each_step_waits_for_the_one_before(capsys: pytest.CaptureFixture[str]) -> None:
    assert submit() == 0
    expected = ["group: submitted job 41", "pack: submitted job 42 and 43", "pretrain: submitted job 44"]
    expected += ["export: submitted job 45", "scores: submitted job 46"]
    assert capsys.readouterr().out.splitlines() == expected
    assert dependencies() == ["", "afterok:41", "afterany:42", "afterok:43", "afterok:44", "afterok:45"]


@pytest.mark.usefixtures("folder")
def test_a_second_submission_goes_on_where_it_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    """The groups are done, packing is in the queue, and pre-training was cancelled with what came after it."""
    assert submit() == 0
    Path("logs/g.launch/done.json").write_text("{}")
    install("squeue", "#!/bin/sh\necho '42|RUNNING|None|n1'; echo '43|PENDING|Dependency|'\n")
    Path("calls").unlink()
    capsys.readouterr()
    assert submit() == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:3] == ["group: done", "pack: job 43 is in the queue", "pretrain: submitted job 41"]
    assert dependencies() == ["afterok:43", "afterok:41", "afterok:42"]


@pytest.mark.usefixtures("folder")
def test_a_step_that_sbatch_refuses_takes_the_others_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    refuses = "sys.exit('sbatch: error: no more jobs') if len(lines) == 3 else None\n"
    install("sbatch", SBATCH.replace('print(f"', f'{refuses}print(f"'))
    assert submit() == 2
    assert capsys.readouterr().err == "mose-cluster: error: sbatch: sbatch: error: no more jobs\n"
    assert Path("cancelled").read_text().split() == ["41", "42", "43"]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "steps: is empty, expected the stages"),
        ([{"stage": "dance", "job": {}}], "stage: 'dance', expected one of pretrain"),
        ([STEPS[0], STEPS[0]], "steps.name: 'group' stands twice"),
        ([{"stage": "group", "job": {"run_config": "none.yaml"}}], "steps.group: none.yaml: no such file"),
        ([{"stage": "group", "job": {"run_confg": "x"}}], "steps.group: "),
        ([*STEPS[:4], {"stage": "evaluate", "job": {}}], "steps.evaluate: run_config: not given"),
        ([STEPS[0], {**STEPS[4], "job": STEPS[0]["job"]}], "steps.scores: job.name: logs/g is that of step group"),
        ([STEPS[2], TUNING], "steps.tuning: output: runs/one is that of step pretrain"),
        ([{**STEPS[0], "name": "a\nb"}], r"steps.name: 'a\nb', expected letters, digits"),
        ([{**STEPS[0], "after": "scores"}, STEPS[4]], "Option 'after' is not accepted"),
    ],
)
def test_a_bad_file_is_one_line_and_submits_nothing(
    steps: list[dict[str, object]], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(steps)
    assert submit() == 2
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1
    assert not Path("calls").exists()


@pytest.mark.usefixtures("folder")
def test_print_only_shows_every_script(capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path().rglob("*"))
    assert submit("--print-only") == 0
    assert capsys.readouterr().out.count("#!/usr/bin/env bash") == 5
    assert sorted(Path().rglob("*")) == before


@pytest.mark.usefixtures("folder")
def test_a_chain_that_is_interrupted_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    submit_one = slurm.submit

    def interrupted(command: list[str]) -> str:
        if "logs/t.sbatch" in command:
            raise KeyboardInterrupt
        return submit_one(command)

    monkeypatch.setattr(slurm, "submit", interrupted)
    assert submit() == 130
    assert Path("cancelled").read_text().split() == ["41", "42", "43"]


def test_the_phases_of_the_example_of_near_duplicates_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    scripts = render_pipeline(load_config(PipelineConfig, Path("configs/cluster/dedup_pipeline.yaml")))
    phases = [script.split("--phase ")[1].split()[0] for name, script in scripts.items() if name != "dedup"]
    assert phases == ["signatures", "bands", "verify", "groups", "cut"]
    assert ["--array=0-511%64" in script for script in scripts.values()] == [True, True, True, False, True, False]

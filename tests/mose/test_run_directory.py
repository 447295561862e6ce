"""The run directory: names, a second run refused, metrics that a kill or a resume cannot spoil, versions, heartbeat."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mose.errors import MoseError
from mose.run_directory import RunDirectory, exit_scalar


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "runs" / "one")
    directory.create()
    return directory


def test_names_are_those_of_the_contract(run: RunDirectory) -> None:
    paths = (run.config, run.versions, run.metrics, run.tensorboard, run.heartbeat, run.checkpoint(100))
    names = [str(path.relative_to(run.path)) for path in paths]
    assert names == ["config.yaml", "versions.json", "metrics.jsonl", "tensorboard", "heartbeat.json", "checkpoints/step-000100"]
    assert exit_scalar("loss", 4, "mlm") == "loss/exit_04/mlm"


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "checkpoints"])
def test_a_run_is_not_overwritten_unless_resumed(run: RunDirectory, name: str) -> None:
    (run.path / name).mkdir() if name == "checkpoints" else (run.path / name).write_text("")
    with pytest.raises(MoseError, match=rf"holds another run \({name}\); expected a new directory, or resume"):
        run.create()
    run.create(resume=True)
    assert (run.path / name).exists()


def test_resume_of_a_new_directory_begins_a_run(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "new").create(resume=True)
    assert (tmp_path / "new").is_dir()


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(MoseError, match="is a file"):
        RunDirectory(tmp_path / "run").create(resume=True)


def test_metrics_come_back_in_order_and_bit_equal(run: RunDirectory) -> None:
    written = [{"step": step, "loss/total": 1 / (step + 1), "consumed_tokens": 7 * step} for step in range(5)]
    for values in written:
        run.append_metrics(values)
    assert run.read_metrics() == written


def test_each_line_is_strict_json_and_a_value_that_is_not_finite_is_null(run: RunDirectory) -> None:
    run.append_metrics({"loss/total": float("nan"), "optimizer/gradient_norm": float("inf"), "step": 3})
    assert run.metrics.read_text() == '{"step": 3, "loss/total": null, "optimizer/gradient_norm": null}\n'


def test_resumed_metrics_equal_those_of_an_uninterrupted_run(run: RunDirectory, tmp_path: Path) -> None:
    whole = RunDirectory(tmp_path / "whole")
    whole.create()
    for step in range(1, 11):
        whole.append_metrics({"step": step, "loss/total": 0.1 * step})
    for step in range(1, 8):
        run.append_metrics({"step": step, "loss/total": 0.1 * step})
    with run.metrics.open("a") as file:
        file.write('{"step": 8, "loss/to')
    assert [values["step"] for values in run.read_metrics()] == list(range(1, 8))
    run.trim(5)
    for step in range(6, 11):
        run.append_metrics({"step": step, "loss/total": 0.1 * step})
    assert run.metrics.read_bytes() == whole.metrics.read_bytes()


def test_trimming_nothing_is_harmless(run: RunDirectory) -> None:
    run.trim(0)
    assert run.read_metrics() == []
    assert not run.metrics.exists()


@pytest.mark.parametrize("line", ["not json", "[1]", '{"loss/total": 1}', '{"step": "three"}'])
def test_a_damaged_line_is_named(run: RunDirectory, line: str) -> None:
    run.metrics.write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(MoseError, match=r"metrics\.jsonl: line 2: expected a JSON object"):
        run.read_metrics()


def test_versions_name_what_numbers_depend_on(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    run.write_versions(attention_backend="sdpa")
    values = json.loads(run.versions.read_text())
    assert values["attention_backend"] == "sdpa"
    assert values["omp_num_threads"] == "3"
    assert values["python"] == ".".join(str(part) for part in sys.version_info[:3])
    assert set(values["packages"]) >= {"torch", "deepspeed", "megatron-core", "transformers", "numpy"}
    assert values["packages"]["numpy"] is not None


def test_heartbeat_is_replaced_whole(run: RunDirectory) -> None:
    run.write_heartbeat(4)
    run.write_heartbeat(5, status="training")
    values = json.loads(run.heartbeat.read_text())
    assert (values["step"], values["status"], values["process_id"]) == (5, "training", os.getpid())
    assert [path.name for path in run.path.iterdir()] == ["heartbeat.json"]


def test_does_not_load_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from mose.run_directory import RunDirectory; "
        "run = RunDirectory(Path(sys.argv[1])); run.create(); run.write_versions(); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "run")], check=True)
    assert json.loads((tmp_path / "run" / "versions.json").read_text())["torch_threads"] is None


def test_a_link_to_nothing_is_named_and_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "unmounted")
    for take in (RunDirectory(tmp_path / "run").create, RunDirectory(tmp_path / "run").hold):
        with pytest.raises(MoseError, match="run: is a link to .*unmounted, which is not there; expected it mounted"):
            take()
    assert not (tmp_path / "unmounted").exists()


def test_a_full_disk_is_told_with_the_file(run: RunDirectory) -> None:
    run.metrics.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: .*metrics\.jsonl"):
        run.append_metrics({"step": 1})


def test_the_record_of_the_newest_checkpoint(run: RunDirectory) -> None:
    assert run.read_saved() == (False, None)
    run.write_saved(None)
    assert run.read_saved() == (True, None)
    run.write_saved("step-000004")
    assert run.read_saved() == (True, "step-000004")

"""Chains of dependent jobs with real stages on a real SLURM: pack, merge, train; a pipeline file from `group` to `evaluate`.

With MOSE_CHAIN_RESULTS=FILE in the environment, what the jobs did is written there as JSON.
"""

import dataclasses
import datetime
import itertools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep.execution.pack import pack_dataset
from data_prep.sources.registry import SourcesConfig
from mose.config import save_config
from mose.dataset.manifest import read_manifest
from mose.dataset.pairs import Pair, write_pairs
from mose.files.atomic_file import write_json
from tests.cluster.drills.launched import ends, lasting, launch, log_of, starts, step_of
from tests.cluster.drills.traces import check_rows, files_of_last_checkpoint, install_trainer
from tests.cluster.private_slurm import PrivateSlurm, wait_for
from tests.data_prep.repositories import SEQUENCE_LENGTH, VOCABULARY_SIZE, checksums, made_text, make_config
from tests.data_prep.stack_rows import Row, stack_file, write_repositories
from tests.datasets import make_dataset, make_tokenizer
from tests.pretrain.cells import tiny_config

pytestmark = pytest.mark.soak

RESULTS = "MOSE_CHAIN_RESULTS"
ALLOCATION = {"time_limit": "30", "cpus_per_task": 1}
OPTIONS = ["--intervals.log_every_steps=1", "--intervals.checkpoint_every_steps=10", "--intervals.heartbeat_seconds=1"]
STEPS = 40
TABLES, REPOSITORIES = 2, 24


def run_cluster(*words: str) -> str:
    """`mose-cluster WORDS`; returns what it printed."""
    done = subprocess.run([sys.executable, "-m", "cluster.cli", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def note_results(name: str, facts: dict[str, Any]) -> None:
    """Add what one chain did to the file of results, if there is one."""
    if RESULTS not in os.environ:
        return
    path = Path(os.environ[RESULTS])
    hardware = f"three virtual nodes of one machine, {os.cpu_count()} cores, {platform.machine()}"
    head = {"date": datetime.date.today().isoformat(), "hardware": hardware, "seeds": [3]}
    history = [{"cause": one.cause, "first_step": one.first_step, "nodes": one.nodes} for one in starts("run")]
    known = json.loads(path.read_text()) if path.exists() else {}
    write_json(path, {**known, **head, name: {**facts, "starts": history}})


def write_run_config(folder: Path, dataset: Path, steps: int) -> Path:
    """A tiny run on a data set that another job has yet to write."""
    shape = make_dataset(folder / "shape", sequence_length=SEQUENCE_LENGTH, vocabulary_size=VOCABULARY_SIZE)
    config = tiny_config(shape, micro_batch_rows=2)
    config = dataclasses.replace(config, max_steps=steps, data=dataclasses.replace(config.data, dataset=str(dataset)))
    save_config(config, folder / "run.yaml")
    return folder / "run.yaml"


def test_pack_array_merge_and_training_as_one_chain(folder: Path, slurm: PrivateSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """All three are queued before the first runs; the training is warned in mid-step, queued again, and ends as undisturbed."""
    install_trainer(folder, monkeypatch)
    config = make_config(folder, num_tasks=3)
    save_config(config, folder / "pack.yaml")
    run_config = write_run_config(folder, Path(config.output), STEPS)
    Path("pack.json").write_text(json.dumps({"pack_config": "pack.yaml", "job": {**ALLOCATION, "name": "pack"}}))
    said = run_cluster("launch", "pack", "--config", "pack.json").split()
    array, merge = said[2], said[6]
    Path("run.faults.json").write_text(json.dumps([{"rank": 1, "step": 15, "kind": "hold"}]))
    layout = {"nodes": 2, "ranks_per_node": 1, "options": OPTIONS, "launcher": "deepspeed"}
    number = launch("pretrain", run_config, "run", "--after", merge, **layout)
    assert slurm.job(number)["JobState"] == "PENDING"
    wait_for((folder / "run.fault-0").exists, f"step 16: {log_of(number)}", 500)
    assert slurm.job(array)["JobState"] == slurm.job(merge)["JobState"] == "COMPLETED"
    slurm.call("scancel", "--signal=USR1", "--batch", number)
    ends(slurm, number)
    assert [start.cause for start in starts("run")] == ["stopped", "finished"]
    assert starts("run")[0].last_step == starts("run")[1].first_step == 16
    ends(slurm, launch("pretrain", run_config, "calm", **layout))
    check_rows("run", STEPS, read_manifest(Path(config.output)).rows("train"))
    assert lasting("run") == lasting("calm")
    assert files_of_last_checkpoint("run") == files_of_last_checkpoint("calm")
    apart = dataclasses.replace(config, output=str(folder / "apart"))
    pack_dataset(apart)
    assert checksums(Path(config.output)) == checksums(folder / "apart")
    equal = ["row ids of every step", "metrics", "files of the last checkpoint", "files of the data set packed apart"]
    note_results("pack, merge, training", {"jobs": [array, merge, number], "steps": STEPS, "equal": equal})


def write_inputs(folder: Path) -> None:
    """Tables of The Stack v2 with contents, a tokenizer, pairs of texts and code, and the configs of all stages."""
    for table in range(TABLES):
        rows: list[Row] = []
        for number in range(table, REPOSITORIES, TABLES):
            files = [stack_file(f"/file_{file}.py", made_text(10 + 5 * file, f"{number}.{file}")) for file in range(4)]
            rows.append((f"owner/repository-{number:02d}", files))
        write_repositories(folder / f"table-{table}.parquet", rows, with_content=True)
    make_tokenizer(folder / "tokenizer", VOCABULARY_SIZE)
    pairs = [
        Pair(f"return the value number {n}", f"def f_{n}(x):\n    return {n}", "Python", repository=f"r{n % 6}", split=split)
        for n, split in zip(range(48), itertools.cycle(("train", "train", "held_out")), strict=False)
    ]
    write_pairs(folder / "pairs.parquet", pairs)
    write_run_config(folder, folder / "data", STEPS)
    pack = make_config(folder, output=str(folder / "data"), sources=SourcesConfig(stack_v2=(str(folder / "grouped"),)))
    save_config(pack, folder / "pack.yaml")
    for name, values in _stage_configs(folder).items():
        (folder / f"{name}.yaml").write_text(json.dumps(values))


def _stage_configs(folder: Path) -> dict[str, dict[str, Any]]:
    columns = ["blob_id", "path", "language", "length_bytes", "detected_licenses", "license_type", "src_encoding", "content"]
    scored = {"pairs": "pairs.parquet", "max_length": 64, "device": "cpu"}
    return {
        "group": {"inputs": [str(folder / "table-*.parquet")], "output": "grouped", "num_parts": 4, "file_columns": columns},
        "retrieval": {**scored, "checkpoint": "exported", "output": "tuned", "steps": 6, "batch_pairs": 8, "log_every_steps": 2},
        "evaluate": {**scored, "checkpoint": "tuned/checkpoint", "output": "scores"},
    }


def pipeline_steps() -> Iterator[dict[str, Any]]:
    """The steps of configs/cluster/pipeline.yaml in small."""

    def step(stage: str, **job: Any) -> dict[str, Any]:
        return {"stage": stage, "job": {**job, "job": {**ALLOCATION, "name": stage}}}

    yield step("group", run_config="group.yaml")
    yield step("pack", pack_config="pack.yaml")
    # Virtual nodes share the cores of one machine, so any of them may measure slow.
    layout = {"gpus_per_node": 0, "ranks_per_node": 1, "preflight": {"enabled": False}}
    yield step("pretrain", run_config="run.yaml", output="run", nodes=2, options=OPTIONS, **layout)
    yield step("export", run_config="run", options=["--output=exported"])
    yield step("retrieval", run_config="retrieval.yaml", output="tuned", nodes=1, **layout)
    yield step("evaluate", run_config="evaluate.yaml")


def submit() -> dict[str, str]:
    """Submit the pipeline; what it did about each step."""
    lines = run_cluster("pipeline", "--config", "pipeline.json").splitlines()
    return {name: message for name, _, message in (line.partition(": ") for line in lines)}


def test_a_pipeline_from_group_to_evaluate_goes_on_after_a_cancelled_step(folder: Path, slurm: PrivateSlurm) -> None:
    """The training is cancelled in its middle, with all that depend on it; the second submission leaves out what is done."""
    write_inputs(folder)
    Path("pipeline.json").write_text(json.dumps({"name": "small", "steps": list(pipeline_steps())}))
    first = submit()
    assert all(message.startswith("submitted job ") for message in first.values()) and len(first) == 6
    jobs = {name: message.split()[-1] for name, message in first.items()}
    wait_for(lambda: step_of("run") >= 12, f"step 12: {_log('pretrain', jobs)}", 580)
    slurm.call("scancel", jobs["pretrain"])
    for name in ("pretrain", "export", "retrieval", "evaluate"):
        slurm.wait_state(jobs[name], "CANCELLED")
    second = submit()
    assert second["group"] == second["pack"] == "done"
    assert all(second[name].startswith("submitted job ") for name in ("pretrain", "export", "retrieval", "evaluate"))
    jobs |= {name: message.split()[-1] for name, message in second.items() if message != "done"}
    for name, number in jobs.items():
        state = slurm.wait_state(number, "COMPLETED", "FAILED", "CANCELLED")["JobState"]
        assert state == "COMPLETED", f"{name}: {_log(name, jobs)}"
    third = submit()
    assert set(third.values()) == {"done"}
    causes = [(start.cause, start.first_step) for start in starts("run")]
    assert [cause for cause, _ in causes] == ["cancelled", "finished"] and causes[1][1] >= 10
    assert [line["step"] for line in lasting("run") if "loss/total" in line] == list(range(1, STEPS + 1))
    assert read_manifest(Path("data")).rows("train") > 0
    assert "mrr" in Path("scores/evaluation.json").read_text()
    note_results("pipeline", {"first submission": first, "second submission": second, "third submission": third})


def _log(name: str, jobs: dict[str, str]) -> str:
    path = Path(f"logs/{name}-{jobs[name]}.log")
    return path.read_text(errors="replace")[-4000:] if path.exists() else "no log"

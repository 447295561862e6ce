"""No writer loses a finished file to a power cut: bytes are flushed before the rename, the folder after it; faults are planted.

Every other test kills processes, which loses nothing that the kernel holds: a writer without fsync passes them all.
"""

import ast
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from data_prep.execution.pack import pack_dataset
from data_prep.sources.blobs.store import BODY
from data_prep.sources.ingest.blob_writer import BlobWriter
from data_prep.sources.ingest.grouping.bucket_file import BucketWriter, save_batches
from data_prep.sources.ingest.grouping.columns import KEY
from data_prep.tools.removal.command import remove
from data_prep.tools.removal.removal_list import RemovalList
from mose.dataset.pairs import write_pairs
from mose.files import atomic_file
from mose.files.atomic_file import atomic_folder, atomic_write, publish_folder, write_json, write_text
from mose.run_directory import RunDirectory
from mose.tokenizer import load_tokenizer
from pretrain.checkpoints import store as checkpoint_store
from pretrain.checkpoints.run_state import Progress
from pretrain.checkpoints.store import CheckpointStore
from pretrain.config.run import Layout
from pretrain.parallel.context import ParallelContext
from tests.data_prep.repositories import make_config
from tests.datasets import make_tokenizer
from tests.durability import DiskRecord

ROOT = Path(__file__).parents[1]


def no_lasting_file(path: Path) -> bool:
    """Leases, locks and what a writer has not finished: a power cut ends the process, and then they mean nothing."""
    return ".running.json" in path.name or "lock" in path.name


class FakeEngine:
    """Writes parts as torch does: without any fsync."""

    def save(self, folder: Path) -> list[Path]:
        state = folder / "state"
        state.mkdir()
        torch.save({"weight": torch.ones(3)}, state / "mp_rank_00_model_states.pt")
        torch.save({"moment": torch.ones(3)}, state / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
        return list(state.iterdir())


def save_checkpoint(folder: Path) -> None:
    context = ParallelContext(0, 0, 0, Layout(1, 1, 1, 1), torch.device("cpu"), None, None)
    store = CheckpointStore(folder / "checkpoints", context, {"seed": 1})
    engine: Any = FakeEngine()
    for step in (2, 4):
        store.save(engine, Progress(step, 8, 100), {"inputs": torch.ones(2)})


def write_a_file(folder: Path) -> None:
    with atomic_write(folder / "deep" / "file") as file:
        file.write(b"x" * 100_000)
        file.write(b"y")
    write_text(folder / "text", "t")
    write_json(folder / "json", {"a": 1})


def write_a_folder(folder: Path) -> None:
    with atomic_folder(folder / "whole") as temporary:
        (temporary / "inner" / "empty").mkdir(parents=True)
        (temporary / "inner" / "file").write_text("x")
        (temporary / "other").write_text("y")
    (folder / "made").mkdir()
    (folder / "made" / "file").write_text("z")
    publish_folder(folder / "made", folder / "published")


def start_a_run(folder: Path) -> None:
    run = RunDirectory(folder / "run")
    run.create()
    run.write_versions()
    run.metrics.write_text('{"step": 1}\n{"step": 2}\n')
    run.trim(1)
    run.write_heartbeat(1)


def fetch_blobs(folder: Path) -> None:
    with BlobWriter(folder / "store", 0, pack_bytes=300) as writer:
        for number in range(8):
            writer.add(bytes([number] * 20), BODY, 0, 100, bytes(100))


def group_rows(folder: Path) -> None:
    """Rows partitioned into buckets, then the list by which a rerun knows that they are complete."""
    rows = pa.table({KEY: ["a", "b"] * 5})
    with BucketWriter(folder / "rows.arrow", rows.schema, lambda table: np.zeros(len(table), np.int64), 1 << 20) as writer:
        writer.add(rows)
        batches = writer.close()
    save_batches(folder / "rows.json", batches, {})


def copy_the_tokenizer(folder: Path) -> None:
    make_tokenizer(folder / "tokenizer", 300)
    (folder / "run").mkdir()
    load_tokenizer(folder / "tokenizer").copy_to(folder / "run")
    shutil.rmtree(folder / "tokenizer")


def write_some_pairs(folder: Path) -> None:
    write_pairs(folder / "pairs.parquet", [])


def prepare_pack(folder: Path) -> Callable[[Path], None]:
    config = make_config(folder, 8, num_tasks=2, num_workers=1)
    return lambda folder: pack_dataset(config)


WRITERS: dict[str, Callable[[Path], None]] = {
    "file": write_a_file,
    "folder": write_a_folder,
    "run directory": start_a_run,
    "checkpoint": save_checkpoint,
    "blobs": fetch_blobs,
    "buckets": group_rows,
    "tokenizer": copy_the_tokenizer,
    "pairs": write_some_pairs,
}


def faults_of(writer: Callable[[Path], None], folder: Path, patch: pytest.MonkeyPatch) -> list[str]:
    record = DiskRecord(patch, no_lasting_file)
    writer(folder)
    # The folder that holds everything belongs to the user.
    record._flushed(folder)
    return record.faults + list(record.lost(folder))


@pytest.mark.parametrize("name", WRITERS)
def test_what_a_writer_has_finished_outlives_a_power_cut(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert faults_of(WRITERS[name], tmp_path, monkeypatch) == []


def test_a_packed_data_set_outlives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = prepare_pack(tmp_path)
    record = DiskRecord(monkeypatch, no_lasting_file)
    writer(tmp_path)
    assert record.faults + list(record.lost(tmp_path / "dataset")) == []
    remove(tmp_path / "dataset", RemovalList((), ("repository-03",)))
    assert record.faults + list(record.lost(tmp_path / "dataset")) == []


def nothing(*_: Any) -> None:
    """In place of a flush."""


# What is taken away, in which writer, and what the record must say.
PLANTED = {
    "fsync of a file": (atomic_file.os, "fsync", "file", "is not on the disk"),
    "fsync of the folder after the rename": (atomic_file, "sync_folder", "file", "the entry text of"),
    "fsync of a folder's files": (atomic_file, "sync_file", "folder", "file is not on the disk"),
    "fsync of a checkpoint's parts": (checkpoint_store, "sync_file", "checkpoint", "_optim_states.pt is not on the disk"),
    "fsync of a pack of blobs": (atomic_file.os, "fsync", "blobs", "pack-000000"),
    "fsync of a bucket file": (atomic_file.os, "fsync", "buckets", "rows.arrow is not on the disk"),
    "fsync of a run's tokenizer": (atomic_file.os, "fsync", "tokenizer", "tokenizer.model is not on the disk"),
    "fsync of a checkpoint's folders": (checkpoint_store, "sync_folder", "checkpoint", "of state is not on the disk"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_flush_that_is_taken_away_is_noticed(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, writer, expected = PLANTED[fault]
    record = DiskRecord(monkeypatch, no_lasting_file)
    monkeypatch.setattr(owner, name, nothing)
    WRITERS[writer](tmp_path)
    assert any(expected in found for found in record.faults + list(record.lost(tmp_path)))


def test_the_calls_come_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = DiskRecord(monkeypatch)
    save_checkpoint(tmp_path)
    names = [name for kind, name in record.calls if kind == "rename"]
    assert names == ["step-000002", "step-000004"]
    first = record.calls.index(("rename", "step-000002"))
    before, after = record.calls[:first], record.calls[first + 1 :]
    parts = ["mp_rank_00_model_states.pt", "probe.safetensors", "zero_pp_rank_0_mp_rank_00_optim_states.pt"]
    assert sorted(name for kind, name in before if kind == "fsync" and name in parts) == sorted(parts)
    assert before.index(("replace", "manifest.json")) > max(before.index(("fsync", part)) for part in parts)
    assert after[0] == ("fsync", "checkpoints")
    assert next(name for kind, name in after if kind == "replace") == "latest"


IN_A_FOLDER = "into a folder of `atomic_folder`, which flushes all of it"
INTO_A_FILE = "draws into memory or into a file of `atomic_write`"
# Modules that write or rename files by themselves: who flushes them, or why a power cut may take what they wrote.
WRITES = {
    "mose/files/atomic_file.py": "the writer itself",
    "mose/checkpoint/converted_checkpoint.py": IN_A_FOLDER,
    "mose/checkpoint/exit_selection.py": IN_A_FOLDER,
    "mose/checkpoint/model_card.py": IN_A_FOLDER,
    "mose/checkpoint/published_checkpoint.py": IN_A_FOLDER,
    "mose/run_directory.py": "appends to the metrics: what a power cut takes is written again after the resume",
    "mose/tokenizer.py": "a copy in a temporary folder, to open it",
    "data_prep/execution/inputs.py": "a copy in a temporary folder, to open it",
    "mose/files/lock.py": "a power cut ends the process that holds the lock",
    "data_prep/sources/ingest/blob_writer.py": "flushed every few seconds and before the index (tested here)",
    "data_prep/sources/ingest/grouping/bucket_file.py": "flushed before the list of its batches (tested here)",
    "data_prep/sources/git_objects.py": "an empty repository in a temporary folder, for one run of git",
    "data_prep/pipeline/duplicates.py": "buckets of a sort, in a temporary folder",
    "data_prep/tools/stats/drawing.py": INTO_A_FILE,
    "pretrain/analysis/plot.py": INTO_A_FILE,
    "finetune/evaluation/report/charts.py": INTO_A_FILE,
    "finetune/evaluation/report/picture.py": INTO_A_FILE,
    "finetune/evaluation/benchmark/figures.py": INTO_A_FILE,
    "pretrain/storage/node_labels.py": "a table in shared memory, which a power cut takes with the processes that use it",
    "finetune/checkpoints.py": "into a folder that atomic_folder flushes; a damaged checkpoint is set aside",
    "pretrain/checkpoints/signature.py": "a key that is flushed before it gets its name",
    "pretrain/checkpoints/store.py": "flushes every part (tested here)",
    "cluster/supervise/history.py": "appends: a start whose end a power cut takes counts as lost, which it was",
    "cluster/supervise/supervisor.py": "renames the stacks of a hang, for people; without them the run comes back all the same",
    "cluster/status/show.py": "appends to a log for people, where the user names one",
    "pretrain/monitoring/stacks.py": "a file that a rank writes into when it hangs, for people",
    "pretrain/monitoring/profiler.py": "a trace that a rerun records again",
}
CALLS = {"write_text", "write_bytes", "copyfile", "copy", "copytree", "save_file", "savefig", "rename", "replace", "link"}


def plain_writes(tree: ast.Module) -> list[str]:
    """Calls that write or rename files by themselves."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        words = [word.value for word in node.args if isinstance(word, ast.Constant) and isinstance(word.value, str)]
        opens = node.func.attr == "open" and any(set(word) & set("wax+") and len(word) <= 3 for word in words)
        strings = node.func.attr in ("replace", "copy") and (len(node.args) != 1 or bool(node.keywords))
        if opens or (node.func.attr in CALLS and not strings):
            found.append(ast.unparse(node))
    return found


def test_every_file_that_writes_by_itself_is_known() -> None:
    packages = ("mose", "data_prep", "pretrain", "finetune", "cluster")
    paths = sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))
    writing = {str(path.relative_to(ROOT)): plain_writes(ast.parse(path.read_text("utf-8"))) for path in paths}
    assert {path: calls for path, calls in writing.items() if calls and path not in WRITES} == {}
    assert [path for path in WRITES if not writing.get(path)] == []

"""Covers training checkpoints: what is kept, what `latest` names, how a damaged one is passed over, and what may change.

The user pains it stands for: "half-written or corrupted checkpoints", "0-byte shards", "a changed config resumes silently"
and "resume silently starts over".
"""

import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mose.config import load_config
from mose.dataset.manifest import read_manifest, write_manifest
from mose.errors import MoseError
from pretrain.checkpoints.files import (
    checkpoint_folders,
    latest_checkpoint,
    manifest_fingerprint,
    read_checkpoint_manifest,
    step_of,
)
from pretrain.checkpoints.run_state import Progress
from pretrain.checkpoints.store import CheckpointStore, ResumeRequest
from pretrain.config.identity import check_changes, config_values
from pretrain.config.run import DataConfig, IntervalConfig, Layout, OptimizerConfig, ParallelConfig, PretrainConfig
from pretrain.parallel.context import ParallelContext
from tests.pretrain.forked import Trouble, refuses, run_forked, succeeds


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


def train(run: Path, *more: object) -> tuple[object, ...]:
    return ("train", "--config", run / "config.yaml", "--output", run, "--max_steps", 8, *more)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def logged_steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines() if "loss/total" in line]


def test_layout_of_a_checkpoint(finished_run: Path) -> None:
    latest = latest_checkpoint(finished_run / "checkpoints")
    assert latest is not None
    assert step_of(latest) == 6
    manifest = read_checkpoint_manifest(latest)
    assert manifest["progress"]["step"] == 6
    assert manifest["progress"]["consumed_rows"] == 6 * 8
    on_disk = {path.relative_to(latest).as_posix(): path.stat().st_size for path in latest.rglob("*") if path.is_file()}
    on_disk.pop("manifest.json")
    assert on_disk == manifest["sizes"]
    assert on_disk.keys() == manifest["files"].keys()
    assert [path.name for path in (finished_run / "checkpoints").glob(".*")] == []


def corrupt(checkpoint: Path) -> str:
    part = next((checkpoint / "state").glob("zero_pp_rank_0*"))
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    return f"state/{part.name} differs from its checksum"


def truncate(checkpoint: Path) -> str:
    part = checkpoint / "state" / "mp_rank_00_model_states.pt"
    part.write_bytes(part.read_bytes()[:-1])
    return "state/mp_rank_00_model_states.pt has"


def empty(checkpoint: Path) -> str:
    (checkpoint / "state" / "mp_rank_00_model_states.pt").write_bytes(b"")
    return "state/mp_rank_00_model_states.pt has 0 bytes"


def lose_a_part(checkpoint: Path) -> str:
    (checkpoint / "state" / "mp_rank_00_model_states.pt").unlink()
    return "state/mp_rank_00_model_states.pt is missing"


def lose_the_manifest(checkpoint: Path) -> str:
    (checkpoint / "manifest.json").unlink()
    return "manifest.json: no such file; expected a complete checkpoint"


def halve_the_manifest(checkpoint: Path) -> str:
    path = checkpoint / "manifest.json"
    path.write_text(path.read_text()[: path.stat().st_size // 2])
    return "manifest.json: not JSON"


def edit_the_manifest(checkpoint: Path) -> str:
    path = checkpoint / "manifest.json"
    path.write_text(path.read_text().replace('"step": 6', '"step": 5'))
    return "manifest.json: fingerprint: does not fit"


DAMAGES = [corrupt, truncate, empty, lose_a_part, lose_the_manifest, halve_the_manifest, edit_the_manifest]


def store_in(folder: Path, ranks: int = 1, **changes: Any) -> CheckpointStore:
    context = ParallelContext(0, 0, 0, Layout(ranks, 1, ranks, 1), torch.device("cpu"), None, None)
    return CheckpointStore(folder, context, identity(**changes))


def identity(**changes: Any) -> dict[str, Any]:
    return config_values(PretrainConfig(**changes), "data", 1)


class WritingEngine:
    """Stands in for the engine where only files matter: writes the parts of this many ranks."""

    def __init__(self, parts: int = 1, num_bytes: int = 10):
        self._parts, self._num_bytes = parts, num_bytes

    def save(self, folder: Path) -> list[Path]:
        (folder / "state").mkdir()
        (folder / "state" / "mp_rank_00_model_states.pt").write_bytes(b"m" * self._num_bytes)
        for rank in range(self._parts):
            (folder / "state" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").write_bytes(b"o" * self._num_bytes)
        return list((folder / "state").iterdir())


def save_steps(folder: Path, *steps: int, **changes: Any) -> CheckpointStore:
    store = store_in(folder, **changes)
    for step in steps:
        store.save(WritingEngine(), Progress(step, step * 8, step * 100))  # type: ignore[arg-type]
    return store


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_newest_is_named_and_the_one_before_is_taken(
    damage: Callable[[Path], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_steps(tmp_path, 2, 4, 6)
    fault = damage(tmp_path / "step-000006")
    store = store_in(tmp_path)
    selection = store.select(ResumeRequest())
    message = capsys.readouterr().err
    assert selection is not None
    assert selection.progress == Progress(4, 32, 400)
    assert message.startswith("warning: ")
    assert message.count("\n") == 1
    assert "step-000006" in message
    assert fault in message
    with pytest.raises(MoseError, match="step-000006") as refusal:
        store.select(ResumeRequest("6"))
    assert fault in str(refusal.value)


def test_no_whole_checkpoint_is_refused_instead_of_silently_starting_over(tmp_path: Path) -> None:
    save_steps(tmp_path, 2, 4)
    for step in (2, 4):
        truncate(tmp_path / f"step-00000{step}")
    with pytest.raises(MoseError, match="none of step-000004, step-000002 is whole; expected one, or a new run directory"):
        store_in(tmp_path).select(ResumeRequest())


def test_nothing_there_begins_anew_and_a_step_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert store_in(tmp_path).select(ResumeRequest()) is None
    save_steps(tmp_path, 2, 4)
    with pytest.raises(MoseError, match="holds no step-000003; it holds step-000002, step-000004"):
        store_in(tmp_path).select(ResumeRequest("3"))
    with pytest.raises(MoseError, match="--resume: 'yes', expected auto, never or the step"):
        ResumeRequest("yes")


def test_damaged_newest_is_set_aside_and_training_goes_on_from_the_one_before(run: Path) -> None:
    corrupt(run / "checkpoints" / "step-000006")
    (run / "checkpoints" / ".step-000008.partial").mkdir()  # what a kill in the middle of saving leaves
    shown = succeeds(*train(run))
    assert "step-000006: state/zero_pp_rank_0_mp_rank_00_optim_states.pt differs from its checksum" in shown.replace("/run/", "")
    assert names(run) == ["damaged-step-000006", "latest", "step-000004", "step-000006", "step-000008"]
    assert logged_steps(run) == list(range(1, 9))
    listed = run_forked("checkpoints", run, "--check")
    assert listed.code == 1
    assert listed.output.count("whole") == 3
    assert "damaged-step-000006: state/zero_pp_rank_0_mp_rank_00_optim_states.pt differs" in listed.output


def test_going_back_to_a_step_keeps_what_was_newer_under_another_name(run: Path) -> None:
    before = (run / "metrics.jsonl").read_text()
    succeeds(*train(run, "--resume", 2))
    assert names(run)[:2] == ["abandoned-step-000004", "abandoned-step-000006"]
    assert (run / "checkpoints" / "latest").read_text() == "step-000008\n"
    assert logged_steps(run) == list(range(1, 9))
    losses = [
        json.loads(line).get("loss/total") for text in (before, (run / "metrics.jsonl").read_text()) for line in text.splitlines()
    ]
    assert losses[:6] == losses[7:13]  # the same course again; the seventh line validates


def test_never_refuses_an_existing_run_and_begins_a_new_one(run: Path, tmp_path: Path) -> None:
    assert "holds another run (config.yaml, metrics.jsonl, checkpoints)" in refuses(*train(run, "--resume", "never"))
    words = ("train", "--config", run / "config.yaml", "--output", tmp_path / "new", "--max_steps", 1, "--resume", "never")
    succeeds(*words)
    assert names(tmp_path / "new") == ["latest", "step-000001"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--model.width", 64), "model.width = 32, this run has 64; the stored tensors cannot be resumed so"),
        (("--seed", 4), "seed = 3, this run has 4; a run resumes with the config it began with, or with --allow-change seed"),
        (("--seed", 4, "--allow-change", "sed"), "--allow-change sed: no such field; expected a dotted name"),
    ],
)
def test_checkpoint_of_another_config_is_refused_by_field_and_changes_nothing(
    change: tuple[object, ...], message: str, run: Path
) -> None:
    before, config = names(run), (run / "config.yaml").read_bytes()
    assert message in refuses(*train(run, *change))
    assert names(run) == before
    assert (run / "config.yaml").read_bytes() == config


def test_an_allowed_change_is_recorded(run: Path) -> None:
    succeeds(*train(run, "--seed", 4, "--allow-change", "seed", "--allow-change", "optimizer.beta1"))
    (line,) = [json.loads(text) for text in (run / "changes.jsonl").read_text().splitlines()]
    assert {name: line[name] for name in ("step", "field", "was", "now", "kind")} == {
        "step": 6,
        "field": "seed",
        "was": 3,
        "now": 4,
        "kind": "allowed",
    }
    assert load_config(PretrainConfig, run / "config.yaml").seed == 4
    # The next start has the changed config as its own, and needs no flag.
    assert "already at step 8 of 8" in succeeds(*train(run, "--seed", 4))


def test_another_micro_batch_goes_on_and_says_so(run: Path) -> None:
    succeeds(*train(run, "--batch.micro_batch_rows", 4))
    (line,) = [json.loads(text) for text in (run / "changes.jsonl").read_text().splitlines()]
    assert (line["field"], line["kind"]) == ("batch.micro_batch_rows", "layout")
    assert logged_steps(run) == list(range(1, 9))


def test_a_run_goes_on_after_a_removal_and_says_so(run: Path, dataset: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(dataset, tmp_path / "removed"))
    manifest = read_manifest(moved)
    first, *others = manifest.splits["train"]
    # What a removal leaves in the manifest; here no row of the shard loses anything.
    changed = dataclasses.replace(
        manifest, splits={**manifest.splits, "train": (dataclasses.replace(first, lineage_sha256="f" * 64), *others)}
    )
    write_manifest(moved, dataclasses.replace(changed, generations=(manifest.content_root, changed.content_root)))
    output = succeeds(*train(run, "--data.dataset", moved))
    assert "made with data.generations = generation 1" in output
    assert "this run has generation 2" in output
    (line,) = [json.loads(text) for text in (run / "changes.jsonl").read_text().splitlines()]
    assert (line["field"], line["kind"]) == ("data.generations", "generation")
    assert line["now"] == [[manifest.content_root, changed.content_root]]
    # Another content that is no successor: the first generation again, after a step on the second.
    assert "or with --allow-change data.generations" in refuses(*train(run, "--data.dataset", dataset, "--max_steps", 9))


def test_identity_leaves_out_what_changes_no_number() -> None:
    assert identity() == identity(output="elsewhere", max_steps=7, intervals=IntervalConfig(log_every_steps=3))
    assert identity() == identity(data=DataConfig(dataset="moved"))
    assert identity() != identity(seed=1)
    assert identity() != config_values(PretrainConfig(), "other data", 1)
    assert identity() != config_values(PretrainConfig(), "data", 2)


def test_a_run_goes_on_with_a_later_generation_of_its_data_and_with_no_other_content() -> None:
    def values(*generations: list[str]) -> dict[str, Any]:
        return config_values(PretrainConfig(), "data", 1, generations)

    saved = values(["a" * 64], ["b" * 64])
    assert check_changes(Path("c"), saved, values(["a" * 64], ["b" * 64]), ()) == ()
    (change,) = check_changes(Path("c"), saved, values(["a" * 64, "d" * 64], ["b" * 64]), ())
    assert change.plain()["kind"] == "generation"
    assert str(change).endswith(f"this run has generation 2 ({'d' * 16}...), generation 1 ({'b' * 16}...)")
    # Made before generations were recorded: nothing is known, so nothing differs.
    assert check_changes(Path("c"), config_values(PretrainConfig(), "data", 1), saved, ()) == ()
    for other in (values(["d" * 64], ["b" * 64]), values(["d" * 64, "a" * 64], ["b" * 64]), values(["a" * 64])):
        with pytest.raises(MoseError, match=r"made with data\.generations = generation 1 .*--allow-change data\.gen"):
            check_changes(Path("c"), saved, other, ())
        (change,) = check_changes(Path("c"), saved, other, ["data.generations"])
        assert change.plain()["kind"] == "allowed"
    # An earlier generation than the checkpoint's is another content, too.
    with pytest.raises(MoseError, match=r"generation 2 .*, this run has generation 1"):
        check_changes(Path("c"), values(["a" * 64, "d" * 64]), values(["a" * 64]), ())


def test_every_change_that_cannot_be_is_refused_with_the_reason() -> None:
    def refused(now: dict[str, Any], *allowed: str) -> str:
        with pytest.raises(MoseError) as refusal:
            check_changes(Path("c"), identity(), now, allowed)
        return str(refusal.value)

    assert "data.fingerprint = data, this run has other" in refused(config_values(PretrainConfig(), "other", 1))
    regrouped = identity(optimizer=OptimizerConfig(decay_biases_and_norms=True))
    assert "cannot be resumed so" in refused(regrouped, "optimizer.decay_biases_and_norms")
    regrouped = identity(optimizer=OptimizerConfig(vocabulary_learning_rate_factor=10.0))
    assert "cannot be resumed so" in refused(regrouped, "optimizer.vocabulary_learning_rate_factor")
    stage_3 = identity(parallel=ParallelConfig(zero_stage=3))
    assert "of ZeRO 3 wrongly in another layout; expected data 1 x tensor 1, ZeRO 1" in refused(stage_3)
    assert "or with --allow-change parallel.precision" in refused(identity(parallel=ParallelConfig(precision="fp32")))
    layout = config_values(dataclasses.replace(PretrainConfig(), parallel=ParallelConfig(tensor_parallel_size=2)), "data", 4)
    changes = check_changes(Path("c"), identity(), layout, ())
    assert [change.field for change in changes] == ["parallel.tensor_parallel_size", "world_size"]
    assert check_changes(Path("c"), identity(), config_values(PretrainConfig(), "other", 1), ["data.fingerprint"])


@pytest.mark.parametrize(
    ("keep_last", "permanent_every", "kept"), [(2, 0, [40, 50]), (1, 20, [20, 40, 50]), (9, 0, [10, 20, 30, 40, 50])]
)
def test_pruning_keeps_the_newest_and_the_permanent(
    keep_last: int, permanent_every: int, kept: list[int], tmp_path: Path
) -> None:
    for step in range(10, 60, 10):
        (tmp_path / f"step-{step:06d}").mkdir()
    (tmp_path / "damaged-step-000005").mkdir()
    store_in(tmp_path).prune(keep_last, permanent_every)
    assert [step_of(path) for path in checkpoint_folders(tmp_path)] == kept
    assert (tmp_path / "damaged-step-000005").is_dir()


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    with pytest.raises(MoseError, match=r"manifest\.json: no such file"):
        read_checkpoint_manifest(tmp_path)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (WritingEngine(parts=0), "0 of 1 ranks' parts are there; expected a folder that all ranks share"),
        (WritingEngine(num_bytes=0), "is empty after it was written"),
    ],
    ids=["a-rank-wrote-elsewhere", "0-byte-shard"],
)
def test_what_was_not_written_is_never_published(engine: Any, message: str, tmp_path: Path) -> None:
    store = save_steps(tmp_path, 2)
    with pytest.raises(MoseError) as refusal:
        store.save(engine, Progress(4, 32, 400))
    assert message in str(refusal.value)
    assert "step-000004: could not be written" in str(refusal.value)
    assert "the last whole one is step-000002" in str(refusal.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-000002"]


def test_manifest_names_every_byte(tmp_path: Path) -> None:
    save_steps(tmp_path, 2)
    manifest = read_checkpoint_manifest(tmp_path / "step-000002")
    assert manifest_fingerprint(manifest) == manifest["fingerprint"]
    assert sum(manifest["sizes"].values()) == 20


def test_file_size_limit_leaves_the_last_good_checkpoint_and_one_line(run: Path) -> None:
    line = refuses(*train(run), trouble=Trouble(largest_file=100_000))
    assert "step-000008: could not be written: disk full, or a limit on the size of files? torch says: " in line
    assert "GB of disk are free); the last whole one is step-000006" in line
    assert names(run) == ["latest", "step-000002", "step-000004", "step-000006"]
    assert (run / "checkpoints" / "latest").read_text() == "step-000006\n"
    succeeds(*train(run))
    assert logged_steps(run) == list(range(1, 9))


def test_full_disk_leaves_the_last_good_checkpoint_and_one_line(run: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    shutil.rmtree(run / "checkpoints" / "step-000002")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        shutil.copytree(run, disk / "run")
        line = refuses(*train(disk / "run"))
        assert "step-000008: could not be written: " in line
        assert "(0.00 GB of disk are free); the last whole one is step-000006" in line
        assert names(disk / "run") == ["latest", "step-000004", "step-000006"]
        shutil.rmtree(disk / "run" / "checkpoints" / "step-000004")
        succeeds(*train(disk / "run"))
    finally:
        subprocess.run(["umount", disk], check=True)


def test_saving_says_how_long_training_stood_still(run: Path) -> None:
    outcome = run_forked(*train(run))
    assert "checkpoint step-000008: 1.2 MB written in " in outcome.output


def test_names_that_lead_out_of_a_checkpoint_are_refused(run: Path) -> None:
    folder = run / "checkpoints"
    checkpoint = latest_checkpoint(folder)
    assert checkpoint is not None
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    manifest["files"]["../../config.yaml"] = "0" * 64
    manifest["fingerprint"] = manifest_fingerprint(manifest)
    path.write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(MoseError, match=r"manifest\.json: files: '\.\./\.\./config\.yaml', expected a relative path"):
        read_checkpoint_manifest(checkpoint)
    (folder / "latest").write_text("../../elsewhere\n", "utf-8")
    assert latest_checkpoint(folder) is None


def test_a_rank_that_was_killed_during_a_save_is_not_called_a_full_disk(tmp_path: Path) -> None:
    gloo = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:50312"

    class Abandoned:
        def save(self, folder: Path) -> None:
            raise RuntimeError(gloo)

    store = save_steps(tmp_path, 2)
    # The caller turns it into a line that names the rank.
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        store.save(Abandoned(), Progress(4, 32, 400))  # type: ignore[arg-type]
    assert latest_checkpoint(tmp_path) == tmp_path / "step-000002"


def test_only_torchs_file_writer_suggests_a_full_disk(tmp_path: Path) -> None:
    class Broken:
        def save(self, folder: Path) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(MoseError, match="could not be written: torch says: CUDA error"):
        save_steps(tmp_path, 2).save(Broken(), Progress(4, 32, 400))  # type: ignore[arg-type]

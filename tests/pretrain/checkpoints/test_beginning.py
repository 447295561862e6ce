"""Covers that a run never begins anew by itself, never sets aside what it resumes from; unreadable is not damaged.

The user pains it stands for: "resume silently starts over" and "half-written or corrupted checkpoints".
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mose.errors import MoseError
from mose.run_directory import RunDirectory
from pretrain.checkpoints import store as store_module
from pretrain.checkpoints.beginning import check_begins, missing_newest
from pretrain.checkpoints.files import checkpoint_folders, latest_checkpoint
from pretrain.checkpoints.store import ResumeRequest
from tests.pretrain.checkpoints.test_files import save_steps, store_in, truncate

ADVICE = "expected its checkpoints back under their own names, or --resume never with a new directory as output"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run of early versions, without saved.json, whose last checkpoint is that of step 12."""
    run = RunDirectory(tmp_path / "run")
    run.create()
    run.config.write_text("seed: 0\n")
    run.append_metrics({"step": 12})
    run.write_heartbeat(12)
    save_steps(run.checkpoints, 5, 12)
    return run


def remove(run: RunDirectory) -> str:
    shutil.rmtree(run.checkpoints)
    return "checkpoints is missing"


def unmount(run: RunDirectory) -> str:
    shutil.rmtree(run.checkpoints)
    run.checkpoints.symlink_to("/nowhere/checkpoints")
    return "checkpoints is a link to /nowhere/checkpoints, which is not there"


def empty(run: RunDirectory) -> str:
    shutil.rmtree(run.checkpoints)
    run.checkpoints.mkdir()
    return "checkpoints is empty"


def rename(run: RunDirectory) -> str:
    for path in checkpoint_folders(run.checkpoints):
        path.rename(path.with_name(f"old-{path.name}"))
    return "checkpoints holds only old-step-000005, old-step-000012"


LOSSES = [remove, unmount, empty, rename]


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("lose", LOSSES, ids=lambda lose: lose.__name__)
def test_a_run_without_its_checkpoints_is_refused(lose: Callable[[RunDirectory], str], recorded: bool, run: RunDirectory) -> None:
    if recorded:
        run.write_saved("step-000012")
    state = lose(run)
    before = sorted(run.path.rglob("*"))
    assert store_in(run.checkpoints).select(ResumeRequest()) is None
    with pytest.raises(MoseError) as refusal:
        check_begins(run)
    assert str(refusal.value).startswith(f"{run.path}: holds a run (config.yaml, metrics.jsonl, heartbeat.json")
    assert state in str(refusal.value)
    assert str(refusal.value).endswith(ADVICE)
    assert ("the last one saved was step-000012" in str(refusal.value)) == recorded
    assert sorted(run.path.rglob("*")) == before


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "heartbeat.json", "skipped.jsonl", "versions.json"])
def test_each_trace_of_a_run_alone_is_enough(name: str, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert check_begins(run) == ""
    (tmp_path / name).write_text("")
    with pytest.raises(MoseError, match=rf"holds a run \({name}\) and no usable checkpoint: checkpoints is missing"):
        check_begins(run)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again_and_says_so(run: RunDirectory) -> None:
    shutil.rmtree(run.checkpoints)
    run.write_saved(None)
    assert check_begins(run) == f"{run.path}: was stopped before its first checkpoint; it begins again at step 1"
    # Inside the first save.
    (run.checkpoints / ".step-000005.partial").mkdir(parents=True)
    assert "begins again" in check_begins(run)
    (run.checkpoints / "old-step-000005").mkdir()
    with pytest.raises(MoseError, match="no usable checkpoint"):
        check_begins(run)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"checkpoint": 7}', "{}"])
def test_a_damaged_record_proves_nothing(text: str, run: RunDirectory) -> None:
    shutil.rmtree(run.checkpoints)
    run.saved.write_text(text)
    with pytest.raises(MoseError, match="no usable checkpoint"):
        check_begins(run)


def test_a_newest_checkpoint_that_is_gone_is_missed(run: RunDirectory) -> None:
    run.write_saved("step-000012")
    assert missing_newest(run, 12) == ""
    shutil.rmtree(run.checkpoints / "step-000012")
    assert missing_newest(run, 5).endswith("checkpoints: step-000012 was saved and is missing; the run resumes after step 5")


def test_a_checkpoint_under_another_number_is_refused_and_stays(tmp_path: Path) -> None:
    save_steps(tmp_path, 12)
    (tmp_path / "step-000012").rename(tmp_path / "step-000017")
    for _ in range(2):
        with pytest.raises(MoseError, match="step-000017: .*progress.step is 12, .* rename it to step-000012"):
            store_in(tmp_path).select(ResumeRequest())
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["step-000017"]
    assert latest_checkpoint(tmp_path) is None
    (tmp_path / "step-000017").rename(tmp_path / "step-000012")
    assert store_in(tmp_path).select(ResumeRequest()) is not None


def test_latest_is_right_at_every_moment_of_a_take_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_steps(tmp_path, 2, 4, 6)
    truncate(tmp_path / "step-000006")
    store = store_in(tmp_path)
    selection = store.select(ResumeRequest())
    assert selection is not None
    rename, seen = Path.rename, []

    def checked(path: Path, target: Any) -> Path:
        moved = rename(path, target)
        seen.append(latest_checkpoint(tmp_path))
        return moved

    monkeypatch.setattr(Path, "rename", checked)
    store._take_over(selection)
    assert seen == [tmp_path / "step-000004"]


@pytest.mark.parametrize("content", ["step-000099\n", "../elsewhere", "", "step-000004/../..", "\xff"])
def test_a_pointer_to_nothing_is_no_checkpoint(content: str, tmp_path: Path) -> None:
    save_steps(tmp_path, 4)
    (tmp_path / "latest").write_text(content, "latin-1")
    assert latest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("name", ["read_checkpoint_manifest", "first_fault"])
def test_what_cannot_be_read_is_not_damaged(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_steps(tmp_path, 2, 4)

    def denied(*arguments: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(tmp_path / "step-000004" / "manifest.json"))

    monkeypatch.setattr(store_module, name, denied)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(MoseError, match="manifest.json: cannot be read: Permission denied; expected a readable checkpoint"):
        store_in(tmp_path).select(ResumeRequest())
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_folder_that_cannot_be_listed_is_not_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    save_steps(tmp_path, 2)
    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(MoseError, match="Permission denied"):
        store_in(tmp_path).select(ResumeRequest())


def test_linked_checkpoints_are_unlinked_when_pruned_and_what_they_point_to_stays(tmp_path: Path) -> None:
    save_steps(tmp_path / "checkpoints", 2, 4, 6)
    (tmp_path / "checkpoints" / "step-000002").rename(tmp_path / "moved")
    (tmp_path / "checkpoints" / "step-000002").symlink_to(tmp_path / "moved")
    store_in(tmp_path / "checkpoints").prune(1, 0)
    assert [path.name for path in checkpoint_folders(tmp_path / "checkpoints")] == ["step-000006"]
    assert not os.path.lexists(tmp_path / "checkpoints" / "step-000002")
    assert (tmp_path / "moved" / "manifest.json").is_file()


def test_a_linked_checkpoint_is_resumed_and_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    save_steps(tmp_path / "checkpoints", 2, 4)
    (tmp_path / "checkpoints" / "step-000004").rename(tmp_path / "moved")
    (tmp_path / "checkpoints" / "step-000004").symlink_to(tmp_path / "moved")
    selection = store_in(tmp_path / "checkpoints").select(ResumeRequest())
    assert selection is not None and selection.progress.step == 4
    (tmp_path / "moved").rename(tmp_path / "gone")
    with pytest.raises(MoseError, match="step-000004: is a link to .*moved, which is not there; expected it mounted"):
        store_in(tmp_path / "checkpoints").select(ResumeRequest())


def test_a_checkpoint_that_cannot_be_removed_is_left_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_steps(tmp_path, 2, 4)

    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(store_module, "remove_checkpoint", denied)
    store_in(tmp_path).prune(1, 0)
    assert "step-000002: could not be removed: Permission denied; it is left" in capsys.readouterr().err


def test_pruning_never_removes_what_latest_names(tmp_path: Path) -> None:
    save_steps(tmp_path, 2, 4, 6)
    (tmp_path / "latest").write_text("step-000002\n")
    store_in(tmp_path).prune(1, 0)
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["step-000002", "step-000006"]


def test_the_probe_can_be_read_by_whoever_reads_the_checkpoint(finished_run: Path) -> None:
    checkpoint = latest_checkpoint(finished_run / "checkpoints")
    assert checkpoint is not None
    modes = [(checkpoint / name).stat().st_mode for name in ("probe.safetensors", "manifest.json")]
    assert modes[0] == modes[1]


def test_the_record_follows_the_newest_checkpoint(finished_run: Path) -> None:
    assert json.loads((finished_run / "saved.json").read_text()) == {"checkpoint": "step-000006"}
    assert not (finished_run / "lock.json").exists()

"""Covers who may have a checkpoint unpickled: its own user by a keyed signature, anybody by an explicit flag."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mose.errors import MoseError
from mose.files.atomic_file import file_sha256, write_json
from pretrain.checkpoints.files import manifest_fingerprint, read_checkpoint_manifest
from pretrain.checkpoints.run_state import Progress
from pretrain.checkpoints.signature import is_signed_by_user, key_path, sign
from pretrain.checkpoints.store import CheckpointStore, ResumeRequest
from pretrain.config.identity import config_values
from pretrain.config.run import Layout, PretrainConfig
from pretrain.parallel.context import ParallelContext
from tests.pretrain.hostile import torch_file

PART = "state/zero_pp_rank_0_mp_rank_00_optim_states.pt"


class SavingEngine:
    """Writes one part, which names a class that weights-only loading refuses where `mark` is given."""

    def __init__(self, mark: Path | None = None):
        self._mark = mark

    def save(self, folder: Path) -> list[Path]:
        (folder / "state").mkdir()
        if self._mark is None:
            torch.save({"step": 1}, folder / PART)
        else:
            torch_file(folder / PART, self._mark)
        return [folder / PART]


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))


def store_in(folder: Path) -> CheckpointStore:
    context = ParallelContext(0, 0, 0, Layout(1, 1, 1, 1), torch.device("cpu"), None, None)
    return CheckpointStore(folder, context, config_values(PretrainConfig(), "data", 1))


def saved(folder: Path, mark: Path | None = None) -> CheckpointStore:
    store = store_in(folder)
    store.save(SavingEngine(mark), Progress(2, 16, 200))  # type: ignore[arg-type]
    return store


def rewritten(checkpoint: Path) -> None:
    """What somebody else can do: give the manifest the checksums of other files, and a fingerprint that fits."""
    manifest: dict[str, Any] = read_checkpoint_manifest(checkpoint)
    manifest["files"][PART], manifest["sizes"][PART] = file_sha256(checkpoint / PART), (checkpoint / PART).stat().st_size
    write_json(checkpoint / "manifest.json", manifest | {"fingerprint": manifest_fingerprint(manifest)})


def test_a_hostile_part_with_a_fitting_manifest_is_refused_in_one_line(tmp_path: Path) -> None:
    store = saved(tmp_path / "run")
    torch_file(tmp_path / "run" / "step-000002" / PART, tmp_path / "mark")
    rewritten(tmp_path / "run" / "step-000002")
    with pytest.raises(MoseError, match=r"names posix\.mkdir.* expected tensors only, .* or --trust-checkpoint") as caught:
        store.select(ResumeRequest())
    assert str(caught.value).startswith(str(tmp_path / "run" / "step-000002" / PART))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "mark").exists()


def test_it_is_unpickled_on_the_explicit_flag_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = saved(tmp_path / "run")
    torch_file(tmp_path / "run" / "step-000002" / PART, tmp_path / "mark")
    rewritten(tmp_path / "run" / "step-000002")
    selection = store.select(ResumeRequest(trusted=True))
    assert selection is not None
    assert selection.unpickles
    assert "because of --trust-checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "mark").exists()


def test_what_this_user_saved_may_hold_other_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = saved(tmp_path / "run", mark=tmp_path / "mark")
    selection = store.select(ResumeRequest())
    assert selection is not None
    assert selection.unpickles
    assert "because you saved it" in capsys.readouterr().err


def test_another_users_key_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = saved(tmp_path / "run", mark=tmp_path / "mark")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other home"))
    assert not is_signed_by_user(read_checkpoint_manifest(tmp_path / "run" / "step-000002"))
    sign({})
    assert not is_signed_by_user(read_checkpoint_manifest(tmp_path / "run" / "step-000002"))
    with pytest.raises(MoseError, match="--trust-checkpoint"):
        store.select(ResumeRequest())


def test_tensors_alone_need_neither_key_nor_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = saved(tmp_path / "run")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other home"))
    selection = store.select(ResumeRequest())
    assert selection is not None
    assert not selection.unpickles


@pytest.mark.parametrize("field", ["files", "sizes", "progress", "identity"])
def test_the_signature_covers_the_manifest(field: str, tmp_path: Path) -> None:
    saved(tmp_path / "run")
    manifest = read_checkpoint_manifest(tmp_path / "run" / "step-000002")
    assert is_signed_by_user(manifest)
    manifest[field] = {**manifest[field], "more": 1}
    assert not is_signed_by_user(manifest)


def test_the_key_is_this_users_alone(tmp_path: Path) -> None:
    signature = sign({"files": {}})
    assert key_path().stat().st_mode & 0o777 == 0o600
    assert sign({"files": {}}) == signature
    key_path().chmod(0o644)
    with pytest.raises(MoseError, match=r"checkpoint\.key: owner \d+, mode 644; expected this user's, with mode 600"):
        sign({"files": {}})


def test_a_key_that_cannot_be_made_is_said_and_the_checkpoint_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    store = saved(tmp_path / "run")
    assert "warning: step-000002 is not signed" in capsys.readouterr().err
    assert store.select(ResumeRequest()) is not None

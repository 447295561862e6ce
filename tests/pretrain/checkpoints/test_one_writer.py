"""Covers that a run directory has one writer: a second start, or an export into it, names the holder and changes nothing."""

import os
import shutil
from pathlib import Path

import pytest

from mose.errors import MoseError
from mose.run_directory import RunDirectory
from pretrain.checkpoints.export import ExportRequest, export_run
from tests.pretrain.forked import refuses

LINE = "works on it; expected one process at a time per run directory"


def test_a_second_start_names_the_holder_and_changes_nothing(finished_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    words = ("train", "--config", run / "config.yaml", "--output", run, "--max_steps", 8)
    with RunDirectory(run).hold():
        refusal = refuses(*words)
        assert refusal.startswith(f"mose-pretrain: error: {run}: process {os.getpid()} of ")
        assert refusal.endswith(LINE)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_refused_start_in_a_new_directory_leaves_nothing(finished_run: Path, tmp_path: Path) -> None:
    words = ("train", "--config", finished_run / "config.yaml", "--output", tmp_path / "new", "--resume", 3)
    assert "holds no step-000003" in refuses(*words)
    assert not (tmp_path / "new").exists()


def test_an_export_into_a_held_run_or_of_one_folder_twice_is_refused(finished_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    with RunDirectory(run).hold(), pytest.raises(MoseError, match=LINE):
        export_run(run, run / "exported" / "last", ExportRequest())
    assert not (run / "exported").exists()
    with RunDirectory(run).hold():
        # Reading a run while it trains is allowed.
        export_run(run, tmp_path / "elsewhere", ExportRequest())
        (tmp_path / ".out.lock.json").write_bytes((run / "lock.json").read_bytes())
        with pytest.raises(MoseError, match="works on it; expected one export at a time per folder"):
            export_run(run, tmp_path / "out", ExportRequest())
    assert {path.name for path in tmp_path.iterdir()} == {"run", "elsewhere", ".out.lock.json"}

"""Covers that what reads a run refuses a config that was edited after the run wrote it."""

import json
import shutil
from pathlib import Path

import pytest

from mose.errors import MoseError
from mose.run_directory import RunDirectory
from pretrain.analysis.compare import compare_checkpoints
from pretrain.analysis.step_rows import rows_of_step
from pretrain.checkpoints.export import ExportRequest, export_run
from pretrain.config.frozen import load_frozen_config


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> RunDirectory:
    return RunDirectory(Path(shutil.copytree(finished_run, tmp_path / "run")))


def test_an_edited_config_is_refused_by_rows_export_and_compare(run: RunDirectory, tmp_path: Path) -> None:
    assert len(rows_of_step(run.path, 2)) == 1
    run.config.write_text(run.config.read_text().replace("seed: 3", "seed: 4"))
    for read in (
        lambda: rows_of_step(run.path, 2),
        lambda: export_run(run.path, tmp_path / "exported", ExportRequest()),
        lambda: compare_checkpoints(run.path, run.path),
    ):
        with pytest.raises(MoseError, match="config.yaml: was edited after the run wrote it; expected it unchanged"):
            read()
    assert not (tmp_path / "exported").exists()


def test_a_run_of_an_early_version_is_read_as_it_is(run: RunDirectory) -> None:
    values = json.loads(run.versions.read_text())
    assert len(values.pop("config_sha256")) == 64
    run.versions.write_text(json.dumps(values))
    assert load_frozen_config(run).seed == 3
    run.versions.unlink()
    assert load_frozen_config(run).seed == 3
    run.config.unlink()
    with pytest.raises(MoseError, match="config.yaml: no such file; expected a run directory"):
        load_frozen_config(run)

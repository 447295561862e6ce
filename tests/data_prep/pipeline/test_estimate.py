"""`pack --dry-run`: what it says before is what packing gives, within the margin that it states."""

import dataclasses
from pathlib import Path

import pytest

from data_prep.execution.pack import pack_dataset
from data_prep.pipeline.assignment import assign_sources
from data_prep.pipeline.estimate import estimate
from data_prep.pipeline.task_marker import marker_path, read_marker
from mose.dataset.manifest import SPLITS
from tests.data_prep.repositories import make_config

MANY = 60


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_estimate_is_what_packing_gives(tmp_path: Path, share: float) -> None:
    config = dataclasses.replace(make_config(tmp_path, MANY), num_tasks=1).resolve()
    size = sum(path.stat().st_size for path in (tmp_path / "repositories").rglob("*.py"))
    found = estimate(config, assign_sources(config), round(size * share))
    assert not (tmp_path / "dataset").exists()
    manifest = pack_dataset(config)
    marker = read_marker(marker_path(tmp_path / "dataset", 0))
    assert manifest is not None and marker is not None
    assert (found.repositories, found.files, found.bytes) == (MANY, marker.seen["directory"]["files"], size)
    assert (found.sampled_repositories == MANY) == (share == 1.0)
    tokens = sum(marker.rows[split]["text_tokens"] for split in SPLITS)
    assert found.text_tokens == pytest.approx(tokens, rel=found.margin)
    assert found.rows == pytest.approx(sum(map(manifest.rows, SPLITS)), rel=max(found.margin, 0.1))
    assert found.margin < 0.1
    assert found.lines(1)[0] == f"repositories  {MANY}"

"""`pack --dry-run`: what it says before is what packing gives, within the margin that it states."""

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

import pytest

from data_prep.execution.pack import pack_dataset
from data_prep.pipeline.assignment import assign_sources
from data_prep.pipeline.config import PackConfig
from data_prep.pipeline.estimate import estimate as estimate_module
from data_prep.pipeline.estimate.estimate import estimate
from data_prep.pipeline.estimate.sample import Unit, expected_overshoot, margin, sample_sizes, size_bin, tokens_within
from data_prep.pipeline.task_marker import marker_path, read_marker
from data_prep.sources.ingest.grouping.config import GroupConfig
from data_prep.sources.ingest.grouping.run import group
from data_prep.sources.registry import SourcesConfig
from mose.dataset.manifest import MANIFEST_NAME, SPLITS
from tests.data_prep.repositories import made_text, make_config
from tests.data_prep.stack_rows import stack_file, write_repositories

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
    assert (found.sampled_bytes == size) == (share == 1.0)
    tokens = sum(marker.rows[split]["text_tokens"] for split in SPLITS)
    assert found.text_tokens == pytest.approx(tokens, rel=found.margin)
    assert found.rows == pytest.approx(sum(map(manifest.rows, SPLITS)), rel=max(found.margin, 0.1))
    assert found.margin < 0.1
    if share == 1.0:
        files = {path: path.stat().st_size for path in (tmp_path / "dataset").rglob("*") if path.is_file()}
        kept = sum(size for path, size in files.items() if path.suffix not in (".json", ".yaml"))
        (tokenizer,) = (size for path, size in files.items() if path.name.startswith("tokenizer."))
        assert found.disk_bytes == pytest.approx(kept, abs=tokenizer / 2)
    assert found.lines(1)[0] == f"repositories  {MANY}"


def test_each_task_and_each_worker_has_its_cost_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(make_config(tmp_path, MANY), num_tasks=5, num_workers=2, duplicates="drop").resolve()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    assignment, before = assign_sources(config), sorted(tmp_path.rglob("*"))
    asked = []

    def cost_of_no_files(_: PackConfig, *, has_workers: bool) -> tuple[float, float]:
        asked.append(has_workers)
        return 1.0, 100.0 * has_workers

    monkeypatch.setattr(estimate_module, "_cost_of_no_files", cost_of_no_files)
    many = estimate(config, assignment).cost
    one = estimate(dataclasses.replace(config, num_workers=1), assignment).cost
    assert (many.tasks, one.tasks, asked) == (5.0, 5.0, [True, False])
    assert many.once >= 200
    assert one.once < 100
    assert sorted(tmp_path.rglob("*")) == before


def test_the_cost_of_no_files_is_that_of_a_task_and_of_a_new_process(tmp_path: Path) -> None:
    config = dataclasses.replace(make_config(tmp_path, 1), num_tasks=2).resolve()
    task, worker = estimate_module._cost_of_no_files(config, has_workers=True)
    # A process imports pyarrow, which takes longer than the test's small tokenizer.
    assert 0 < task < worker
    assert estimate_module._cost_of_no_files(config, has_workers=False)[1] == 0


def tokens_of(config: PackConfig) -> int:
    """Tokens of text that packing gives."""
    pack_dataset(config)
    statistics = json.loads((Path(config.output) / MANIFEST_NAME).read_text())["statistics"]
    return sum(statistics["splits"][split]["text_tokens"] for split in SPLITS)


def test_copies_across_repositories_and_a_budget_count(tmp_path: Path) -> None:
    config = make_config(tmp_path, MANY, duplicates="drop", num_tasks=2).resolve()
    folder = tmp_path / "repositories"
    for number in range(MANY):
        shutil.copytree(folder / f"repository-{number:02d}", folder / f"fork-{number:02d}")
    sample = sum(path.stat().st_size for path in folder.rglob("*.py")) // 2
    said = estimate(config, assign_sources(config), sample)
    tokens = tokens_of(config)
    assert said.text_tokens == pytest.approx(tokens, rel=0.1) and said.sampled_bytes < 1.3 * sample
    small = dataclasses.replace(config, max_train_tokens=tokens // 3, output=str(tmp_path / "small"))
    within = estimate(small, assign_sources(small), sample).text_tokens
    assert within == pytest.approx(tokens_of(small), rel=0.1) and within < 0.7 * tokens


def test_grouped_rows_are_estimated_from_their_first_repositories(tmp_path: Path) -> None:
    config = make_config(tmp_path, num_tasks=2, duplicates="drop", held_out_fraction=0.1)
    names = [f"{owner}/p{number}" for number in range(60) for owner in ("alice", "bob")]
    rows = [(name, [stack_file(f"/{i}.py", made_text(9, f"{name[-3:]}.{i}")) for i in range(3)]) for name in names]
    source = write_repositories(tmp_path / "a.parquet", rows, with_content=True)
    group(GroupConfig(inputs=(str(source),), output=str(tmp_path / "grouped"), num_parts=2))
    config = dataclasses.replace(config, sources=SourcesConfig(stack_v2=(str(tmp_path / "grouped"),))).resolve()
    whole = estimate(config, assign_sources(config))
    tokens = tokens_of(config)
    assert whole.text_tokens == pytest.approx(tokens) and whole.margin < 0.03
    half = estimate(config, assign_sources(config), whole.sampled_bytes // 2)
    assert half.text_tokens == pytest.approx(tokens, rel=half.margin) and 0.03 < half.margin < 0.5
    assert half.sampled_bytes < 0.6 * whole.sampled_bytes and half.files == whole.files == 360


def test_a_sample_of_sizes_stands_for_all_bytes() -> None:
    files_of_size = {size: 1 + size % 3 for size in range(1, 4000)}
    total = sum(size * files for size, files in files_of_size.items())
    sample = sample_sizes(files_of_size, total // 4, seed=0)
    read = [size for size in files_of_size if size in sample]
    assert sum(size * files_of_size[size] for size in read) == pytest.approx(total / 4, rel=0.05)
    assert sum(size * files_of_size[size] * sample.scale(size) for size in read) == pytest.approx(total)
    units = [Unit(size_bin(size), size * files_of_size[size], size * files_of_size[size] / 3) for size in read]
    assert margin(units, sample.scales) == pytest.approx(0, abs=1e-6)
    assert 0.01 < margin([dataclasses.replace(unit, tokens=unit.bytes % 100) for unit in units], sample.scales) < 0.3
    everything = sample_sizes(files_of_size, total, seed=0)
    assert everything.sizes == files_of_size.keys() and set(everything.scales.values()) == {1.0}


def test_a_budget_ends_with_the_repository_that_exceeds_it() -> None:
    assert [tokens_within([4, 6, 5], budget) for budget in (1, 4, 5, 10, 11, 99)] == [4, 4, 10, 10, 15, 15]
    assert expected_overshoot([10, 10]) == 5 and expected_overshoot([]) == 0

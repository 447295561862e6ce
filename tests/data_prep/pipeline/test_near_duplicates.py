"""Covers lists of near-duplicates in `mose-data pack`: what is dropped whatever the tasks, and lists that do not fit."""

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.dedup.config import DedupConfig, EvaluationConfig
from data_prep.dedup.runner import deduplicate
from data_prep.execution.pack import pack_dataset
from data_prep.pipeline.config import PackConfig
from data_prep.sources.repositories import HELD_OUT, TRAIN, split_of
from data_prep.tools.dropped import read_dropped
from data_prep.tools.verify import verify
from mose.dataset.manifest import read_manifest
from mose.errors import MoseError
from tests.data_prep.repositories import made_text, make_config

REASONS = ("near_duplicate", "near_evaluation", "duplicate_in_repository", "copy_of_held_out")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> PackConfig:
    """Eight repositories with planted near-duplicates, and what `mose-data dedup` found in them."""
    folder = tmp_path_factory.mktemp("near")
    config = make_config(folder, 8)
    sources = folder / "repositories"
    names = sorted(path.name for path in sources.iterdir())
    by_split = {
        split: [n for n in names if split_of(n, config.seed, config.held_out_fraction) == split] for split in (TRAIN, HELD_OUT)
    }
    original = made_text(30, "planted")
    near = original + "    last = 1\n"
    first, *others = by_split[TRAIN]
    (sources / first / "original.py").write_text(original)
    # The listed one of two equal files in a repository: the second must not take its place.
    for name in ("near.py", "again.py"):
        (sources / others[-1] / name).write_text(near)
    (sources / others[0] / "public.py").write_text(made_text(30, "asked"))
    # Equal files of both splits: the list keeps that of train, which as a copy of a held-out file must not go as well.
    early = next(name for n in range(9) if split_of(name := f"a-{n}", config.seed, config.held_out_fraction) == TRAIN)
    for name in (early, by_split[HELD_OUT][-1]):
        (sources / name).mkdir(exist_ok=True)
        (sources / name / "common.py").write_text(made_text(30, "common"))
    (folder / "set.jsonl").write_text(f'{{"code": "{made_text(30, "asked").strip().encode("unicode_escape").decode()}"}}\n')
    evaluation = EvaluationConfig((str(folder / "set.jsonl"),))
    deduplicate(DedupConfig(str(folder / "near"), sources=config.sources, evaluation=evaluation, num_tasks=2))
    return replace(config, near_duplicates=(str(folder / "near"),))


def dropped(config: PackConfig, folder: Path, **more: int) -> set[tuple[str, str, str]]:
    """Repository, path and reason of the files that a data set leaves out as copies of some kind."""
    pack_dataset(replace(config, output=str(folder), **more))
    assert not verify(folder).problems
    return {(line[0], line[1], line[3]) for line in read_dropped(folder) if line[3] in REASONS}


def test_listed_files_are_dropped_and_counted_whatever_the_tasks(made: PackConfig, tmp_path: Path) -> None:
    found = dropped(made, tmp_path / "one", num_tasks=1)
    listed = {path: (name, reason) for name, path, reason in found}
    names = sorted(path.name for path in Path(made.sources.directories[0]).iterdir())
    by_split = [n for n in names if n.startswith("repo") and split_of(n, made.seed, made.held_out_fraction) == TRAIN]
    assert listed["/again.py"] == (by_split[-1], "near_duplicate")
    assert listed["/near.py"] == (by_split[-1], "duplicate_in_repository")
    assert listed["/public.py"] == (by_split[1], "near_evaluation")
    assert [reason for _, path, reason in found if path == "/common.py"] == ["near_duplicate"]
    assert "/original.py" not in listed
    tallies = read_manifest(tmp_path / "one").statistics["ledger"]["dropped"]
    assert tallies["near_evaluation"]["files"] == 1 and tallies["near_duplicate"]["files"] == 2
    assert dropped(made, tmp_path / "three", num_tasks=3) == found
    assert dropped(replace(made, near_duplicates=()), tmp_path / "none") != found


def test_another_list_is_another_data_set(made: PackConfig, tmp_path: Path) -> None:
    config = replace(made, output=str(tmp_path / "data"))
    pack_dataset(config, task=0)
    shutil.copytree(made.near_duplicates[0], tmp_path / "moved")
    pack_dataset(replace(config, near_duplicates=(str(tmp_path / "moved"),)), task=1)
    with pytest.raises(MoseError, match=r"inputs.json: lists: .*: the content of the opt-out or decontamination files"):
        pack_dataset(replace(config, near_duplicates=()), task=2)
    (tmp_path / "data" / "tasks" / "near_duplicates.npy").write_bytes(b"x")
    with pytest.raises(MoseError, match=r"near_duplicates.npy: not a readable table of near-duplicates: .*; remove it"):
        pack_dataset(config, task=2)


def test_lists_that_do_not_fit_are_refused(made: PackConfig, tmp_path: Path) -> None:
    near = tmp_path / "near"
    config = replace(made, output=str(tmp_path / "data"), near_duplicates=(str(near),))
    with pytest.raises(
        MoseError, match=r"near/report.json: near_duplicates: cannot be read: No such file.*; expected a finished"
    ):
        pack_dataset(config)
    near.mkdir()
    (near / "report.json").write_text("{}")
    with pytest.raises(MoseError, match=r"report.json: near_duplicates: not a report: .*; expected a finished output"):
        pack_dataset(config)
    (near / "report.json").write_text('{"fingerprint": "x", "parts": 1}')
    part = near / "groups" / "part-000000.parquet"
    with pytest.raises(MoseError, match=r"part-000000.parquet: near_duplicates: cannot be read: No such file"):
        pack_dataset(config)
    part.parent.mkdir()
    part.write_bytes(b"PAR1")
    with pytest.raises(MoseError, match=r"part-000000.parquet: near_duplicates: cannot be read: .*; expected a finished"):
        pack_dataset(config)
    columns = {"file": ["x.parquet"], "path": [None], "blob_id": [None], "kept": [False], "reason": ["near_duplicate"]}
    pq.write_table(pa.table(columns), part)
    with pytest.raises(MoseError, match=r"part-000000.parquet: near_duplicates: path: is empty, as for rows of parquet files"):
        pack_dataset(config)
    pq.write_table(pa.table({"file": ["x"]}), part)
    with pytest.raises(MoseError, match=r"part-000000.parquet: near_duplicates: cannot be read: .*; expected a finished"):
        pack_dataset(config)

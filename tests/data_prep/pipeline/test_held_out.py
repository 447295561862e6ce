"""No held-out file stands in train, too: copies are dropped by default, the same ones whatever the number of tasks."""

import dataclasses
import itertools
import json
import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_prep.execution.finish import finish
from data_prep.execution.pack import pack_dataset
from data_prep.filters import filters
from data_prep.filters.config import FiltersConfig
from data_prep.pipeline.assignment import assign_sources
from data_prep.pipeline.config import PackConfig
from data_prep.pipeline.held_out import prepare_duplicates, prepare_held_out
from data_prep.shards.summary import held_out_line
from data_prep.sources.detection.secrets import Finding
from data_prep.sources.ingest.grouping.config import GroupConfig
from data_prep.sources.ingest.grouping.run import group
from data_prep.sources.registry import SourcesConfig
from data_prep.sources.repositories import split_of
from data_prep.tools.stats.held_out_copies import HeldOutCopies, count_held_out_copies
from data_prep.tools.verify import verify
from mose.dataset.manifest import MANIFEST_NAME, SPLITS, read_manifest
from tests.data_prep.repositories import made_text, make_config
from tests.data_prep.stack_rows import stack_file, write_repositories

COPY = "copy_of_held_out"


def blobs_by_split(dataset: Path) -> list[set[str]]:
    found = [[pq.read_table(path)["blob_id"].to_pylist() for path in (dataset / split).glob("lineage-*")] for split in SPLITS]
    return [{blob for blobs in tables for blob in blobs} for tables in found]


def forked(tmp_path: Path) -> PackConfig:
    """Repositories of which four, held-out ones among them, have a fork in train."""
    config = make_config(tmp_path)
    folder = tmp_path / "repositories"
    for number in range(24):
        name = f"repository-{number:02d}"
        fork = f"fork-of-{name}"
        splits = [split_of(each, config.seed, config.held_out_fraction) for each in (name, fork)]
        if splits == ["held_out", "train"]:
            shutil.copytree(folder / name, folder / fork)
    return config


def packed(config: PackConfig, output: Path) -> tuple[int, list[set[str]]]:
    pack_dataset(dataclasses.replace(config, output=str(output)))
    assert verify(output).problems == []
    reasons = json.loads((output / MANIFEST_NAME).read_text())["statistics"]["filters"]["reasons"]
    return reasons.get(COPY, {"files": 0})["files"], blobs_by_split(output)


def test_copies_are_dropped_from_train_whatever_the_number_of_tasks(tmp_path: Path) -> None:
    config = forked(tmp_path)
    found = [packed(dataclasses.replace(config, num_tasks=tasks), tmp_path / str(tasks)) for tasks in (1, 3)]
    assert found[0] == found[1]
    dropped, (train, held_out) = found[0]
    assert dropped > 0 and held_out and not train & held_out
    kept = dataclasses.replace(config, held_out_copies="count")
    dropped, (train, held_out) = packed(kept, tmp_path / "count")
    assert dropped == 0 and train & held_out
    statistics = json.loads((tmp_path / "count" / MANIFEST_NAME).read_text())["statistics"]
    assert statistics["copies_of_held_out_in_train"] == found[0][0]
    assert held_out_line(statistics) == f"copies of held-out files in train: {found[0][0]}; 0 dropped"
    copies = count_held_out_copies(tmp_path / "count", read_manifest(tmp_path / "count"))
    assert copies == HeldOutCopies(len(held_out), len(train & held_out))
    statistics = finish(tmp_path / "1").statistics
    assert held_out_line(statistics) == f"copies of held-out files in train: 0; {found[0][0]} dropped"
    assert count_held_out_copies(tmp_path / "1", read_manifest(tmp_path / "1")) == HeldOutCopies(len(held_out), 0)


def test_copies_between_folders_and_git_checkouts_are_found_both_ways(tmp_path: Path) -> None:
    config = forked(tmp_path)
    folder = tmp_path / "repositories"
    forks = sorted(folder.glob("fork-of-*"))[:2]
    names = [fork.name.removeprefix("fork-of-") for fork in forks]
    others = [str(path) for path in sorted(folder.iterdir()) if path.name not in names and path not in forks]
    found = []
    for committed in (forks, [folder / name for name in names]):
        for place in committed:
            for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@a", "commit", "-qm", "a"]):
                subprocess.run(["git", "-C", str(place), *words], check=True)
        plain = [str(place) for place in (*forks, *(folder / name for name in names)) if place not in committed]
        sources = SourcesConfig(git_checkouts=tuple(map(str, committed)), repositories=(*others[:9], *plain))
        found.append(packed(dataclasses.replace(config, sources=sources, num_tasks=1), tmp_path / f"data-{len(found)}"))
        for place in committed:
            shutil.rmtree(place / ".git")
    assert found[0] == found[1]
    assert found[0][0] >= sum(len(list(fork.iterdir())) for fork in forks) and not found[0][1][0] & found[0][1][1]


def test_only_what_drops_a_file_is_searched_for_before_packing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(tmp_path, duplicates="drop")
    searched: list[str] = []

    def find(text: str, *_: object, **wanted: bool) -> list[Finding]:
        searched.append(text)
        return []

    monkeypatch.setattr(filters, "find", find)
    for secrets, personal_data in itertools.product(("keep", "replace", "drop"), repeat=2):
        chosen = dataclasses.replace(config, filters=FiltersConfig(secrets=secrets, personal_data=personal_data))
        searched.clear()
        prepare_duplicates(tmp_path / f"{secrets}-{personal_data}", chosen, assign_sources(chosen))
        prepare_held_out(tmp_path / f"{secrets}-{personal_data}", chosen, assign_sources(chosen), is_new=True)
        assert bool(searched) == ("drop" in (secrets, personal_data))


def test_parquet_rows_listed_and_grouped_give_the_same(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    names = [f"{owner}/p{number}" for number in range(30) for owner in ("alice", "bob")]
    rows = [(name, [stack_file(f"/{i}.py", made_text(9, f"{name[-2:]}.{i}")) for i in range(3)]) for name in names]
    source = write_repositories(tmp_path / "a.parquet", rows, with_content=True)
    group(GroupConfig(inputs=(str(source),), output=str(tmp_path / "grouped"), num_parts=2))
    found = []
    for place in (source, tmp_path / "grouped"):
        sources = SourcesConfig(stack_v2=(str(place),))
        found.append(packed(dataclasses.replace(config, sources=sources, num_tasks=2), tmp_path / f"of-{place.name}"))
    assert found[0] == found[1]
    assert found[0][0] > 0 and not found[0][1][0] & found[0][1][1]


def test_copies_of_rows_without_blob_ids_are_found_by_their_content(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    names = [f"{owner}/p{number}" for number in range(12) for owner in ("alice", "bob")]
    rows = [(name, [stack_file(f"/{i}.py", made_text(9, f"{name[-2:]}.{i}")) for i in range(3)]) for name in names]
    expected = None
    for has_ids in (True, False):
        if not has_ids:
            # One id stays, so that a repository has files of both kinds.
            for file in (file for _, files in rows for file in files if file["path"] != "/0.py"):
                file["blob_id"] = None
        source = write_repositories(tmp_path / f"{has_ids}.parquet", rows, with_content=True)
        sources = SourcesConfig(stack_v2=(str(source),))
        found = packed(dataclasses.replace(config, sources=sources, num_tasks=1, duplicates="drop"), tmp_path / str(has_ids))
        expected = expected or found
        assert found == expected and found[0] > 0 and not found[1][0] & found[1][1]

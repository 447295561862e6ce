"""One bad repository stops nothing: it is left out whole, counted, listed, and packed once it is mended; the ledger balances."""

import dataclasses
import json
from pathlib import Path

import pytest

from data_prep.execution.finish import finish
from data_prep.execution.pack import pack_dataset
from data_prep.execution.source_states import states_path
from data_prep.execution.status import status_of
from data_prep.pipeline.assignment import assign_sources
from data_prep.sources import directory
from data_prep.sources.registry import SourcesConfig
from data_prep.tools.dropped import read_dropped
from data_prep.tools.verify import verify
from mose.dataset.manifest import MANIFEST_NAME
from mose.errors import MoseError
from tests.data_prep.repositories import checksums, make_config, make_repositories

BAD = "repository-05"


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The last file of one repository cannot be read, whoever runs the tests."""
    read = directory.read_content

    def refuse(path: Path) -> bytes:
        if path == sorted(path.parent.iterdir())[-1] and path.parent.name == BAD:
            raise MoseError(f"{path}: file cannot be read: Permission denied")
        return read(path)

    monkeypatch.setattr(directory, "read_content", refuse)
    return monkeypatch


def test_it_is_left_out_whole_and_packed_once_mended(tmp_path: Path, locked: pytest.MonkeyPatch) -> None:
    config = make_config(tmp_path)
    pack_dataset(config)
    dataset = tmp_path / "dataset"
    statistics = json.loads((dataset / MANIFEST_NAME).read_text())["statistics"]
    assert [bad["name"] for bad in statistics["bad_repositories"]] == [BAD]
    assert [bad.name for bad in status_of(dataset).bad_repositories] == [BAD]
    files = sorted((tmp_path / "repositories" / BAD).iterdir())
    listed = [line for line in read_dropped(dataset, "bad_repository") if line[0] == BAD]
    assert [line[1] for line in listed] == [f"/{path.name}" for path in files[:-1]]
    assert all("Permission denied" in line[5] for line in listed)
    assert not any(f'"{BAD}"' in text for text in map(str, statistics["splits"].values()))
    assert verify(dataset).problems == []
    locked.undo()
    pack_dataset(config)
    assert verify(dataset).problems == []
    mended = checksums(dataset, without=("config.yaml",))
    pack_dataset(dataclasses.replace(config, output=str(tmp_path / "never-bad")))
    assert checksums(tmp_path / "never-bad", without=("config.yaml",)) == mended


def test_links_are_counted_and_what_is_beside_the_repositories_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tmp_path)
    (tmp_path / "repositories" / BAD / "link.py").symlink_to("file_0.py")
    (tmp_path / "repositories" / "loose.py").write_text("x = 1\n")
    pack_dataset(config)
    ledger = json.loads((tmp_path / "dataset" / MANIFEST_NAME).read_text())["statistics"]["ledger"]
    assert ledger["seen"]["directory"]["links_and_special_files"] == 1
    assert "not read, because not a folder of its own: 'loose.py'\n" in capsys.readouterr().err


def test_more_than_the_limit_are_refused_and_the_limit_may_change(tmp_path: Path, locked: pytest.MonkeyPatch) -> None:
    config = make_config(tmp_path, max_bad_repositories=0)
    with pytest.raises(MoseError, match=r"max_bad_repositories: 1 repositories cannot be read, expected at most 0: .*Permission"):
        pack_dataset(config)
    pack_dataset(dataclasses.replace(config, max_bad_repositories=1))
    finish(tmp_path / "dataset")


def test_the_limit_holds_in_each_task_and_over_all_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(tmp_path, repositories=36, num_tasks=2)
    bad = [refs[0].name for refs in assign_sources(config).refs]
    read = directory.read_content

    def refuse(path: Path) -> bytes:
        if path.parent.name in bad:
            raise MoseError(f"{path}: file cannot be read: Permission denied")
        return read(path)

    monkeypatch.setattr(directory, "read_content", refuse)
    with pytest.raises(MoseError, match="max_bad_repositories: 1 repositories cannot be read, expected at most 0"):
        pack_dataset(dataclasses.replace(config, max_bad_repositories=0), task=0)
    one = dataclasses.replace(config, max_bad_repositories=1)
    for task in range(2):
        pack_dataset(one, task=task)
    with pytest.raises(MoseError, match="max_bad_repositories: 2 repositories cannot be read, expected at most 1"):
        finish(tmp_path / "dataset")
    pack_dataset(dataclasses.replace(config, max_bad_repositories=2))


def test_a_changed_repository_is_named_with_both_states(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    pack_dataset(config, task=0)
    sums = checksums(tmp_path / "dataset")
    changed = tmp_path / "repositories" / "repository-07"
    files = len(list(changed.iterdir()))
    (changed / "new.py").write_text("x = 1\n")
    expected = (
        rf"sources.json: repository-07 changed since .*: was {files} files .*, is {files + 1} files .*; expected the same: put"
    )
    with pytest.raises(MoseError, match=expected):
        pack_dataset(config)
    assert checksums(tmp_path / "dataset") == sums
    (changed / "new.py").unlink()
    pack_dataset(config)
    # A data set of an earlier version has no such record.
    states_path(tmp_path / "dataset").unlink()
    pack_dataset(config)


@pytest.mark.parametrize("side", ["seen", "packed", "dropped"])
def test_verify_checks_both_sides_of_the_ledger(tmp_path: Path, side: str) -> None:
    config = make_config(tmp_path, sources=SourcesConfig(repositories=(str(make_repositories(tmp_path / "all", 3)),)))
    pack_dataset(dataclasses.replace(config, num_tasks=1, held_out_fraction=0.0))
    path = tmp_path / "dataset" / MANIFEST_NAME
    values = json.loads(path.read_text())
    ledger = values["statistics"]["ledger"]
    assert ledger["packed"]["files"] == ledger["seen"]["directory"]["files"] > 0
    assert verify(tmp_path / "dataset").problems == []
    if side == "dropped":
        ledger["dropped"]["empty"] = {"files": 1, "bytes": 0}
        ledger["packed"]["files"] -= 1
    else:
        (ledger["packed"] if side == "packed" else ledger["seen"]["directory"])["files"] += 1
    path.write_text(json.dumps(values))
    assert "statistics.ledger" in verify(tmp_path / "dataset").problems[0]

"""What each task reads: listed repositories by a seeded hash of their names, or whole parts of a grouped folder."""

from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.execution.finish import finish
from data_prep.execution.pack import pack_dataset
from data_prep.execution.status import status_of
from data_prep.pipeline.assignment import assign_sources
from data_prep.pipeline.config import PackConfig
from data_prep.sources import registry as source
from data_prep.sources.ingest.grouping.config import GroupConfig
from data_prep.sources.ingest.grouping.run import group
from data_prep.sources.registry import SourcesConfig
from data_prep.tools.verify import verify
from mose.errors import MoseError
from tests.data_prep.execution.test_object_store import as_parquet
from tests.data_prep.repositories import checksums, make_config

PARTS = 5


@pytest.fixture
def grouped(tmp_path: Path) -> PackConfig:
    """A config whose sources are 60 repositories grouped into 5 parts, read by 2 tasks."""
    config = make_config(tmp_path, 60, num_tasks=2)
    rows = as_parquet(config, tmp_path)
    group(GroupConfig(inputs=(str(rows),), output=str(tmp_path / "grouped"), num_parts=PARTS))
    return replace(config, sources=SourcesConfig(stack_v2=(str(tmp_path / "grouped"),)))


def test_every_part_is_read_by_one_task(grouped: PackConfig) -> None:
    for num_tasks in range(1, PARTS + 1):
        assignment = assign_sources(replace(grouped, num_tasks=num_tasks))
        inputs = [assignment.inputs_of(task) for task in range(num_tasks)]
        assert all(part.number % num_tasks == task for task, own in enumerate(inputs) for part in own.parts)
        assert sorted(part.number for own in inputs for part in own.parts) == list(range(PARTS))
        assert sum(own.expected_repositories for own in inputs) == 60
        names = [ref.name for own in inputs for ref, _ in own.read(grouped.sources)]
        assert len(set(names)) == len(names) == 60


def test_more_tasks_than_parts_are_refused(grouped: PackConfig) -> None:
    expected = r"num_tasks: is 6, expected at most 5, the parts of .*grouped: a task reads whole parts"
    with pytest.raises(MoseError, match=expected):
        pack_dataset(replace(grouped, num_tasks=6), 0)
    assert not Path(grouped.output).exists()


def test_no_repository_of_a_grouped_folder_is_listed(grouped: PackConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("listed")

    monkeypatch.setattr("data_prep.pipeline.assignment.list_repositories", refuse)
    monkeypatch.setattr(source, "list_repositories", refuse)
    assignment = assign_sources(grouped)
    assert assignment.refs == ()
    assert [len(assignment.inputs_of(task).parts) for task in (0, 1)] == [3, 2]


def test_a_grouped_folder_becomes_a_data_set(grouped: PackConfig, tmp_path: Path) -> None:
    for task in (1, 0):
        pack_dataset(grouped, task)
    finish(tmp_path / "dataset", checksums=True)
    assert status_of(tmp_path / "dataset").is_complete
    assert verify(tmp_path / "dataset").problems == []
    whole = replace(grouped, output=str(tmp_path / "whole"), num_workers=2)
    pack_dataset(whole)
    assert checksums(tmp_path / "dataset") == checksums(tmp_path / "whole")


def test_a_folder_grouped_again_otherwise_is_another_input(grouped: PackConfig, tmp_path: Path) -> None:
    pack_dataset(grouped, 0)
    rows = tmp_path / "rows.parquet"
    group(GroupConfig(inputs=(str(rows),), output=str(tmp_path / "again"), num_parts=PARTS, seed=1))
    (tmp_path / "grouped").rename(tmp_path / "old")
    (tmp_path / "again").rename(tmp_path / "grouped")
    with pytest.raises(MoseError, match=r"inputs.json: sources: is \w+ in this data set, now \w+"):
        pack_dataset(grouped, 1)

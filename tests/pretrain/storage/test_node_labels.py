"""Labels that the ranks of a node share: read once, equal to the indexes', gone with the last rank, left out where too large."""

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest

from mose.dataset.row_index import RowIndex
from pretrain.storage import node_labels
from pretrain.storage.local_rows import LocalRows, SplitTable
from pretrain.storage.node_labels import NodeLabels, open_node_labels


@pytest.fixture(autouse=True)
def few_rows_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_labels, "LEAST_ROWS", 1)


def opened(dataset: Path, memory: Path) -> NodeLabels:
    labels = open_node_labels(SplitTable(dataset, "train"), 4, memory)
    assert labels is not None
    return labels


def test_the_labels_are_those_of_the_indexes(dataset: Path, tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(0, len(SplitTable(dataset, "train")), 50)
    with contextlib.closing(LocalRows(dataset, "train")) as alone, contextlib.closing(LocalRows(dataset, "train")) as sharing:
        sharing.share_labels(opened(dataset, tmp_path))
        for name in ("mixed", "num_tokens", "num_snippets"):
            assert np.array_equal(getattr(alone.labels(numbers), name), getattr(sharing.labels(numbers), name))


def test_the_second_rank_opens_no_index(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(dataset, tmp_path)
    monkeypatch.setattr(RowIndex, "__init__", None)
    second = opened(dataset, tmp_path)
    assert np.array_equal(first.entries(np.arange(9)), second.entries(np.arange(9)))
    first.close()
    assert second.path.is_file()
    assert second.entries(np.arange(9)).shape == (9,)
    second.close()
    assert list(second.path.parent.iterdir()) == []


def test_what_a_killed_run_left_is_deleted(dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / f"mose-{os.getuid()}"
    folder.mkdir()
    for name in ("labels-old", "labels-old.lock", "labels-cut.partial", "labels-cut.lock"):
        (folder / name).write_bytes(b"rows")
    labels = opened(dataset, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [f"{labels.path.name}{end}" for end in ("", ".build", ".lock")]
    labels.close()


def test_it_is_left_out_where_it_does_not_pay_or_fit(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = SplitTable(dataset, "train")
    assert open_node_labels(table, 1, tmp_path) is None
    assert open_node_labels(table, 4, tmp_path / "absent") is None
    monkeypatch.setattr(node_labels, "_SHARE_OF_FREE", 0.0)
    assert open_node_labels(table, 4, tmp_path) is None
    monkeypatch.setattr(node_labels, "LEAST_ROWS", len(table) + 1)
    assert open_node_labels(table, 4, tmp_path) is None


def test_another_users_folder_is_not_used(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = os.getuid() + 1
    (tmp_path / f"mose-{other}").mkdir()
    monkeypatch.setattr(node_labels.os, "getuid", lambda: other)
    assert open_node_labels(SplitTable(dataset, "train"), 4, tmp_path) is None


def test_other_content_is_another_table(dataset: Path, tmp_path: Path) -> None:
    first, table = opened(dataset, tmp_path), SplitTable(dataset, "held_out")
    second = open_node_labels(table, 4, tmp_path)
    assert second is not None and second.path != first.path
    assert second.entries(np.arange(len(table))).shape == (len(table),)
    second.close()
    first.close()

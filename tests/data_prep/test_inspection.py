"""inspect and stats: the row that is printed is the row that is stored, and says where it comes from."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_prep.dataset import pack_dataset
from data_prep.inspection import locate, show_row
from data_prep.summary import cautions, print_summary
from mose.errors import MoseError
from mose.manifest import read_manifest
from tests.data_prep.repositories import make_config


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    pack_dataset(make_config(folder, 40))
    return folder


def test_a_row_is_shown_with_the_text_and_place_of_each_snippet(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = read_manifest(packed / "dataset")
    row = manifest.shards("train")[0].rows + 1
    show_row(packed / "dataset", "train", row)
    printed = capsys.readouterr().out
    entry = manifest.shards("train")[1]
    assert printed.startswith(f"{entry.path} row 1: mixed ")
    lines = [line for line in pq.read_table(packed / "dataset" / entry.lineage_path).to_pylist() if line["row"] == 1]
    assert printed.count("<sep>") == len(lines)
    for line in lines:
        content = (packed / "repositories" / line["repository"] / line["path"].lstrip("/")).read_bytes()
        assert content[line["start_byte"] : line["end_byte"]].decode().strip() in printed
        assert f"<sep> {line['repository']} {line['path']} (Python, " in printed


def test_row_numbers_run_through_the_shards(packed: Path) -> None:
    manifest = read_manifest(packed / "dataset")
    first, second = manifest.shards("train")[:2]
    assert locate(manifest, "train", 0) == (first, 0)
    assert locate(manifest, "train", first.rows - 1) == (first, first.rows - 1)
    assert locate(manifest, "train", first.rows) == (second, 0)
    with pytest.raises(MoseError, match=rf"row: is {manifest.rows('train')}, expected 0 to {manifest.rows('train') - 1}"):
        locate(manifest, "train", manifest.rows("train"))
    with pytest.raises(MoseError, match="split 'test' has no rows"):
        locate(manifest, "test", 0)


def test_stats_show_the_figures_of_the_manifest(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = read_manifest(packed / "dataset")
    print_summary(manifest)
    printed = capsys.readouterr().out
    counts = manifest.statistics["splits"]["train"]
    for text in (f"{counts['rows']:,}", f"{counts['fill']:.1%}", f"{counts['mixed_share']:.1%}", "Python", "packed dense"):
        assert text in printed


def test_stats_warn_of_unbalanced_labels_and_unusable_repositories() -> None:
    split = {"mixed_share": 0.5, "repositories": 9}
    statistics = {
        "wanted_mixed_share": 0.5,
        "splits": {"train": split, "held_out": {"mixed_share": 0.1, "repositories": 1}},
        "unusable_repositories": 0,
        "unusable_examples": [],
    }
    assert cautions(statistics) == ["held_out: 10.0% of rows are mixed, from 1 repositories in use"]
    statistics = {**statistics, "splits": {"train": split}, "unusable_repositories": 2, "unusable_examples": ["a", "b"]}
    assert cautions(statistics) == ["2 repositories have no usable file, among them a, b"]

"""A data set: the same bytes for any number of workers and interruptions, and a clear line for what does not belong to it."""

import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

from data_prep.execution.finish import finish
from data_prep.execution.lease import Lease, LeaseRecord
from data_prep.execution.pack import pack_dataset
from data_prep.execution.task_files import lease_path, write_failure
from data_prep.filters.config import FiltersConfig
from data_prep.filters.opt_out import load_opt_out
from data_prep.packing.config import PackingConfig
from data_prep.pipeline.config import PackConfig
from data_prep.sources.repositories import RepositoryRef
from data_prep.tools.verify import verify
from mose.config import load_config
from mose.dataset.manifest import SPLITS, read_manifest
from mose.dataset.shard_format import ShardReader
from mose.errors import MoseError
from mose.files.atomic_file import write_json
from tests.data_prep.repositories import checksums, make_byte_level_tokenizer, make_config
from tests.datasets import make_tokenizer

MANY = 40


def test_the_number_of_workers_changes_no_byte(tmp_path: Path) -> None:
    found = []
    for workers in (1, 2):
        config = make_config(tmp_path, MANY, output=str(tmp_path / f"workers-{workers}"), num_workers=workers)
        pack_dataset(config)
        found.append(checksums(Path(config.output)))
    assert found[0] == found[1]
    assert "manifest.json" in found[0]
    assert sum(name.startswith("train/shard") for name in found[0]) > 1


def test_a_complete_data_set_is_not_touched_again(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    pack_dataset(config)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "dataset").rglob("shard-*")}
    sums = checksums(tmp_path / "dataset")
    pack_dataset(replace(config, num_workers=2))
    assert checksums(tmp_path / "dataset") == sums
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_a_killed_process_left_of_a_task_that_is_done_is_removed(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    pack_dataset(config)
    sums = checksums(tmp_path / "dataset")
    write_failure(tmp_path / "dataset", 0, "was killed by signal 9")
    # Older than any heartbeat of a living process.
    record = LeaseRecord("token", "host", 1, "machine", "1", "", "0", 0.0, 0.0)
    write_json(lease_path(tmp_path / "dataset", 0), asdict(record))
    finish(tmp_path / "dataset")
    assert checksums(tmp_path / "dataset") == sums


def test_missing_and_truncated_shards_are_made_again(tmp_path: Path) -> None:
    config = make_config(tmp_path, MANY)
    pack_dataset(config)
    sums = checksums(tmp_path / "dataset")
    shards = sorted((tmp_path / "dataset" / "train").glob("shard-*"))
    shards[0].unlink()
    os.truncate(shards[1], 1000)
    with pytest.raises(MoseError, match=r"shard-000000.tar: missing, or of another size"):
        finish(tmp_path / "dataset")
    pack_dataset(config)
    assert checksums(tmp_path / "dataset") == sums


def test_tasks_one_by_one_then_finish_give_the_same(tmp_path: Path) -> None:
    config = make_config(tmp_path, MANY)
    pack_dataset(config)
    parts = replace(config, output=str(tmp_path / "parts"))
    for task in (2, 0):
        assert pack_dataset(parts, task) is None
    with pytest.raises(MoseError, match=r"parts: tasks: 1 of 3 have not finished; run them first: --array=1$"):
        finish(tmp_path / "parts")
    assert not (tmp_path / "parts" / "manifest.json").exists()
    pack_dataset(parts, 1)
    finish(tmp_path / "parts")
    assert checksums(tmp_path / "parts") == checksums(tmp_path / "dataset")


def test_webdataset_reads_the_same_tokens_and_labels_as_our_reader(tmp_path: Path) -> None:
    pack_dataset(make_config(tmp_path))
    manifest = read_manifest(tmp_path / "dataset")
    for split in SPLITS:
        for entry in manifest.shards(split):
            path = tmp_path / "dataset" / entry.path
            reader = ShardReader(path, manifest.layout(), entry.rows)
            rows = np.arange(entry.rows)
            tokens, labels = reader.tokens(rows), reader.labels(rows)
            samples = list(webdataset.WebDataset(str(path), shardshuffle=False).decode())
            assert len(samples) == entry.rows
            for row, sample in enumerate(samples):
                assert sample["npy"].dtype == np.uint16
                np.testing.assert_array_equal(sample["npy"], tokens[row])
                expected = {name: int(getattr(labels, name)[row]) for name in ("mixed", "num_tokens", "num_snippets")}
                assert sample["json"] == expected


def test_the_manifest_counts_what_the_shards_hold(tmp_path: Path) -> None:
    packing = PackingConfig(sequence_length=512, pool_tokens=100_000)
    manifest = pack_dataset(make_config(tmp_path, MANY, packing=packing))
    assert manifest is not None
    assert verify(tmp_path / "dataset").problems == []
    for split in SPLITS:
        counts = manifest.statistics["splits"][split]
        assert counts["rows"] == manifest.rows(split)
        assert counts["fill"] == pytest.approx(manifest.tokens(split) / (manifest.rows(split) * 512))
        assert counts["kept_token_share"] == 1
        assert sum(counts["tokens_by_language"].values()) == counts["text_tokens"]
    train = manifest.statistics["splits"]["train"]
    assert train["fill"] > 0.9
    assert 0.45 < train["mixed_share"] < 0.55
    assert train["single_snippet_share"] < 0.03


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seed": 7}, r"config.yaml: seed: is 0 in this data set, 7 was asked for"),
        ({"num_tasks": 4}, r"config.yaml: num_tasks: is 3 in this data set, 4 was asked for"),
        ({"packing": PackingConfig(sequence_length=64, pool_tokens=4000)}, r"packing.sequence_length: is 128 .* 64 was asked"),
    ],
)
def test_a_folder_begun_with_another_config_is_refused(tmp_path: Path, changes: dict[str, object], expected: str) -> None:
    pack_dataset(make_config(tmp_path), task=0)
    sums = checksums(tmp_path / "dataset", without=())
    with pytest.raises(MoseError, match=expected):
        pack_dataset(make_config(tmp_path, **changes))
    assert checksums(tmp_path / "dataset", without=()) == sums


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    pack_dataset(config, task=0)
    make_tokenizer(tmp_path / "other", 620)
    with pytest.raises(MoseError, match=r"inputs.json: tokenizer: is \w+ in this data set, now \w+: the tokenizer's content"):
        pack_dataset(replace(config, tokenizer=str(tmp_path / "other")))


def test_a_run_that_finished_no_task_binds_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            "data_prep.execution.task_runner.run_task", lambda *arguments: (_ for _ in ()).throw(MoseError("not readable"))
        )
        with pytest.raises(MoseError, match="not readable"):
            pack_dataset(make_config(tmp_path, seed=5))
    make_byte_level_tokenizer(tmp_path / "byte-level")
    config = make_config(tmp_path, tokenizer=str(tmp_path / "byte-level"))
    pack_dataset(config)
    assert load_config(PackConfig, tmp_path / "dataset" / "config.yaml") == config.resolve()
    assert not (tmp_path / "dataset" / "tokenizer.model").exists()
    assert verify(tmp_path / "dataset").problems == []


def test_sources_that_changed_between_two_runs_are_refused(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    pack_dataset(config, task=0)
    new = tmp_path / "repositories" / "new"
    new.mkdir()
    (new / "a.py").write_text("x = 1\n")
    with pytest.raises(MoseError, match=r"inputs.json: sources: is \w+ in this data set, now \w+: the repositories of"):
        pack_dataset(config)


def test_list_files_count_by_their_content_not_by_their_place(tmp_path: Path) -> None:
    lists = [tmp_path / name for name in ("one.txt", "copy.txt", "other.txt")]
    for path, text in zip(lists, ("repository-03\n", "repository-03\n", "repository-04\n"), strict=True):
        path.write_text(text)
    config = make_config(tmp_path, filters=FiltersConfig(opt_out=(str(lists[0]),)))
    pack_dataset(config, task=0)
    pack_dataset(replace(config, filters=FiltersConfig(opt_out=(str(lists[1]),))), task=1)
    expected = "inputs.json: lists: .*: the content of the opt-out or decontamination files changed since it was begun"
    for other in ((str(lists[2]),), ()):
        with pytest.raises(MoseError, match=expected):
            pack_dataset(replace(config, filters=FiltersConfig(opt_out=other)), task=2)
    lists[0].write_text("# nobody\n")
    load_opt_out.cache_clear()  # as in another process
    with pytest.raises(MoseError, match=expected):
        pack_dataset(config, task=2)


def test_a_data_set_can_be_merged_where_its_inputs_are_not(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    for task in range(3):
        pack_dataset(config, task)
    for name in ("repositories", "tokenizer"):
        shutil.rmtree(tmp_path / name)
    (tmp_path / "dataset").rename(tmp_path / "moved")
    finish(tmp_path / "moved", checksums=True)
    assert verify(tmp_path / "moved").problems == []


def test_finish_with_checksums_sees_what_sizes_do_not_show(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    pack_dataset(config)
    shard = tmp_path / "dataset/train/shard-000000.tar"
    content = bytearray(shard.read_bytes())
    content[4000] ^= 255
    shard.write_bytes(content)
    finish(tmp_path / "dataset")
    with pytest.raises(MoseError, match=r"shard-000000.tar: its SHA-256 is not the one that task-000000.json says"):
        finish(tmp_path / "dataset", checksums=True)


def test_finish_counts_the_rows_of_an_index(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    pack_dataset(config)
    index = tmp_path / "dataset/train/index-000000.npy"
    os.truncate(index, index.stat().st_size - 16)
    with pytest.raises(MoseError, match=r"index-000000.npy: missing, or of another size than task-000000.json says"):
        finish(tmp_path / "dataset")
    sums = checksums(tmp_path / "dataset")
    pack_dataset(config)
    assert checksums(tmp_path / "dataset").keys() == sums.keys()
    finish(tmp_path / "dataset")


def test_a_config_that_was_edited_or_inputs_that_are_gone_are_named(tmp_path: Path) -> None:
    pack_dataset(make_config(tmp_path))
    path = tmp_path / "dataset/config.yaml"
    path.write_text(path.read_text().replace("seed: 0", "seed: 1"))
    with pytest.raises(MoseError, match=r"config.yaml: was changed since the data set was begun"):
        finish(tmp_path / "dataset")
    (tmp_path / "dataset/tasks/inputs.json").write_text("[")
    with pytest.raises(MoseError, match=r"inputs.json: not a record of inputs"):
        finish(tmp_path / "dataset")
    (tmp_path / "dataset/tasks/inputs.json").unlink()
    with pytest.raises(MoseError, match=r"inputs.json: no such file"):
        finish(tmp_path / "dataset")


def test_a_data_set_that_is_being_begun_with_another_config_is_refused(tmp_path: Path) -> None:
    """No task has finished yet, but one is running: it binds the folder."""
    config = make_config(tmp_path)
    pack_dataset(config, 0)
    (tmp_path / "dataset/tasks/task-000000.json").unlink()
    with Lease(tmp_path / "dataset", 0), pytest.raises(MoseError, match=r"config.yaml: seed: is 0 in this data set, 1 was asked"):
        pack_dataset(replace(config, seed=1), 1)
    pack_dataset(replace(config, seed=1), 1)


def test_a_folder_that_is_not_a_data_set_is_refused_and_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "thesis.txt").write_text("important")
    with pytest.raises(MoseError, match=r"dataset: output: holds files but no config.yaml"):
        pack_dataset(make_config(tmp_path))
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    with pytest.raises(MoseError, match=r"thesis.txt: output: is a file"):
        pack_dataset(make_config(tmp_path, output=str(folder / "thesis.txt")))


def test_a_task_number_out_of_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MoseError, match=r"task: is 3, expected 0 to 2"):
        pack_dataset(make_config(tmp_path), task=3)


def test_no_usable_file_anywhere_leaves_no_folder(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    for path in (tmp_path / "repositories").rglob("*.py"):
        path.write_bytes(b"\0")
    with pytest.raises(MoseError, match=r"sources: none of 24 repositories gave a row; .* dropped were: binary \d+"):
        pack_dataset(config)
    assert not (tmp_path / "dataset").exists()


def test_a_repository_that_cannot_be_read_fails_in_a_worker_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = RepositoryRef("gone", "directory", str(tmp_path / "gone"))
    refs = [*[RepositoryRef(f"g{i}", "directory", str(tmp_path / "gone")) for i in range(30)], gone]
    monkeypatch.setattr("data_prep.pipeline.assignment.list_repositories", lambda sources: refs)
    with pytest.raises(MoseError, match="gone"):
        pack_dataset(make_config(tmp_path, num_workers=2))
    assert not list((tmp_path / "dataset").rglob("*.tar"))

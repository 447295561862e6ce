"""One task: which repositories it takes, what its shard and lineage say, and that it appears whole or not at all."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep.filters.decontamination import DecontaminationConfig
from data_prep.packing.config import PackingConfig
from data_prep.pipeline import chunker as chunker_module
from data_prep.pipeline.assignment import MIN_REPOSITORIES_PER_TASK, assign_repositories
from data_prep.pipeline.config import PackConfig
from data_prep.pipeline.task import run_task
from data_prep.pipeline.task_marker import TaskMarker, TaskProgress, marker_path, read_marker
from data_prep.sources.registry import list_repositories, read_repository
from data_prep.sources.repositories import RepositoryRef, SourceFile, split_of
from data_prep.tokenization.chunking import chunk_files
from data_prep.tools.dropped import read_dropped
from mose.dataset.manifest import SPLITS
from mose.dataset.packed_sequence import snippet_bounds
from mose.dataset.packing_modes import PackingMode
from mose.dataset.row_index import RowIndex, token_checksums
from mose.dataset.shard_format import RecordLayout, ShardReader
from mose.errors import MoseError
from mose.files.atomic_file import file_sha256
from mose.files.storage import storage_path
from mose.tokenizer import load_tokenizer
from tests.data_prep.repositories import SEQUENCE_LENGTH, checksums, make_config


def run_only_task(folder: Path, **changes: object) -> tuple[Path, TaskMarker]:
    config = make_config(folder, num_tasks=1, **changes).resolve()
    return Path(config.output), run_task(config, 0, read_all(config), "listing")


def read_all(config: PackConfig) -> Iterator[tuple[RepositoryRef, Iterator[SourceFile]]]:
    return ((ref, read_repository(ref, config.sources)) for ref in list_repositories(config.sources))


def test_every_repository_is_assigned_once_whatever_the_number_of_tasks(tmp_path: Path) -> None:
    refs = [RepositoryRef(f"repository-{i}", "directory", "") for i in range(100)]
    for num_tasks in (1, 3, 200):
        config = make_config(tmp_path, num_tasks=num_tasks)
        assigned = assign_repositories(refs, config)
        assert len(assigned) == num_tasks
        assert sorted(ref for part in assigned for ref in part) == sorted(refs)
        assert assigned == assign_repositories(refs[::-1], config)


def test_no_task_gets_too_few_repositories_of_a_split_to_mix(tmp_path: Path) -> None:
    refs = [RepositoryRef(f"repository-{i}", "directory", "") for i in range(60)]
    config = make_config(tmp_path, num_tasks=50)
    for part in assign_repositories(refs, config):
        for split in SPLITS:
            members = [ref for ref in part if split_of(ref.name, config.seed, config.held_out_fraction) == split]
            assert not members or len(members) >= MIN_REPOSITORIES_PER_TASK


def test_a_task_writes_shards_lineage_and_marker(tmp_path: Path) -> None:
    dataset, result = run_only_task(tmp_path)
    assert read_marker(marker_path(dataset, 0)) == result
    for split in SPLITS:
        entry = result.shards[split]
        assert (dataset / entry.path).stat().st_size == entry.num_bytes
        assert entry.rows == result.rows[split]["rows"] > 0
        assert entry.tokens == result.rows[split]["tokens"]


def test_lineage_leads_back_to_the_bytes_of_each_snippet(tmp_path: Path) -> None:
    dataset, result = run_only_task(tmp_path)
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    for entry in result.shards.values():
        reader = ShardReader(dataset / entry.path, RecordLayout(SEQUENCE_LENGTH, tokenizer.dtype), entry.rows)
        rows = range(entry.rows)
        labels, tokens = reader.labels(list(rows)), reader.tokens(list(rows))  # type: ignore[arg-type]
        lines = iter(pq.read_table(dataset / entry.lineage_path).to_pylist())
        for row in rows:
            bounds = snippet_bounds(tokens[row], int(labels.num_tokens[row]), tokenizer.special)
            for snippet, (start, end) in enumerate(bounds):
                line = next(lines)
                assert (line["row"], line["snippet"], line["num_tokens"]) == (row, snippet, end - start)
                content = (tmp_path / "repositories" / line["repository"] / line["path"].lstrip("/")).read_bytes()
                text = content[line["start_byte"] : line["end_byte"]].decode()
                assert tokenizer.decode(tokens[row][start:end]) == text
        assert next(lines, None) is None


def test_all_text_is_in_the_rows_and_the_splits_share_no_repository(tmp_path: Path) -> None:
    dataset, result = run_only_task(tmp_path)
    covered: dict[tuple[str, str], list[tuple[int, int]]] = {}
    repositories = []
    for entry in result.shards.values():
        lines = pq.read_table(dataset / entry.lineage_path).to_pylist()
        repositories.append({line["repository"] for line in lines})
        for line in lines:
            covered.setdefault((line["repository"], line["path"]), []).append((line["start_byte"], line["end_byte"]))
    files = list((tmp_path / "repositories").rglob("*.py"))
    assert len(covered) == len(files) == result.filters["reasons"]["kept"]["files"]
    for (repository, path), spans in covered.items():
        size = (tmp_path / "repositories" / repository / path.lstrip("/")).stat().st_size
        ends = sorted(spans)
        assert [start for start, _ in ends] == [0, *(end for _, end in ends[:-1])]
        assert ends[-1][1] == size
    assert not repositories[0] & repositories[1]


def test_a_held_out_repository_gives_its_first_bytes_and_the_rest_is_counted(tmp_path: Path) -> None:
    _, whole = run_only_task(tmp_path / "whole")
    sizes = {path: path.stat().st_size for path in (tmp_path / "whole" / "repositories").rglob("*.py")}
    limit = 3 * max(sizes.values())
    dataset, result = run_only_task(tmp_path / "limited", held_out_repository_bytes=limit)
    lineage = pq.read_table(dataset / result.shards["held_out"].lineage_path).to_pylist()
    files = {(line["repository"], line["path"]) for line in lineage}
    read: dict[str, int] = {}
    for repository, path in files:
        read[repository] = read.get(repository, 0) + sizes[tmp_path / "whole" / "repositories" / repository / path.lstrip("/")]
    assert max(read.values()) <= limit
    left_out = result.filters["reasons"]["over_held_out_repository_bytes"]["files"]
    assert left_out > 0
    assert left_out == whole.filters["reasons"]["kept"]["files"] - result.filters["reasons"]["kept"]["files"]
    assert result.rows["train"] == whole.rows["train"]


@pytest.mark.parametrize("mode", ["faithful", "nsp"])
def test_the_other_modes_write_rows_too(tmp_path: Path, mode: str) -> None:
    packing = PackingConfig(mode=PackingMode(mode), sequence_length=512)
    _, result = run_only_task(tmp_path, packing=packing)
    counts = result.rows["train"]
    assert counts["rows"] > 0
    assert counts["mixed_rows"] > 0
    if mode == "nsp":
        assert counts["snippets"] == 2 * counts["rows"]
        assert counts["single_file_rows"] == counts["rows"] - counts["mixed_rows"]


def test_a_split_without_rows_has_no_shard(tmp_path: Path) -> None:
    dataset, result = run_only_task(tmp_path, held_out_fraction=0.0)
    assert list(result.shards) == ["train"]
    assert not (dataset / "held_out").exists()


def test_an_error_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def chunk_once_too_often(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls > 20:
            assert list((tmp_path / "dataset" / "train").iterdir()) == [], "rows on disk have no name"
            raise MoseError("a file went away")
        return chunk_files(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(chunker_module, "chunk_files", chunk_once_too_often)
    monkeypatch.setattr(chunker_module, "BATCH_CHARACTERS", 100)
    with pytest.raises(MoseError, match="a file went away"):
        run_only_task(tmp_path, packing=PackingConfig(sequence_length=64, pool_tokens=64))
    assert [path for path in (tmp_path / "dataset").rglob("*") if path.is_file()] == []


def test_repositories_without_a_usable_file_are_named(tmp_path: Path) -> None:
    make_config(tmp_path)
    for name, content in (("empty", b" \n"), ("binary", b"a\0b" * 9), ("other", b"\xff\xfe\xfd caf\xe9\n" * 9)):
        repository = tmp_path / "repositories" / name
        repository.mkdir()
        (repository / "file.py").write_bytes(content)
    (tmp_path / "repositories" / "nothing").mkdir()
    _, result = run_only_task(tmp_path)
    assert result.unusable_repositories == 4
    assert sorted(result.unusable_examples) == ["binary", "empty", "nothing", "other"]
    reasons = result.filters["reasons"]
    assert [reasons[name]["files"] for name in ("empty", "binary", "undecodable")] == [1, 1, 1]


def test_rows_stand_in_random_order_over_all_pools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunker_module, "BATCH_CHARACTERS", 1000)
    dataset, result = run_only_task(tmp_path, held_out_fraction=0.0, packing=PackingConfig(sequence_length=64, pool_tokens=600))
    lines = pq.read_table(dataset / result.shards["train"].lineage_path).to_pylist()
    rows = result.rows["train"]["rows"]
    assert rows > 100
    assert [line["row"] for line in lines] == sorted(line["row"] for line in lines)
    numbers = [int(line["repository"].removeprefix("repository-")) for line in lines]
    # Pools are made of repositories that were read together: were rows left in the order of pools, this would be near 1.
    assert abs(np.corrcoef(np.arange(len(numbers)), numbers)[0, 1]) < 0.2


def test_index_says_what_shard_and_marker_say(tmp_path: Path) -> None:
    dataset, result = run_only_task(tmp_path)
    layout = RecordLayout(SEQUENCE_LENGTH, load_tokenizer(tmp_path / "tokenizer").dtype)
    for entry in result.shards.values():
        every = np.arange(entry.rows)
        reader, index = ShardReader(dataset / entry.path, layout, entry.rows), RowIndex(dataset / entry.index_path, entry.rows)
        for name in ("mixed", "num_tokens", "num_snippets"):
            assert (getattr(index.labels(every), name) == getattr(reader.labels(every), name)).all()
        assert (index.checksums(every) == token_checksums(reader.tokens(every))).all()
        for path, sha256 in (
            (entry.path, entry.sha256),
            (entry.index_path, entry.index_sha256),
            (entry.lineage_path, entry.lineage_sha256),
        ):
            assert file_sha256(dataset / path) == sha256


def test_the_bytes_are_a_function_of_the_repositories_in_their_order(tmp_path: Path) -> None:
    config = make_config(tmp_path, num_tasks=1).resolve()
    runs = []
    for name in ("one", "other"):
        run_task(replace(config, output=str(tmp_path / name)), 0, read_all(config), "listing")
        runs.append(checksums(tmp_path / name))
    assert runs[0] == runs[1]


def test_a_task_reports_how_far_it_is_after_each_repository(tmp_path: Path) -> None:
    config = make_config(tmp_path, num_tasks=1).resolve()
    seen: list[TaskProgress] = []
    result = run_task(config, 0, read_all(config), "listing", seen.append)
    assert sorted({progress.repositories for progress in seen} - {0}) == list(range(1, result.repositories + 1))
    assert seen[-1].files == result.filters["reasons"]["kept"]["files"]
    assert seen[-1].bytes == result.filters["reasons"]["kept"]["bytes"] > 0
    assert all(before.rows <= after.rows for before, after in itertools.pairwise(seen))


def test_chunks_that_repeat_an_evaluation_file_are_dropped_and_listed(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    victim = sorted((tmp_path / "repositories").rglob("*.py"))[5]
    evaluation = tmp_path / "evaluation.txt"
    evaluation.write_bytes(victim.read_bytes())
    decontamination = DecontaminationConfig(files=(str(evaluation),), ngram_words=5, min_words=5, min_distinct_words=3)
    dataset, result = run_only_task(tmp_path, decontamination=decontamination)
    lines = list(read_dropped(dataset, "contaminated"))
    name = "/" + str(victim.relative_to(tmp_path / "repositories" / victim.relative_to(tmp_path / "repositories").parts[0]))
    assert any(line[1] == name and "evaluation.txt" in line[5] for line in lines)
    contaminated = result.filters["contaminated"]["evaluation.txt"]
    assert contaminated == {"files": len(lines), "bytes": sum(line[4] for line in lines)}
    for entry in result.shards.values():
        kept = pq.read_table(dataset / entry.lineage_path).to_pylist()
        assert not [line for line in kept if line["path"] == name and line["repository"] == victim.parent.name]
    assert config.output == str(dataset)


def test_a_data_set_on_an_object_store_has_the_same_bytes(tmp_path: Path) -> None:
    config = make_config(tmp_path, num_tasks=1).resolve()
    run_task(config, 0, read_all(config), "listing")
    remote = replace(config, output=f"memory://{tmp_path.name}/dataset")
    run_task(remote, 0, read_all(config), "listing")
    store = storage_path(remote.output)
    for path in (path for path in Path(config.output).rglob("*") if path.is_file()):
        assert (store / str(path.relative_to(config.output))).read_bytes() == path.read_bytes()


def test_a_marker_that_is_no_marker_is_named(tmp_path: Path) -> None:
    path = tmp_path / "task-000000.json"
    assert read_marker(path) is None
    for text in ("{", "[]", '{"shards": {}}'):
        path.write_text(text)
        with pytest.raises(MoseError, match="task-000000.json: not a completion marker"):
            read_marker(path)

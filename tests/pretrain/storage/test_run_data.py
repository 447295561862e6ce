"""What a run reads, as its config names it: one data set or a mixture, local or staged, and what does not fit together."""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mose.config import load_config, save_config
from mose.dataset.manifest import read_manifest, write_manifest
from mose.errors import MoseError
from pretrain.config.identity import config_values
from pretrain.config.run import DataConfig, MixtureSource, PretrainConfig, StagingConfig
from pretrain.data.loader import BatchPlan, GlobalBatchLoader, validation_batches
from pretrain.storage.run_data import RunData, open_run_data, place_on_node
from tests.datasets import make_dataset
from tests.pretrain.cells import tiny_config
from tests.pretrain.data.test_loader import as_rows
from tests.pretrain.stores import upload_folder


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 rows of the same tokenizer and row length as `dataset`, with 6 held-out rows."""
    return make_dataset(tmp_path_factory.mktemp("second"), rows=40, sequence_length=48, seed=9, held_out_rows=6)


def config_of(dataset: Path, data: DataConfig) -> PretrainConfig:
    return dataclasses.replace(tiny_config(dataset), data=data)


def mixture_of(dataset: Path, second: Path) -> tuple[MixtureSource, ...]:
    return (MixtureSource(str(dataset), 3.0, "code"), MixtureSource(str(second), 1.0, "text"))


def blocks(**more: object) -> DataConfig:
    return DataConfig(block_rows=2, window_rows=16, **more)  # type: ignore[arg-type]


@contextlib.contextmanager
def opened(config: PretrainConfig) -> Iterator[RunData]:
    data = open_run_data(config)
    try:
        yield data
    finally:
        data.close()


def plan_of(config: PretrainConfig, data: RunData, data_rank: int = 0, data_ranks: int = 1) -> BatchPlan:
    special, ordinary = data.tokenizer.special, data.tokenizer.ordinary_ids()
    return BatchPlan(config.seed, 8, 2, special, ordinary, data_rank, data_ranks, block_rows=2, window_rows=16)


def shares(config: PretrainConfig, steps: range, data_ranks: int = 1) -> list[object]:
    with opened(config) as data:
        loaders = [
            GlobalBatchLoader(data.rows, plan_of(config, data, rank, data_ranks), data.mixture) for rank in range(data_ranks)
        ]
        return [as_rows([batch for loader in loaders for batch in loader.share(8 * k) if batch.num_rows]) for k in steps]


def test_a_mixture_is_the_same_at_any_layout_resumed_anywhere_staged_or_not(dataset: Path, second: Path, tmp_path: Path) -> None:
    plain = config_of(dataset, blocks(mixture=mixture_of(dataset, second)))
    expected = shares(plain, range(40))
    assert [shares(plain, range(step, step + 1), 2)[0] for step in (7, 23)] == [expected[7], expected[23]]
    remote = tuple(MixtureSource(str(upload_folder(path)), weight, name) for path, weight, name in _triples(dataset, second))
    staged = config_of(dataset, blocks(mixture=remote, staging=StagingConfig(str(tmp_path), 1 << 20)))
    assert shares(staged, range(11, 40)) == expected[11:]


def _triples(dataset: Path, second: Path) -> list[tuple[Path, float, str]]:
    return [(dataset, 3.0, "code"), (second, 1.0, "text")]


def test_rows_of_sources_are_numbered_one_after_the_other(dataset: Path, second: Path) -> None:
    with opened(config_of(dataset, blocks(mixture=mixture_of(dataset, second)))) as data:
        assert len(data.rows) == 140
        numbers = np.array([99, 100, 5, 139])
        tokens = data.rows.tokens(numbers)
        for part, inside, places in ((dataset, [99, 5], [0, 2]), (second, [0, 39], [1, 3])):
            with opened(config_of(dataset, blocks(dataset=str(part)))) as alone:
                assert np.array_equal(tokens[places], alone.rows.tokens(np.array(inside)))
        assert data.scalars(3, 4096)["data/rows/code"] == 3072


def test_one_source_alone_is_todays_run(dataset: Path) -> None:
    alone = config_of(dataset, blocks(dataset=str(dataset)))
    mixed = config_of(dataset, blocks(mixture=(MixtureSource(str(dataset), 5.0, "only"),)))
    assert shares(alone, range(15)) == shares(mixed, range(15))
    with opened(alone) as data:
        assert data.scalars(0, 100) == {}


def test_validation_takes_each_sources_first_held_out_rows_by_weight(dataset: Path, second: Path) -> None:
    config = config_of(dataset, blocks(mixture=mixture_of(dataset, second)))
    config = dataclasses.replace(config, intervals=dataclasses.replace(config.intervals, validation_rows=12))
    with opened(config) as data:
        assert data.held_out is not None
        rows = [row for batch in validation_batches(data.held_out, plan_of(config, data), 12) for row in batch.row_numbers_B]
        assert len(rows) == len(data.held_out) == 9 + 3
        with opened(config_of(dataset, blocks(dataset=str(second)))) as alone:
            assert alone.held_out is not None
            first = data.held_out.tokens(np.array([9, 10, 11]))
            assert np.array_equal(first, alone.held_out.tokens(np.arange(3)))


def test_a_staged_runs_held_out_rows_are_those_of_the_disk(dataset: Path, tmp_path: Path) -> None:
    staged = config_of(dataset, blocks(dataset=str(upload_folder(dataset)), staging=StagingConfig(str(tmp_path), 1 << 20)))
    with opened(staged) as far, opened(config_of(dataset, blocks(dataset=str(dataset)))) as near:
        assert far.held_out is not None
        assert near.held_out is not None
        assert np.array_equal(far.held_out.tokens(np.arange(10)), near.held_out.tokens(np.arange(10)))
        far.tokenizer.copy_to(tmp_path)
        assert (tmp_path / far.tokenizer.path.name).read_bytes() == near.tokenizer.path.read_bytes()


@pytest.mark.parametrize(("changes", "field"), [({"vocabulary_size": 330}, "tokenizer_fingerprint"), ({}, "sequence_length")])
def test_sources_that_do_not_fit_are_refused_by_name(changes: dict[str, int], field: str, dataset: Path, tmp_path: Path) -> None:
    length = 48 if changes else 40
    other = make_dataset(tmp_path, rows=8, sequence_length=length, **changes)  # type: ignore[arg-type]
    told = rf"manifest\.json: {field}: \w+ in source text of data\.mixture, expected \w+ as in source code"
    with pytest.raises(MoseError, match=told):
        open_run_data(config_of(dataset, blocks(mixture=mixture_of(dataset, other))))


def test_a_store_without_staging_folder_is_refused(dataset: Path) -> None:
    with pytest.raises(MoseError, match=r"memory://.*: not a local folder; expected data\.staging\.folder"):
        open_run_data(config_of(dataset, blocks(dataset=str(upload_folder(dataset)))))


def test_a_store_that_does_not_answer_is_one_line(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries of object stores raise errors of their own, often of no common class (botocore's NoCredentialsError)."""
    remote = upload_folder(dataset)

    class StoreError(Exception):
        pass

    def refuse(*_: object, **__: object) -> None:
        raise StoreError("connection to\nthe store lost")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem._open", refuse)
    told = r"^memory://.*: cannot be read from the store: StoreError: connection to the store lost$"
    with pytest.raises(MoseError, match=told):
        open_run_data(config_of(dataset, blocks(dataset=str(remote))))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"dataset": "a", "mixture": (MixtureSource("b"),)}, "data.mixture: given beside data.dataset"),
        ({"mixture": (MixtureSource("x/b"), MixtureSource("y/b"))}, "data.mixture.name: b stands twice"),
        ({"mixture": (MixtureSource("b"), MixtureSource("b", name="c"))}, "data.mixture.dataset: b stands twice"),
        ({}, "data.dataset: not given"),
    ],
)
def test_bad_config_of_data(values: dict[str, object], told: str, dataset: Path) -> None:
    with pytest.raises(MoseError, match=told):
        open_run_data(config_of(dataset, blocks(**values)))


@pytest.mark.parametrize(
    ("section", "values", "told"),
    [
        (MixtureSource, {"dataset": "a", "weight": 0.0}, "data.mixture.weight: 0.0 of a, expected a number above 0"),
        (MixtureSource, {"dataset": ""}, "data.mixture.dataset: not given"),
        (StagingConfig, {"max_bytes": 0}, "data.staging.max_bytes: 0, expected 1 or more"),
        (StagingConfig, {"attempts": 0}, "data.staging.attempts: 0"),
        (StagingConfig, {"folder": "s3://b/x"}, "data.staging.folder: s3://b/x, expected a folder on the node's own disk"),
    ],
)
def test_sections_refuse_wrong_values(section: type, values: dict[str, object], told: str) -> None:
    with pytest.raises(MoseError) as raised:
        section(**values)
    assert told in str(raised.value)


def test_a_mixture_is_written_and_read_as_yaml(dataset: Path, second: Path, tmp_path: Path) -> None:
    config = config_of(dataset, blocks(mixture=mixture_of(dataset, second)))
    save_config(config, tmp_path / "config.yaml")
    assert load_config(PretrainConfig, tmp_path / "config.yaml") == config


def identity(config: PretrainConfig) -> dict[str, object]:
    with opened(config) as data:
        return config_values(config, data.fingerprint, 1)


def test_identity_survives_removal_moving_and_staging_and_nothing_else(dataset: Path, second: Path, tmp_path: Path) -> None:
    """`mose-data remove` rewrites shards and keeps rows: other checksums, fewer tokens, the same run."""
    before = identity(config_of(dataset, blocks(dataset=str(dataset))))
    moved = Path(shutil.copytree(dataset, tmp_path / "moved"))
    manifest = read_manifest(moved)
    rewritten = dataclasses.replace(manifest.splits["train"][0], sha256="other", index_sha256="other", tokens=5)
    shards = (rewritten, *manifest.splits["train"][1:])
    write_manifest(moved, dataclasses.replace(manifest, splits={**manifest.splits, "train": shards}))
    assert identity(config_of(dataset, blocks(dataset=str(moved)))) == before
    staging = StagingConfig(str(tmp_path / "staged"), 1 << 20)
    assert identity(config_of(dataset, blocks(dataset=str(moved), staging=staging))) == before
    assert identity(config_of(dataset, blocks(dataset=str(second)))) != before
    write_manifest(moved, dataclasses.replace(manifest, config_fingerprint="1" * 16))
    assert identity(config_of(dataset, blocks(dataset=str(moved)))) != before


def test_the_identity_holds_the_content_of_each_data_set(dataset: Path, second: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(dataset, tmp_path / "moved"))
    manifest = read_manifest(moved)
    first, *others = manifest.splits["train"]
    shards = (dataclasses.replace(first, sha256="other"), *others)
    changed = dataclasses.replace(manifest, splits={**manifest.splits, "train": shards})

    def generations() -> tuple[tuple[str, ...], ...]:
        with opened(config_of(dataset, blocks(mixture=mixture_of(moved, second)))) as data:
            return data.generations

    before = generations()
    assert before == ((manifest.content_root,), (read_manifest(second).content_root,))
    write_manifest(moved, dataclasses.replace(changed, generations=(manifest.content_root, changed.content_root)))
    assert generations() == ((manifest.content_root, changed.content_root), before[1])


def test_an_unfinished_removal_is_refused(dataset: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(dataset, tmp_path / "moved"))
    (moved / "removal.json").write_text("{}")
    with pytest.raises(MoseError, match=r"removal\.json: a removal is unfinished; expected `mose-data remove`"):
        identity(config_of(dataset, blocks(dataset=str(moved))))


def test_identity_of_a_mixture_counts_weights_and_not_places(dataset: Path, second: Path, tmp_path: Path) -> None:
    pair = mixture_of(dataset, second)
    before = identity(config_of(dataset, blocks(mixture=pair)))
    moved = dataclasses.replace(pair[0], dataset=str(shutil.copytree(dataset, tmp_path / "moved")), name="renamed")
    assert identity(config_of(dataset, blocks(mixture=(moved, pair[1])))) == before
    heavier = dataclasses.replace(pair[0], weight=4.0)
    assert identity(config_of(dataset, blocks(mixture=(heavier, pair[1])))) != before


def test_place_on_node_is_what_the_launcher_says() -> None:
    assert place_on_node({"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8"}) == (3, 8)
    assert place_on_node({"LOCAL_RANK": "1", "LOCAL_SIZE": "2"}) == (1, 2)
    assert place_on_node({"SLURM_LOCALID": "1", "SLURM_NTASKS_PER_NODE": "4"}) == (1, 4)
    assert place_on_node({"LOCAL_RANK": "3"}) == place_on_node({}) == (0, 1)
    assert place_on_node(os.environ)[0] < place_on_node(os.environ)[1]

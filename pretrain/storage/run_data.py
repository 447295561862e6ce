"""Opens the data of a run: one data set or a mixture, local or staged, its training rows and its held-out rows."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mose.config import fingerprint, require
from mose.dataset.manifest import MANIFEST_NAME, Manifest, read_manifest
from mose.errors import MoseError
from mose.files.storage import is_local, storage_path
from mose.tokenizer import Tokenizer, load_tokenizer
from pretrain.config.objective import NONE, ObjectiveConfig
from pretrain.config.run import DataConfig, PretrainConfig
from pretrain.data.mixture import Mixture
from pretrain.data.rows import Rows
from pretrain.storage.joined_rows import JoinedRows
from pretrain.storage.local_rows import LocalRows, SplitTable
from pretrain.storage.node_labels import open_node_labels
from pretrain.storage.range_rows import LoadedRows, RangeReader, RangeRows, Retry
from pretrain.storage.staged_rows import StagedRows, StagingPlan, clear_abandoned
from pretrain.storage.window_file import RunOrder

# Environment variables by which launchers give the local rank and the number of local ranks: torchrun, deepspeed, SLURM.
_LOCAL_RANK_NAMES = ("LOCAL_RANK", "SLURM_LOCALID")
_LOCAL_RANKS_NAMES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_NTASKS_PER_NODE")


@dataclass(frozen=True)
class DatasetSource:
    """One data set of a run."""

    name: str
    dataset: Path
    weight: float
    manifest: Manifest


@dataclass(frozen=True)
class RunData:
    """The opened data of a run; `fingerprint` is equal for runs whose rows have the same numbers, wherever these lie."""

    rows: Rows
    held_out: Rows | None
    tokenizer: Tokenizer
    mixture: Mixture
    is_mixed: bool
    fingerprint: str
    generations: tuple[tuple[str, ...], ...]
    """`Manifest.content_generations` of each data set."""

    def close(self) -> None:
        """Release memory maps, files and threads."""
        self.rows.close()
        if self.held_out is not None:
            self.held_out.close()

    def scalars(self, seed: int, consumed_rows: int) -> dict[str, float]:
        """Progress of each source of a mixture; empty for a single data set, where it follows from the step."""
        return self.mixture.scalars(seed, consumed_rows) if self.is_mixed else {}


def named_sources(data: DataConfig) -> tuple[tuple[str, Path, float], ...]:
    """Name, path and weight of each data set that a config names.

    Raises:
        MoseError: it names none.
    """
    require(bool(data.dataset) or bool(data.mixture), "data.dataset: not given, expected a folder written by `mose-data pack`")
    if data.dataset:
        return (("data", storage_path(data.dataset), 1.0),)
    return tuple((source.label, storage_path(source.dataset), source.weight) for source in data.mixture)


def sources_of(data: DataConfig) -> tuple[DatasetSource, ...]:
    """The data sets that a config names, with their manifests.

    Raises:
        MoseError: none is named, a manifest cannot be read, or the data sets differ in tokenizer or row length.
    """
    sources = []
    for name, path, weight in named_sources(data):
        with one_line_of_a_store(path):
            sources.append(DatasetSource(name, path, weight, read_manifest(path)))
        _check_alike(sources[0], sources[-1])
    return tuple(sources)


@contextlib.contextmanager
def one_line_of_a_store(path: Path) -> Iterator[None]:
    """Turn any exception of an object-store library into one line that names the data set.

    Raises:
        MoseError: the store refused access, did not answer, or has no such object.
    """
    try:
        yield
    except MoseError:
        raise
    except Exception as error:
        if is_local(path):
            raise
        reason = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
        raise MoseError(f"{path}: cannot be read from the store: {' '.join(reason.split())}") from None


def _check_alike(first: DatasetSource, other: DatasetSource) -> None:
    for field in ("tokenizer_fingerprint", "sequence_length", "vocabulary_size"):
        expected, found = getattr(first.manifest, field), getattr(other.manifest, field)
        same = f"expected {expected} as in source {first.name}: all sources of a mixture share tokenizer and row length"
        where = f"{other.dataset / MANIFEST_NAME}: {field}: {found} in source {other.name} of data.mixture"
        require(expected == found, f"{where}, {same}")


def check_task(objective: ObjectiveConfig, sources: Sequence[DatasetSource]) -> None:
    """Compare the objective's task on whole rows with what the rows' labels mean; a data set without a mode counts as dense.

    Raises:
        MoseError: the rows of a data set were packed for another task.
    """
    for source in sources:
        mode, task = source.manifest.packing_mode, objective.sequence_task
        packed = f"the rows of {source.dataset} were packed with packing.mode {mode}"
        wanted = f"expected {mode.task} (or {NONE})"
        require(task in (mode.task, NONE), f"objective.sequence_task: {task}, but {packed}, {wanted}")


def open_run_data(config: PretrainConfig) -> RunData:
    """Open the training rows and, if validation is wanted, the held-out rows.

    Raises:
        MoseError: a data set is missing, damaged, or does not fit the model, the others or the staging folder's limit.
    """
    data = config.data
    # First, since its message names the folder, which shows a mistyped path.
    first = named_sources(data)[0][1]
    with one_line_of_a_store(first):
        tokenizer = load_tokenizer(first)
    sources = sources_of(data)
    check_task(config.objective, sources)
    length, longest = sources[0].manifest.sequence_length, config.model.max_length
    require(length <= longest, f"model.max_length: {longest}, the rows of {sources[0].dataset} have {length} slots")
    tables = [SplitTable(source.dataset, data.split, tokenizer.fingerprint()) for source in sources]
    mixture = Mixture(
        tuple(source.name for source in sources), tuple(map(len, tables)), tuple(source.weight for source in sources)
    )
    parts = [_training_rows(table, config, tokenizer, len(tables)) for table in tables]
    if data.staging.folder:
        clear_abandoned(Path(data.staging.folder))
    rows = JoinedRows(parts, mixture, config.seed) if len(parts) > 1 else parts[0]
    identity = fingerprint([data_set_identity(table) for table in tables])
    generations = tuple(table.manifest.content_generations for table in tables)
    held_out = _held_out_rows(sources, config, tokenizer)
    return RunData(rows, held_out, tokenizer, mixture, bool(data.mixture), identity, generations)


def data_set_identity(table: SplitTable) -> list[object]:
    """What identifies the numbering of the rows of a split; their content is identified by `content_generations`."""
    manifest = table.manifest
    return [manifest.tokenizer_fingerprint, manifest.config_fingerprint, [shard.rows for shard in table.shards]]


def _training_rows(table: SplitTable, config: PretrainConfig, tokenizer: Tokenizer, sources: int) -> Rows:
    data, staging = config.data, config.data.staging
    local_rank, local_ranks = place_on_node(os.environ)
    if not staging.folder:
        rows = LocalRows(table.dataset, data.split, tokenizer.fingerprint(), sources)
        rows.share_labels(open_node_labels(table, local_ranks))
        return rows
    plan = StagingPlan(
        Path(staging.folder),
        staging.max_bytes // sources,
        staging.concurrency,
        staging.read_ahead_windows,
        local_rank,
        local_ranks,
    )
    order = RunOrder(config.seed, len(table), data.block_rows, data.window_rows)
    return StagedRows(range_reader(table, data), order, plan, config.batch.global_rows)


def range_reader(table: SplitTable, data: DataConfig) -> RangeReader:
    """A range reader with the config's retries."""
    return RangeReader(table, Retry(data.staging.attempts, data.staging.retry_seconds))


def place_on_node(environment: Mapping[str, str]) -> tuple[int, int]:
    """(local rank, local ranks) from the launcher's variables; a wrong number costs duplicate reads, nothing else."""
    rank, ranks = (
        next((int(environment[name]) for name in names if environment.get(name, "").isdecimal()), default)
        for names, default in ((_LOCAL_RANK_NAMES, 0), (_LOCAL_RANKS_NAMES, 1))
    )
    return (rank, ranks) if rank < ranks else (0, 1)


def _held_out_rows(sources: tuple[DatasetSource, ...], config: PretrainConfig, tokenizer: Tokenizer) -> Rows | None:
    """The rows to validate on: of a mixture, the first held-out rows of each source, in proportion to its weight."""
    split, wanted = config.data.validation_split, config.intervals.validation_rows
    having = [source for source in sources if source.manifest.rows(split)]
    if not wanted or not having:
        return None
    total = sum(source.weight for source in having)
    limits = [min(source.manifest.rows(split), max(1, round(wanted * source.weight / total))) for source in having]
    parts = [_held_out_part(source, limit, config, tokenizer) for source, limit in zip(having, limits, strict=True)]
    if len(parts) == 1:
        return parts[0]
    # Only the numbering of a mixture is used here: validation reads the rows in order.
    numbering = Mixture(tuple(source.name for source in having), tuple(limits), tuple(1.0 for _ in having))
    return JoinedRows(parts, numbering, config.seed)


def _held_out_part(source: DatasetSource, limit: int, config: PretrainConfig, tokenizer: Tokenizer) -> Rows:
    split = config.data.validation_split
    if is_local(source.dataset) and not config.data.staging.folder:
        return LocalRows(source.dataset, split, tokenizer.fingerprint())
    return LoadedRows(range_reader(SplitTable(source.dataset, split, tokenizer.fingerprint()), config.data), limit)


def open_split(dataset: Path, split: str, tokenizer_fingerprint: str) -> LocalRows | RangeRows:
    """One split for reading in order, local or remote.

    Raises:
        MoseError: no such data set or split, or rows of another tokenizer.
    """
    if is_local(dataset):
        return LocalRows(dataset, split, tokenizer_fingerprint)
    with one_line_of_a_store(dataset):
        return RangeRows(RangeReader(SplitTable(dataset, split, tokenizer_fingerprint), Retry()))

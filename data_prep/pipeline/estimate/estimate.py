"""`mose-data pack --dry-run`: what a data set will hold and cost, from the sizes of all files and a packed sample of them.

Sizes are known without reading any content. The sample goes through the code that packs, with the tables of held-out
copies and of duplicates made from the same sample, so that every filter counts; only bytes, tokens and seconds are scaled.
"""

import functools
import math
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

import pyarrow.parquet as pq

from data_prep.pipeline.assignment import Assignment
from data_prep.pipeline.config import PackConfig
from data_prep.pipeline.estimate.cost import PassCost, RunCost, cpu_seconds
from data_prep.pipeline.estimate.sample import SizeSample, Unit, expected_overshoot, margin, sample_sizes, size_bin, tokens_within
from data_prep.pipeline.held_out import prepare_duplicates, prepare_held_out, prepare_near_duplicates
from data_prep.pipeline.task import run_task
from data_prep.pipeline.task_marker import TaskMarker
from data_prep.sources.file_kinds import NOTEBOOK
from data_prep.sources.registry import listed_files, read_part, read_repository, state_of
from data_prep.sources.repositories import TRAIN, RepositoryRef, SourceFile, split_of
from data_prep.sources.stack_v2.rows import KIND as ROWS_KIND
from mose.dataset.manifest import SPLITS
from mose.errors import MoseError
from mose.files.storage import storage_path
from mose.tokenizer import TOKENIZER_NAMES

SAMPLE_BYTES = 1 << 26
_FIRST_BYTES = 1 << 20
# Beside what the sample shows: compression of lineage and fill of the last rows differ between a small data set and a large one.
_LEAST_MARGIN = 0.02
# Of more files, the metadata is not searched for copies: it would take as long as the pass before packing does.
_MOST_FILES_SEARCHED = 20_000_000
_RECORDS = ".json"
# The same work takes a third more or less CPU from one moment to the next where a machine is shared.
_EMPTY_TASKS = 3


@dataclass(frozen=True)
class Estimate:
    """Expected size of a data set, and the cost of packing it."""

    repositories: int
    files: int
    bytes: int
    """Of all files that the sources give, before filtering."""
    text_tokens: float
    rows: float
    disk_bytes: float
    cost: RunCost
    """CPU seconds of packing."""
    sampled_files: int
    sampled_bytes: int
    margin: float
    """Half of the 95 % interval of tokens, rows and disk, as a share of them."""
    knows_copies: bool = True
    """Whether copies across repositories were looked for."""

    def lines(self, num_tasks: int) -> list[str]:
        """The estimate in words."""
        gigabytes = self.disk_bytes / 1e9
        sample = f"{self.sampled_files:,} files of {self.sampled_bytes / 1e6:,.1f} MB were packed"
        few, many = max(1, math.ceil(gigabytes / 4)), max(1, math.ceil(gigabytes))
        copies = (
            [] if self.knows_copies else ["copies        across repositories were not looked for: the data set may be smaller"]
        )
        return [
            f"repositories  {self.repositories:,}",
            f"files         {self.files:,} of {self.bytes / 1e9:,.3f} GB",
            f"text tokens   {self.text_tokens:,.0f}",
            f"rows          {self.rows:,.0f}",
            f"disk          {gigabytes:,.3f} GB",
            f"core-hours    {self.cost.total / 3600:,.3f} ({self.cost.total:,.0f} s) on this machine",
            f"tasks         {num_tasks:,} of {gigabytes / num_tasks:,.3f} GB; {few:,} to {many:,} tasks make shards of 1 to 4 GB",
            f"margin        {self.margin:.1%} of tokens, rows and disk (95 %): {sample}",
            *copies,
        ]


@dataclass
class _Totals:
    """What the sources hold."""

    repositories: int = 0
    files: int = 0
    bytes: int = 0
    readable_bytes: int = 0
    """Of files that a filter may keep; those above `max_bytes` are dropped unread."""
    files_of_size: Counter[int] = field(default_factory=Counter)
    rows_seconds: float = 0.0
    """CPU of decoding the rows of listed parquet files, which is the same in a run."""


@dataclass
class _Sampled:
    """What was read for the sample: bytes of each file, by repository and path."""

    files: dict[tuple[str, str], int] = field(default_factory=dict)
    bytes: int = 0

    def read(self, files: Iterator[SourceFile], most: int) -> Iterator[SourceFile]:
        """The same files, counted, until there are `most` bytes."""
        for file in files:
            self.files[file.repository, file.path] = file.num_bytes
            self.bytes += file.num_bytes
            yield file
            if self.bytes >= most:
                return


def estimate(config: PackConfig, assignment: Assignment, sample_bytes: int = SAMPLE_BYTES) -> Estimate:
    """Pack a random sample of about `sample_bytes` into a temporary folder and scale its counts to all files.

    Raises:
        MoseError: a source or the tokenizer cannot be read, or the sample gave no row.
    """
    # As a run does, which compares them with those of the data set.
    for ref in (ref for refs in assignment.refs for ref in refs):
        state_of(ref, config.sources)
    start = cpu_seconds()
    totals = _totals(config, assignment)
    # Where no size is known beforehand, whole repositories are drawn, the first ones: their order is that of a hash.
    sizes = sample_sizes(dict(totals.files_of_size), sample_bytes, config.seed) if totals.files_of_size else None
    knows_copies = sizes is not None or totals.files <= _MOST_FILES_SEARCHED
    with tempfile.TemporaryDirectory(prefix="mose-dry-run-") as folder:
        packed = _pack_sample(Path(folder), config, assignment, totals, sizes, sample_bytes, searches=knows_copies)
    sampled, tokens = packed.sampled, packed.tokens
    if not packed.marker.shards:
        raise MoseError("dry-run: the sample gave no row; expected usable files among those that were sampled")
    scale = totals.readable_bytes / max(1, sampled.bytes)
    scales = sizes.scales if sizes else {0: max(1.0, scale)}
    by_repository = _tokens_by_repository(sampled, tokens, sizes, scales)
    kept = _within_budget(config, assignment, by_repository, scales)
    in_sample = max(1, sum(tokens.values()))
    # Packing may lose tokens by its mode, so that lineage has fewer than were encoded.
    lost = sum(packed.marker.rows[split]["text_tokens"] for split in SPLITS) / in_sample
    return Estimate(
        repositories=totals.repositories,
        files=totals.files,
        bytes=totals.bytes,
        text_tokens=kept * lost,
        rows=sum(shard.rows for shard in packed.marker.shards.values()) * kept / in_sample,
        disk_bytes=packed.disk_bytes * kept / in_sample + _tokenizer_bytes(storage_path(config.tokenizer)),
        cost=packed.cost(config, start, totals, sizes, scale, kept / in_sample),
        sampled_files=len(sampled.files),
        sampled_bytes=sampled.bytes,
        margin=_LEAST_MARGIN + margin(_units(sampled, tokens, is_by_size=sizes is not None), scales),
        knows_copies=knows_copies,
    )


@dataclass(frozen=True)
class _Packed:
    """What packing the sample gave, and the CPU seconds of its steps."""

    marker: TaskMarker
    sampled: _Sampled
    tokens: Counter[tuple[str, str]]
    disk_bytes: int
    once: float
    worker: float
    """Of the start of a worker process; 0 if the run has none."""
    task: float
    """Of a task without files."""
    searching: PassCost
    packing: PassCost

    def cost(
        self, config: PackConfig, start: float, totals: _Totals, sizes: SizeSample | None, scale: float, growth: float
    ) -> RunCost:
        """CPU of the whole run, which has `scale` times the bytes of the sample and `growth` times its tokens."""
        # Whole repositories were read where no sizes are known.
        scales = sizes.scales if sizes else defaultdict(lambda: scale)
        searched, packed = self.searching, self.packing
        by_metadata = searched.total - searched.listing - searched.reading - searched.judging
        workers = min(config.num_workers, config.num_tasks) if self.worker else 0
        return RunCost(
            start=start,
            once=self.once * max(1, workers) + self.worker * workers,
            tasks=self.task * config.num_tasks,
            searching=by_metadata + searched.whole_reading(scales, scale, with_judging=True),
            reading=totals.rows_seconds + packed.whole_reading(scales, scale),
            packing=max(0.0, packed.total - packed.listing - packed.reading - self.task) * growth,
        )


def _pack_sample(
    folder: Path,
    config: PackConfig,
    assignment: Assignment,
    totals: _Totals,
    sizes: SizeSample | None,
    sample_bytes: int,
    *,
    searches: bool,
) -> _Packed:
    """Pack the sample into `folder`, with the passes that come before the tasks of a run."""
    share = min(1.0, sample_bytes / max(1, totals.readable_bytes)) if sizes else 1.0
    small = replace(
        config,
        output=str(folder / "sample"),
        num_tasks=1,
        max_bad_repositories=1_000_000,
        max_train_tokens=0,
        held_out_repository_bytes=math.ceil(config.held_out_repository_bytes * share),
    )

    def drawn(sampled: _Sampled, most: int, cost: PassCost) -> Iterator[tuple[RepositoryRef, Iterator[SourceFile]]]:
        for ref, files in _listed(assignment, config, sizes, cost) if sizes else _all(config, assignment):
            if sampled.bytes >= most:
                return
            yield ref, sampled.read(files if sizes else cost.timed(ref, files), most if sizes else sys.maxsize)

    for name in ("first", "sample"):
        prepare_near_duplicates(folder / name, small)
    first, loading = _Sampled(), PassCost()
    run_task(replace(small, output=str(folder / "first")), 0, drawn(first, _FIRST_BYTES, loading), "dry run")
    loading.end()
    task, worker = _cost_of_no_files(
        replace(small, output=str(folder / "empty")), has_workers=min(config.num_workers, config.num_tasks) > 1
    )
    searching = PassCost()
    if searches:
        read = functools.partial(_chosen_files, config, sizes, searching) if sizes else None
        prepare_held_out(folder / "sample", small, assignment, is_new=True, read=read)
        prepare_duplicates(folder / "sample", small, assignment, read=read)
    searching.end()
    sampled, packing = _Sampled(), PassCost()
    marker = run_task(small, 0, drawn(sampled, sys.maxsize if sizes else sample_bytes, packing), "dry run")
    packing.end()
    again = (packing.total - packing.listing - packing.opening - task) * first.bytes / max(1, sampled.bytes)
    again += packing.opening_as_in(loading) + loading.listing + task
    return _Packed(
        marker,
        sampled,
        _tokens_by_file(folder / "sample", marker),
        _disk_bytes(folder / "sample"),
        max(0.0, loading.total - again),
        worker,
        task,
        searching,
        packing,
    )


def is_readable(path: str, size: int, config: PackConfig) -> bool:
    """Whether a filter may keep a file of this size; a notebook is smaller without its outputs."""
    return size > 0 and (size <= config.filters.max_bytes or path.endswith(NOTEBOOK))


def _totals(config: PackConfig, assignment: Assignment) -> _Totals:
    totals = _Totals()
    for entry in (part.entry for part in assignment.parts):
        totals.repositories += entry.repositories
        totals.files += entry.files
        totals.bytes += entry.bytes
        totals.readable_bytes += entry.bytes
    for ref in (ref for refs in assignment.refs for ref in refs):
        totals.repositories += 1
        began = cpu_seconds()
        listed = listed_files(ref, config.sources)
        totals.rows_seconds += (cpu_seconds() - began) * (ref.kind == ROWS_KIND)
        for path, size, is_within in listed:
            totals.files += 1
            totals.bytes += size
            if is_within and is_readable(path, size, config):
                totals.files_of_size[size] += 1
                totals.readable_bytes += size
    return totals


def _listed(
    assignment: Assignment, config: PackConfig, sizes: SizeSample, cost: PassCost
) -> Iterator[tuple[RepositoryRef, Iterator[SourceFile]]]:
    for ref in (ref for refs in assignment.refs for ref in refs):
        yield ref, _chosen_files(config, sizes, cost, ref)


def _chosen_files(config: PackConfig, sizes: SizeSample, cost: PassCost, ref: RepositoryRef) -> Iterator[SourceFile]:
    """The files of the sample in one repository."""
    began = cpu_seconds()
    listed = listed_files(ref, config.sources)
    paths = frozenset(
        path.lstrip("/") for path, size, is_within in listed if is_within and is_readable(path, size, config) and size in sizes
    )
    cost.listed(cpu_seconds() - began, is_opened=bool(paths))
    return cost.timed(ref, read_repository(ref, config.sources, paths)) if paths else iter(())


def _cost_of_no_files(config: PackConfig, *, has_workers: bool) -> tuple[float, float]:
    """CPU seconds of a task without files, and of the start of a process that runs tasks, 0 if there is none."""
    began = cpu_seconds()
    for _ in range(_EMPTY_TASKS):
        run_task(config, 0, iter(()), "dry run")
    task = (cpu_seconds() - began) / _EMPTY_TASKS
    if not has_workers:
        return task, 0.0
    began = cpu_seconds()
    process = get_context("spawn").Process(target=run_task, args=(config, 0, (), "dry run"))
    process.start()
    process.join()
    return task, max(0.0, cpu_seconds() - began - task)


def _all(config: PackConfig, assignment: Assignment) -> Iterator[tuple[RepositoryRef, Iterator[SourceFile]]]:
    for ref in (ref for refs in assignment.refs for ref in refs):
        yield ref, read_repository(ref, config.sources)
    for part in assignment.parts:
        yield from read_part(part, config.sources)


def _tokens_by_file(dataset: Path, marker: TaskMarker) -> Counter[tuple[str, str]]:
    tokens: Counter[tuple[str, str]] = Counter()
    for shard in marker.shards.values():
        columns = ["repository", "path", "num_tokens"]
        table = pq.read_table(dataset / shard.lineage_path, columns=columns, use_threads=False)
        for repository, path, number in zip(*(table[name].to_pylist() for name in columns), strict=True):
            tokens[repository, path] += number
    return tokens


def _units(sampled: _Sampled, tokens: Counter[tuple[str, str]], *, is_by_size: bool) -> list[Unit]:
    units: dict[int | str, Unit] = {}
    for (repository, path), size in sampled.files.items():
        key = size if is_by_size else repository
        unit = units.setdefault(key, Unit(size_bin(size) if is_by_size else 0))
        unit.bytes += size
        unit.tokens += tokens[repository, path]
    return [unit for unit in units.values() if unit.bytes]


def _tokens_by_repository(
    sampled: _Sampled, tokens: Counter[tuple[str, str]], sizes: SizeSample | None, scales: dict[int, float]
) -> dict[str, float]:
    """Tokens of each repository that has some in the sample, scaled to all of its files where sizes were drawn."""
    found: dict[str, float] = defaultdict(float)
    for (repository, path), number in tokens.items():
        size = sampled.files.get((repository, path), 0)
        found[repository] += number * (sizes.scale(size) if sizes and size else scales.get(0, 1.0))
    return found


def _within_budget(config: PackConfig, assignment: Assignment, tokens: dict[str, float], scales: dict[int, float]) -> float:
    """The tokens that `max_train_tokens` lets in, held-out ones included."""
    train = {name: number for name, number in tokens.items() if split_of(name, config.seed, config.held_out_fraction) == TRAIN}
    whole = sum(train.values())
    held_out = sum(tokens.values()) - whole
    if not config.max_train_tokens:
        return whole + held_out
    share = config.max_train_tokens / config.num_tasks
    if not assignment.parts:
        tasks = [[train.get(ref.name, 0.0) for ref in refs] for refs in assignment.refs]
        return held_out + sum(tokens_within(task, share) for task in tasks)
    # The repositories that were read are a sample of those of every task.
    sizes = [number / scales[0] for number in train.values()]
    return held_out + min(whole, config.num_tasks * (share + expected_overshoot(sizes)))


def _tokenizer_bytes(path: Path) -> int:
    """Of the copy in the data set, a tenth of a small one."""
    inside = [path / name for name in TOKENIZER_NAMES if (path / name).is_file()]
    return (inside or [path])[0].stat().st_size


def _disk_bytes(dataset: Path) -> int:
    return sum(path.stat().st_size for path in dataset.rglob("*") if path.is_file() and path.suffix != _RECORDS)

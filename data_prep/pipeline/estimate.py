"""`mose-data pack --dry-run`: what a data set will hold and cost, from the sizes of all files and a packed sample.

Sizes are known without reading any content, so only the rows per byte have to be estimated. They differ much less between
repositories than the repositories' sizes do, which is why a sample of some ten megabytes is enough.
"""

import math
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq

from data_prep.pipeline.assignment import Assignment
from data_prep.pipeline.config import PackConfig
from data_prep.pipeline.held_out import prepare_near_duplicates
from data_prep.pipeline.task import run_task
from data_prep.pipeline.task_marker import TaskMarker
from data_prep.sources.registry import read_part, read_repository, sizes_of
from data_prep.sources.repositories import RepositoryRef, SourceFile
from mose.errors import MoseError

SAMPLE_BYTES = 1 << 25
_CONFIDENCE = 1.96
# Beside what the sample shows: compression of lineage and labels of rows differ between a small data set and a large one.
_LEAST_MARGIN = 0.02


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
    core_seconds: float
    sampled_repositories: int
    sampled_bytes: int
    margin: float
    """Half of the 95 % interval of tokens, rows and disk, as a share of them."""

    def lines(self, num_tasks: int) -> list[str]:
        """The estimate in words."""
        gigabytes = self.disk_bytes / 1e9
        sample = f"{self.sampled_repositories:,} repositories of {self.sampled_bytes / 1e6:,.1f} MB were packed"
        few, many = max(1, math.ceil(gigabytes / 4)), max(1, math.ceil(gigabytes))
        return [
            f"repositories  {self.repositories:,}",
            f"files         {self.files:,} of {self.bytes / 1e9:,.3f} GB",
            f"text tokens   {self.text_tokens:,.0f}",
            f"rows          {self.rows:,.0f}",
            f"disk          {gigabytes:,.3f} GB",
            f"core-hours    {self.core_seconds / 3600:,.3f} on this machine",
            f"tasks         {num_tasks:,} of {gigabytes / num_tasks:,.3f} GB; {few:,} to {many:,} tasks make shards of 1 to 4 GB",
            f"margin        {self.margin:.1%} of tokens, rows and disk (95 %): {sample}",
        ]


def estimate(config: PackConfig, assignment: Assignment, sample_bytes: int = SAMPLE_BYTES) -> Estimate:
    """Pack a random sample of about `sample_bytes` into a temporary folder and scale its counts to all files.

    Raises:
        MoseError: a source or the tokenizer cannot be read, or the sample gave no row.
    """
    sizes = {ref: size for refs in assignment.refs for ref, size in sizes_of(refs, config.sources)}
    if assignment.parts:
        entries = [part.entry for part in assignment.parts]
        totals = sum(e.repositories for e in entries), sum(e.files for e in entries), sum(e.bytes for e in entries)
    else:
        totals = len(sizes), sum(files for files, _ in sizes.values()), sum(size for _, size in sizes.values())
    with tempfile.TemporaryDirectory(prefix="mose-dry-run-") as folder:
        # The order of assignment is that of a hash of the names, so its beginning is a random sample.
        sample = (
            _part_sample(config, assignment, sample_bytes) if assignment.parts else _listed_sample(config, sizes, sample_bytes)
        )
        small = replace(config, output=folder, num_tasks=1, max_bad_repositories=1_000_000)
        prepare_near_duplicates(Path(folder), small)
        began = time.process_time()
        marker = run_task(small, 0, sample, "dry run")
        seconds = time.process_time() - began
        tokens = _tokens_by_repository(Path(folder), marker)
        disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file() and path.suffix != ".json")
    if not marker.shards:
        raise MoseError("dry-run: the sample gave no row; expected usable files among the first repositories")
    read = sum(counts["bytes"] for counts in marker.seen.values())
    scale = totals[2] / max(1, read)
    known = {ref.name: size for ref, (_, size) in sizes.items()}
    share_read = 1.0 if assignment.parts else min(1.0, read / max(1, totals[2]))
    margin = _margin(tokens, known, share_read)
    return Estimate(
        repositories=totals[0],
        files=totals[1],
        bytes=totals[2],
        text_tokens=sum(tokens.values()) * scale,
        rows=sum(shard.rows for shard in marker.shards.values()) * scale,
        disk_bytes=disk * scale,
        core_seconds=seconds * scale,
        sampled_repositories=marker.repositories,
        sampled_bytes=read,
        margin=margin,
    )


def _listed_sample(
    config: PackConfig, sizes: dict[RepositoryRef, tuple[int, int]], sample_bytes: int
) -> Iterator[tuple[RepositoryRef, Iterator[SourceFile]]]:
    taken = 0
    for ref, (_, size) in sizes.items():
        if taken >= sample_bytes:
            return
        taken += size
        yield ref, read_repository(ref, config.sources)


def _part_sample(
    config: PackConfig, assignment: Assignment, sample_bytes: int
) -> Iterator[tuple[RepositoryRef, Iterator[SourceFile]]]:
    taken = 0

    def counted(files: Iterator[SourceFile]) -> Iterator[SourceFile]:
        nonlocal taken
        for file in files:
            taken += file.num_bytes
            yield file

    for part in assignment.parts:
        for ref, files in read_part(part, config.sources):
            if taken >= sample_bytes:
                return
            yield ref, counted(files)


def _tokens_by_repository(dataset: Path, marker: TaskMarker) -> Counter[str]:
    tokens: Counter[str] = Counter()
    for shard in marker.shards.values():
        table = pq.read_table(dataset / shard.lineage_path, columns=["repository", "num_tokens"], use_threads=False)
        for name, number in zip(table["repository"].to_pylist(), table["num_tokens"].to_pylist(), strict=True):
            tokens[name] += number
    return tokens


def _margin(tokens: Counter[str], sizes: dict[str, int], share_read: float) -> float:
    """Half of the 95 % interval of a ratio estimate (Cochran 1977, 6.4), as a share of the estimate; 0 if everything was read."""
    if share_read >= 1.0 and sizes:
        return _LEAST_MARGIN
    pairs = [(number, sizes.get(name, 0)) for name, number in tokens.items()]
    total_tokens, total_bytes = sum(number for number, _ in pairs), sum(size for _, size in pairs)
    if len(pairs) < 2 or not total_bytes or not total_tokens:
        return 1.0
    ratio = total_tokens / total_bytes
    variance = sum((number - ratio * size) ** 2 for number, size in pairs) / (len(pairs) - 1)
    error = math.sqrt(max(0.0, 1 - share_read) * variance / len(pairs)) / (total_tokens / len(pairs))
    return _LEAST_MARGIN + _CONFIDENCE * error

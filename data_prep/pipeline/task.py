"""One task of `mose-data pack`: reads, filters, encodes, chunks and packs repositories, and writes its completion marker last."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from data_prep.filters.decontamination import Decontaminator
from data_prep.filters.dropped_log import DroppedLog
from data_prep.filters.filters import KEPT, FilterCounts, filter_repository
from data_prep.pipeline.chunker import Chunker, TextBatcher
from data_prep.pipeline.config import PackConfig, content_fingerprint
from data_prep.pipeline.split_writer import SplitWriter
from data_prep.pipeline.task_marker import TaskMarker, write_marker
from data_prep.sources.repositories import HELD_OUT, OVER_HELD_OUT_LIMIT, RepositoryRef, SourceFile, split_of
from mose.dataset.manifest import SPLITS
from mose.files.storage import storage_path
from mose.tokenizer import Tokenizer, load_tokenizer

_EXAMPLES = 20


@dataclass(frozen=True)
class TaskProgress:
    """Progress of a task: repositories read, rows and tokens packed, bytes of text that passed the filters."""

    repositories: int = 0
    rows: int = 0
    tokens: int = 0
    bytes: int = 0


def run_task(
    config: PackConfig,
    task: int,
    repositories: Iterable[tuple[RepositoryRef, Iterator[SourceFile]]],
    listing: str,
    observe: Callable[[TaskProgress], None] = lambda progress: None,
) -> TaskMarker:
    """Write the shards of one task from its repositories, then its marker; calls `observe` after each repository.

    Repositories are read one after another, so they may be streamed. The bytes depend only on `config`, `task` and the files of
    `repositories` in their order, never on who runs the task or when. `listing` is written into the marker.

    Raises:
        MoseError: a repository or the tokenizer cannot be read; no file of the task is left behind.
    """
    dataset = storage_path(config.output)
    tokenizer = load_tokenizer(storage_path(config.tokenizer))
    with contextlib.ExitStack() as stack:
        dropped = stack.enter_context(DroppedLog(dataset, task))
        writers = {
            split: stack.enter_context(SplitWriter(dataset, split, task, config.seed, config.packing, tokenizer))
            for split in SPLITS
        }
        reading = _Reading(config, tokenizer, writers, dropped)
        for ref, files in repositories:
            reading.add(ref, files)
            observe(reading.progress())
        reading.flush()
        entries = {split: writer.close() for split, writer in writers.items()}
    marker = TaskMarker(
        task=task,
        config_fingerprint=content_fingerprint(config, tokenizer),
        listing_fingerprint=listing,
        shards={split: entry for split, entry in entries.items() if entry},
        rows={split: _row_statistics(writer) for split, writer in writers.items()},
        filters=reading.filters.to_plain(),
        repositories=reading.repositories,
        unusable_repositories=reading.unusable_repositories,
        unusable_examples=reading.unusable_examples,
    )
    write_marker(dataset, marker)
    return marker


class _Reading:
    """Reads the repositories of a task and sends their texts to the writer of their split."""

    def __init__(self, config: PackConfig, tokenizer: Tokenizer, writers: dict[str, SplitWriter], dropped: DroppedLog):
        self._config = config
        self._writers = writers
        self._dropped = dropped
        decontaminator = Decontaminator(config.decontamination) if config.decontamination.files else None
        chunker = Chunker(tokenizer, config.packing, decontaminator)
        self.filters = FilterCounts()
        self._batchers = {split: TextBatcher(chunker, writer.add, self.filters, dropped) for split, writer in writers.items()}
        self.repositories = 0
        self.unusable_repositories = 0
        self.unusable_examples: list[str] = []

    def add(self, ref: RepositoryRef, files: Iterable[SourceFile]) -> None:
        """Read one whole repository."""
        split = split_of(ref.name, self._config.seed, self._config.held_out_fraction)
        batcher = self._batchers[split]
        if split == HELD_OUT and self._config.held_out_repository_bytes:
            files = _first_bytes(files, self._config.held_out_repository_bytes)
        is_usable = False
        for text in filter_repository(files, self._config.filters, self.filters, self._dropped):
            batcher.add(text)
            is_usable = True
        self.repositories += 1
        if not is_usable:
            self.unusable_repositories += 1
            self.unusable_examples += [ref.name] if len(self.unusable_examples) < _EXAMPLES else []

    def flush(self) -> None:
        """Chunk the texts of incomplete batches."""
        for batcher in self._batchers.values():
            batcher.flush()

    def progress(self) -> TaskProgress:
        """What has been read and packed so far."""
        counts = [writer.counts for writer in self._writers.values()]
        rows, tokens = sum(count.rows for count in counts), sum(count.tokens for count in counts)
        return TaskProgress(self.repositories, rows, tokens, self.filters.reasons[KEPT].bytes)


def _first_bytes(files: Iterable[SourceFile], limit: int) -> Iterator[SourceFile]:
    """The files in order; those beyond `limit` bytes in total have no content, and a problem under which they are counted."""
    total = 0
    for file in files:
        fits = total + len(file.content) <= limit
        total += len(file.content) if fits else 0
        yield file if fits or file.problem else dataclasses.replace(file, content=b"", problem=OVER_HELD_OUT_LIMIT)


def _row_statistics(writer: SplitWriter) -> dict[str, Any]:
    return {
        **dataclasses.asdict(writer.counts),
        "repositories": len(writer.repositories),
        "tokens_by_language": dict(writer.tokens_by_language),
    }

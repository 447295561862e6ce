"""One task of `mose-data pack`: reads, filters, encodes, chunks and packs repositories, and writes its completion marker last."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from data_prep.filters.blob_set import BlobSet
from data_prep.filters.decontamination import Decontaminator
from data_prep.filters.dropped_log import DroppedLines, DroppedLog
from data_prep.filters.filters import COPY_OF_HELD_OUT, DUPLICATE_ACROSS, KEPT, REPLACED, FilterCounts, Tally, filter_repository
from data_prep.pipeline.chunker import Chunker, TextBatcher
from data_prep.pipeline.config import PackConfig, content_fingerprint
from data_prep.pipeline.duplicates import Duplicates
from data_prep.pipeline.held_out import duplicates_path, held_out_path, near_duplicates_of
from data_prep.pipeline.split_writer import SplitWriter
from data_prep.pipeline.task_marker import BAD_REPOSITORY, BadRepository, TaskMarker, TaskProgress, too_many_bad, write_marker
from data_prep.shards.lineage import LINEAGE_SCHEMA, MARKED_SCHEMA
from data_prep.sources.detection.choice import copies_of
from data_prep.sources.repositories import (
    HELD_OUT,
    OVER_HELD_OUT_LIMIT,
    TRAIN,
    RepositoryRef,
    SelectedFiles,
    SourceFile,
    TextFile,
    split_of,
)
from mose.command import one_line
from mose.dataset.manifest import SPLITS
from mose.errors import MoseError
from mose.files.storage import storage_path
from mose.tokenizer import Tokenizer, load_tokenizer

_EXAMPLES = 20
OVER_TOKEN_BUDGET = "over_token_budget"
"""`SourceFile.problem` of the files beyond `max_train_tokens`."""
# The texts of a repository wait until it is read to its end, so that a bad one is left out as a whole. Of a larger one, what was
# read before the damage stays: its texts would not fit into the memory.
_HELD_BYTES = 1 << 26
_REPORT_SECONDS = 0.2


def run_task(
    config: PackConfig,
    task: int,
    repositories: Iterable[tuple[RepositoryRef, Iterator[SourceFile]]],
    listing: str,
    observe: Callable[[TaskProgress], None] = lambda progress: None,
) -> TaskMarker:
    """Write the shards of one task from its repositories, then its marker; calls `observe` after each repository, and during it.

    Repositories are read one after another, so they may be streamed. The bytes depend only on `config`, `task` and the files of
    `repositories` in their order, never on who runs the task or when. `listing` is written into the marker.

    Raises:
        MoseError: more repositories than `max_bad_repositories` or the tokenizer cannot be read; no file of the task is left.
    """
    dataset = storage_path(config.output)
    tokenizer = load_tokenizer(storage_path(config.tokenizer))
    replaces = "replace" in (config.filters.secrets, config.filters.personal_data)
    schema = MARKED_SCHEMA if replaces else LINEAGE_SCHEMA
    with contextlib.ExitStack() as stack:
        dropped = stack.enter_context(DroppedLog(dataset, task))
        writers = {
            split: stack.enter_context(SplitWriter(dataset, split, task, config.seed, config.packing, tokenizer, schema))
            for split in SPLITS
        }
        reading = _Reading(config, tokenizer, writers, dropped, observe)
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
        seen=reading.seen,
        bad_repositories=reading.bad_repositories,
        kept_copies_of_held_out=reading.kept_copies,
        kept_duplicates=reading.kept_duplicates,
    )
    write_marker(dataset, marker)
    return marker


class _Reading:
    """Reads the repositories of a task and sends their texts to the writer of their split."""

    def __init__(
        self,
        config: PackConfig,
        tokenizer: Tokenizer,
        writers: dict[str, SplitWriter],
        dropped: DroppedLog,
        observe: Callable[[TaskProgress], None],
    ):
        self._config = config
        self._writers = writers
        self._dropped = dropped
        self._observe = observe
        self._due = 0.0
        decontaminator = Decontaminator(config.decontamination) if config.decontamination.files else None
        chunker = Chunker(tokenizer, config.packing, decontaminator)
        self.filters = FilterCounts()
        self._batchers = {split: TextBatcher(chunker, writer.add, self.filters, dropped) for split, writer in writers.items()}
        self.repositories = 0
        self.unusable_repositories = 0
        self.unusable_examples: list[str] = []
        self.bad_repositories: list[BadRepository] = []
        self.seen: dict[str, dict[str, int]] = {}
        self._files = 0
        self.kept_copies = 0
        path = held_out_path(storage_path(config.output))
        self._held_out = BlobSet.read(path) if path.is_file() else BlobSet.of(())
        self.kept_duplicates = 0
        path = duplicates_path(storage_path(config.output))
        has_table = config.duplicates != "ignore" and path.is_file()
        self._near_duplicates = near_duplicates_of(storage_path(config.output), config)
        self._duplicates = Duplicates.read(path, config.seed) if has_table else Duplicates.none()

    def add(self, ref: RepositoryRef, files: Iterable[SourceFile]) -> None:
        """Read one whole repository; one that cannot be read is counted and left out.

        Raises:
            MoseError: it is one more than `max_bad_repositories`.
        """
        split = split_of(ref.name, self._config.seed, self._config.held_out_fraction)
        batcher = self._batchers[split]
        repository = _Repository()
        is_usable, error = False, ""
        given = self._counted(ref.kind, files)
        if split == HELD_OUT and self._config.held_out_repository_bytes:
            given = _first_bytes(given, self._config.held_out_repository_bytes)
        if split == TRAIN:
            if self._is_over_budget(batcher):
                given = (_unread(file, OVER_TOKEN_BUDGET) for file in given)
            texts = filter_repository(
                given, self._config.filters, repository.counts, repository.dropped, self._excluded, self._copies
            )
        else:
            texts = filter_repository(
                given, self._config.filters, repository.counts, repository.dropped, self._near_duplicates.reason
            )
        while True:
            # Only the reading is guarded: an error of packing, such as a full disk, is none of the repository.
            try:
                text = next(texts, None)
            except (MoseError, OSError) as problem:
                error = one_line(problem)
                break
            if text is None:
                break
            repository.add(text)
            is_usable = True
            if repository.held_bytes >= _HELD_BYTES:
                self._commit(repository, batcher)
        if error:
            self._leave_out(ref, error, repository)
        elif not is_usable:
            self.unusable_repositories += 1
            self.unusable_examples += [ref.name] if len(self.unusable_examples) < _EXAMPLES else []
        self._commit(repository, batcher)
        if isinstance(files, SelectedFiles):
            seen = self._seen_of(ref.kind)
            seen["not_selected_files"] += files.selection.refused
            seen["links_and_special_files"] += files.selection.passed_over
        self.repositories += 1

    def _counted(self, kind: str, files: Iterable[SourceFile]) -> Iterator[SourceFile]:
        """The same files, counted as the source gives them."""
        seen = self._seen_of(kind)
        for file in files:
            seen["files"] += 1
            seen["bytes"] += file.num_bytes
            self._files += 1
            yield file
            if time.monotonic() >= self._due:
                self._due = time.monotonic() + _REPORT_SECONDS
                self._observe(self.progress())

    def _excluded(self, file: SourceFile) -> str:
        """The reason for which a file of train is dropped as a copy of another one; counts copies that are kept."""
        if near := self._near_duplicates.reason(file):
            return near
        if file.blob_id in self._held_out:
            if self._config.held_out_copies == "drop":
                return COPY_OF_HELD_OUT
            self.kept_copies += self._config.held_out_copies == "count"
        if self._duplicates.is_copy(file.repository, file.blob_id):
            if self._config.duplicates == "drop":
                return DUPLICATE_ACROSS
            self.kept_duplicates += 1
        return ""

    def _copies(self, file: SourceFile) -> int:
        weights = self._config.filters.language_weights
        return copies_of(file.language, f"{file.repository}{file.path}", weights, self._config.seed) if weights else 1

    def _is_over_budget(self, batcher: TextBatcher) -> bool:
        """Whether this task has its share of `max_train_tokens`; waiting texts are encoded to know it."""
        if not self._config.max_train_tokens:
            return False
        batcher.flush()
        return self._writers[TRAIN].tokens >= self._config.max_train_tokens / self._config.num_tasks

    def _seen_of(self, kind: str) -> dict[str, int]:
        return self.seen.setdefault(kind, dict.fromkeys(("files", "bytes", "not_selected_files", "links_and_special_files"), 0))

    def _commit(self, repository: "_Repository", batcher: TextBatcher) -> None:
        """Pass on what was read of a repository."""
        for line in repository.dropped.take():
            self._dropped.add(*line)
        self.filters.add(repository.counts)
        for text in repository.texts:
            batcher.add(text)
        repository.texts, repository.held_bytes, repository.counts = [], 0, FilterCounts()

    def _leave_out(self, ref: RepositoryRef, error: str, repository: "_Repository") -> None:
        """Count a repository that cannot be read, and all that was read of it, as dropped."""
        self.bad_repositories.append(BadRepository(ref.name, error))
        if len(self.bad_repositories) > self._config.max_bad_repositories:
            raise MoseError(too_many_bad(self._config.max_bad_repositories, self.bad_repositories))
        files = sum(tally.files for tally in repository.counts.reasons.values())
        num_bytes = sum(tally.bytes for tally in repository.counts.reasons.values())
        repository.counts = FilterCounts()
        repository.counts.reasons[BAD_REPOSITORY] = Tally(files, num_bytes)
        lines = [(line[1], line[2], line[4]) for line in repository.dropped.take() if line[3] != REPLACED]
        # A weight may have taken in a text several times.
        lines += list({(text.source.path, text.source.blob_id, text.source.num_bytes) for text in repository.texts})
        # A line without a path stands for the repository where nothing of it was read.
        for path, blob_id, size in sorted(lines) or [("", "", 0)]:
            repository.dropped.add(ref.name, path, blob_id, BAD_REPOSITORY, size, error)
        repository.texts = []

    def flush(self) -> None:
        """Chunk the texts of incomplete batches."""
        for batcher in self._batchers.values():
            batcher.flush()

    def progress(self) -> TaskProgress:
        """What has been read and packed so far."""
        counts = [writer.counts for writer in self._writers.values()]
        rows, tokens = sum(count.rows for count in counts), sum(count.tokens for count in counts)
        return TaskProgress(self.repositories, rows, tokens, self.filters.reasons[KEPT].bytes, self._files)


class _Repository:
    """What was read of a repository so far."""

    def __init__(self) -> None:
        self.counts = FilterCounts()
        self.dropped = DroppedLines()
        self.texts: list[TextFile] = []
        self.held_bytes = 0

    def add(self, text: TextFile) -> None:
        """Hold a text that passed the filters."""
        self.texts.append(text)
        self.held_bytes += len(text.source.content)


def _first_bytes(files: Iterable[SourceFile], limit: int) -> Iterator[SourceFile]:
    """The files in order; those beyond `limit` bytes in total have no content, and a problem under which they are counted."""
    total = 0
    for file in files:
        fits = total + len(file.content) <= limit
        total += len(file.content) if fits else 0
        yield file if fits else _unread(file, OVER_HELD_OUT_LIMIT)


def _unread(file: SourceFile, problem: str) -> SourceFile:
    """The file without its content and with a problem, unless it has one already."""
    return file if file.problem else dataclasses.replace(file, content=b"", size=file.num_bytes, problem=problem)


def _row_statistics(writer: SplitWriter) -> dict[str, Any]:
    return {
        **dataclasses.asdict(writer.counts),
        "repositories": len(writer.repositories),
        "tokens_by_language": dict(writer.tokens_by_language),
    }

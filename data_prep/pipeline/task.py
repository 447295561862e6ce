"""One task of `mose-data pack`: its repositories read, filtered, encoded, cut, packed, and a completion marker written last."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.filters.decontamination import Decontaminator
from data_prep.filters.dropped_log import DroppedLog
from data_prep.filters.filters import KEPT, FilterCounts, filter_repository
from data_prep.pipeline.chunker import Cutter, Tools
from data_prep.pipeline.config import PackConfig, content_fingerprint
from data_prep.pipeline.split_writer import SplitWriter
from data_prep.sources.repositories import RepositoryRef, SourceFile, split_of
from mose.config import fingerprint
from mose.dataset.manifest import SPLITS, ShardEntry
from mose.errors import MoseError
from mose.files.atomic_file import write_json
from mose.files.storage import storage_path
from mose.tokenizer import Tokenizer, load_tokenizer

_EXAMPLES = 20


@dataclass(frozen=True)
class TaskResult:
    """What a completion marker says: which shards a task wrote, from what, and what it counted."""

    task: int
    config_fingerprint: str
    listing_fingerprint: str
    """Of the names of all repositories, those of other tasks included."""
    shards: dict[str, ShardEntry]
    """By split; a split without rows is left out."""
    rows: dict[str, dict[str, Any]]
    """`RowCounts` by split, with the number of repositories and tokens by language."""
    filters: dict[str, Any]
    """`FilterCounts`."""
    repositories: int
    unusable_repositories: int
    """Repositories of which no file passed the filters."""
    unusable_examples: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TaskProgress:
    """How far a task is: repositories read, rows and tokens packed, bytes of text that passed the filters."""

    repositories: int
    rows: int
    tokens: int
    bytes: int


def marker_path(dataset: Path, task: int) -> Path:
    """The completion marker of a task."""
    return dataset / "tasks" / f"task-{task:06d}.json"


def read_marker(path: Path) -> TaskResult | None:
    """The result of a finished task, None if it has not finished.

    Raises:
        MoseError: the file is there but is not a completion marker.
    """
    try:
        values = json.loads(path.read_text("utf-8"))
        values["shards"] = {split: ShardEntry(**entry) for split, entry in values["shards"].items()}
        return TaskResult(**values)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise MoseError(f"{path}: not a completion marker: {error}; remove it, and its task is run again") from None


def listing_fingerprint(refs: Sequence[RepositoryRef]) -> str:
    """Changes when a repository is added, removed or renamed."""
    return fingerprint([ref.name for ref in refs])


def run_task(
    config: PackConfig,
    task: int,
    repositories: Iterable[tuple[RepositoryRef, Iterator[SourceFile]]],
    listing: str,
    observe: Callable[[TaskProgress], None] = lambda progress: None,
) -> TaskResult:
    """Write the shards of one task from its repositories, then its marker; calls `observe` after each repository.

    Repositories are read one after another, so they may be streamed. The bytes depend on `config`, `task` and the files of
    `repositories` in their order only. `listing` is written into the marker.

    Raises:
        MoseError: a repository or the tokenizer cannot be read; nothing of the task is left behind.
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
    result = TaskResult(
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
    write_json(marker_path(dataset, task), dataclasses.asdict(result))
    return result


class _Reading:
    """The repositories of a task on their way from their source to the writer of their split."""

    def __init__(self, config: PackConfig, tokenizer: Tokenizer, writers: dict[str, SplitWriter], dropped: DroppedLog):
        self._config = config
        self._writers = writers
        self._dropped = dropped
        decontaminator = Decontaminator(config.decontamination) if config.decontamination.files else None
        tools = Tools.load(tokenizer, config.packing, decontaminator)
        self.filters = FilterCounts()
        self._cutters = {split: Cutter(tools, writer.add, self.filters, dropped) for split, writer in writers.items()}
        self.repositories = 0
        self.unusable_repositories = 0
        self.unusable_examples: list[str] = []

    def add(self, ref: RepositoryRef, files: Iterable[SourceFile]) -> None:
        """Read one repository to its end."""
        cutter = self._cutters[split_of(ref.name, self._config.seed, self._config.held_out_fraction)]
        is_usable = False
        for text in filter_repository(files, self._config.filters, self.filters, self._dropped):
            cutter.add(text)
            is_usable = True
        self.repositories += 1
        if not is_usable:
            self.unusable_repositories += 1
            self.unusable_examples += [ref.name] if len(self.unusable_examples) < _EXAMPLES else []

    def flush(self) -> None:
        """Hand on the texts that wait for a full batch."""
        for cutter in self._cutters.values():
            cutter.flush()

    def progress(self) -> TaskProgress:
        """How far it is."""
        counts = [writer.counts for writer in self._writers.values()]
        rows, tokens = sum(count.rows for count in counts), sum(count.tokens for count in counts)
        return TaskProgress(self.repositories, rows, tokens, self.filters.reasons[KEPT].bytes)


def _row_statistics(writer: SplitWriter) -> dict[str, Any]:
    return {
        **dataclasses.asdict(writer.counts),
        "repositories": len(writer.repositories),
        "tokens_by_language": dict(writer.tokens_by_language),
    }

"""One task of `mose-data pack`: its repositories read, filtered, encoded, cut, packed, and a completion marker written last."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.config import PackConfig, PackingConfig, content_fingerprint
from data_prep.encoding import Encoder
from data_prep.filters import FilterCounts, filter_repository
from data_prep.packing import piece_limit
from data_prep.pieces import VocabularyTable, byte_offsets, cut, vocabulary_table
from data_prep.pool import CutFile, lineage_of
from data_prep.records import RepositoryRef, TextFile
from data_prep.sources.source import read_repository
from data_prep.split import split_of
from data_prep.split_writer import SplitWriter
from mose.atomic_file import write_json
from mose.config import fingerprint
from mose.errors import MoseError
from mose.manifest import SPLITS, ShardEntry
from mose.seeding import derive_key
from mose.tokenizer import load_tokenizer

# With fewer repositories one of them may hold most of the tokens, and then half of the rows cannot be mixed.
MIN_REPOSITORIES_PER_TASK = 10
# Texts encoded at a time: enough to keep the encoder busy, little beside a pool.
_BATCH_CHARACTERS = 1 << 20
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


def deal_repositories(refs: Sequence[RepositoryRef], config: PackConfig) -> list[list[RepositoryRef]]:
    """The repositories of each task, in seeded order.

    Each split is dealt to as many tasks as leave `MIN_REPOSITORIES_PER_TASK` to each, at most `num_tasks`.
    """
    tasks: list[list[RepositoryRef]] = [[] for _ in range(config.num_tasks)]
    order = sorted(refs, key=lambda ref: (derive_key(config.seed, "repository order", ref.name), ref.name))
    for split in SPLITS:
        members = [ref for ref in order if split_of(ref.name, config.seed, config.held_out_fraction) == split]
        used = max(1, min(config.num_tasks, len(members) // MIN_REPOSITORIES_PER_TASK))
        for position, ref in enumerate(members):
            tasks[position % used].append(ref)
    return tasks


def run_task(
    config: PackConfig,
    task: int,
    refs: Sequence[RepositoryRef],
    listing: str,
    advance: Callable[[int], None] = lambda repositories: None,
) -> TaskResult:
    """Write the shards of one task from its repositories `refs`, then its marker; calls `advance(1)` after each repository.

    The bytes depend on `config`, `task` and the files of `refs` only. `listing` is written into the marker.

    Raises:
        MoseError: a repository or the tokenizer cannot be read; nothing of the task is left behind.
    """
    dataset = Path(config.output)
    tokenizer = load_tokenizer(Path(config.tokenizer))
    encoder, table = Encoder(tokenizer), vocabulary_table(tokenizer)
    filters = FilterCounts()
    unusable = []
    with contextlib.ExitStack() as stack:
        writers = {
            split: stack.enter_context(SplitWriter(dataset, split, task, config.seed, config.packing, tokenizer))
            for split in SPLITS
        }
        for ref in refs:
            writer = writers[split_of(ref.name, config.seed, config.held_out_fraction)]
            texts = filter_repository(read_repository(ref, config.sources), config.filters, filters)
            is_usable = False
            for file in _cut_files(texts, encoder, table, config.packing):
                writer.add(file)
                is_usable = True
            unusable += [] if is_usable else [ref.name]
            advance(1)
        entries = {split: writer.close() for split, writer in writers.items()}
    result = TaskResult(
        task=task,
        config_fingerprint=content_fingerprint(config, tokenizer),
        listing_fingerprint=listing,
        shards={split: entry for split, entry in entries.items() if entry},
        rows={split: _row_statistics(writer) for split, writer in writers.items()},
        filters=filters.to_plain(),
        repositories=len(refs),
        unusable_repositories=len(unusable),
        unusable_examples=unusable[:_EXAMPLES],
    )
    write_json(marker_path(dataset, task), dataclasses.asdict(result))
    return result


def _row_statistics(writer: SplitWriter) -> dict[str, Any]:
    return {
        **dataclasses.asdict(writer.counts),
        "repositories": len(writer.repositories),
        "tokens_by_language": dict(writer.tokens_by_language),
    }


def _cut_files(texts: Iterator[TextFile], encoder: Encoder, table: VocabularyTable, config: PackingConfig) -> Iterator[CutFile]:
    """Encode texts in batches and cut each into pieces; a text without tokens is passed over."""
    for batch in _batches(texts):
        for file, tokens_N in zip(batch, encoder.encode_batch([file.text for file in batch]), strict=True):
            bounds = cut(tokens_N, piece_limit(len(tokens_N), config), table)
            if len(tokens_N):
                yield CutFile(lineage_of(file.source), tokens_N, bounds, byte_offsets(tokens_N, bounds, file.text, table))


def _batches(texts: Iterator[TextFile]) -> Iterator[list[TextFile]]:
    batch: list[TextFile] = []
    characters = 0
    for file in texts:
        batch.append(file)
        characters += len(file.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch

"""Assigns repositories to tasks: a pure function of their names, the seed and the number of tasks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data_prep.pipeline.config import PackConfig
from data_prep.sources.registry import (
    SourcesConfig,
    grouped_parts,
    list_repositories,
    read_part,
    read_repository,
    source_fingerprint,
)
from data_prep.sources.repositories import RepositoryRef, SourceFile, split_of
from data_prep.sources.stack_v2.grouped import GroupedPart
from mose.dataset.manifest import SPLITS
from mose.errors import MoseError
from mose.seeding import derive_key


@dataclass(frozen=True)
class TaskInputs:
    """What one task reads: listed repositories, or whole parts of a grouped folder; small enough to send to a worker process."""

    refs: tuple[RepositoryRef, ...] = ()
    parts: tuple[GroupedPart, ...] = ()

    @property
    def expected_repositories(self) -> int:
        """Number of repositories of the task."""
        return len(self.refs) + sum(part.entry.repositories for part in self.parts)

    def read(self, config: SourcesConfig) -> Iterator[tuple[RepositoryRef, Iterator[SourceFile]]]:
        """Every repository with its files; consume the files of one repository before asking for the next.

        Raises:
            MoseError: a repository cannot be read; the line names it.
        """
        for ref in self.refs:
            yield ref, read_repository(ref, config)
        for part in self.parts:
            yield from read_part(part, config)


@dataclass(frozen=True)
class Assignment:
    """The inputs of all tasks."""

    num_tasks: int
    fingerprint: str
    """Changes when the sources do."""
    refs: tuple[tuple[RepositoryRef, ...], ...] = ()
    """By task, where the sources are listed."""
    parts: tuple[GroupedPart, ...] = ()
    """All parts, where the sources are grouped. Then no list of repositories exists: there may be sixty million."""

    def inputs_of(self, task: int) -> TaskInputs:
        """The inputs of one task: its listed repositories, or every `num_tasks`-th part from part `task` on."""
        return TaskInputs(self.refs[task] if self.refs else (), self.parts[task :: self.num_tasks])


def assign_sources(config: PackConfig) -> Assignment:
    """Assign the sources of a config to its tasks.

    Listed repositories are assigned in the order of a seeded hash of their names, so each task gets a random sample of the whole
    input. So does a task that reads parts of a grouped folder: `mose-data group` puts a repository into a part by such a hash.

    Raises:
        MoseError: there is no repository, a source cannot be listed, or there are more tasks than parts.
    """
    parts = grouped_parts(config.sources)
    if parts and len(parts) < config.num_tasks:
        raise MoseError(
            f"num_tasks: is {config.num_tasks}, expected at most {len(parts)}, the parts of "
            f"{', '.join(config.sources.stack_v2)}: a task reads whole parts; take fewer tasks, or group into more parts"
        )
    fingerprint = source_fingerprint(config.sources)
    if parts:
        return Assignment(config.num_tasks, fingerprint, parts=tuple(parts))
    refs = assign_repositories(list_repositories(config.sources), config)
    return Assignment(config.num_tasks, fingerprint, refs=tuple(map(tuple, refs)))


# Among fewer repositories, one may hold most of the tokens. Then there is too little else to mix with it in half of the rows.
MIN_REPOSITORIES_PER_TASK = 10


def assign_repositories(refs: Sequence[RepositoryRef], config: PackConfig) -> list[list[RepositoryRef]]:
    """The repositories of each task, in seeded order.

    Each split is spread over at most `num_tasks` tasks, each of which gets at least `MIN_REPOSITORIES_PER_TASK` repositories.
    """
    tasks: list[list[RepositoryRef]] = [[] for _ in range(config.num_tasks)]
    order = sorted(refs, key=lambda ref: (derive_key(config.seed, "repository order", ref.name), ref.name))
    for split in SPLITS:
        members = [ref for ref in order if split_of(ref.name, config.seed, config.held_out_fraction) == split]
        used = max(1, min(config.num_tasks, len(members) // MIN_REPOSITORIES_PER_TASK))
        for position, ref in enumerate(members):
            tasks[position % used].append(ref)
    return tasks

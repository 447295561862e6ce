"""Which repositories a task reads: a pure function of names, seed and number of tasks, never of machines or workers."""

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
class Share:
    """What one task reads: listed repositories, or whole parts of a grouped folder; small enough to be sent to a process."""

    refs: tuple[RepositoryRef, ...] = ()
    parts: tuple[GroupedPart, ...] = ()

    @property
    def expected_repositories(self) -> int:
        """Repositories of the task."""
        return len(self.refs) + sum(part.entry.repositories for part in self.parts)

    def read(self, config: SourcesConfig) -> Iterator[tuple[RepositoryRef, Iterator[SourceFile]]]:
        """Every repository with its files, one after another; the files of one are taken before the next is asked for.

        Raises:
            MoseError: a repository cannot be read; the line names it.
        """
        for ref in self.refs:
            yield ref, read_repository(ref, config)
        for part in self.parts:
            yield from read_part(part, config)


@dataclass(frozen=True)
class Deal:
    """What there is to deal, and to how many tasks."""

    num_tasks: int
    fingerprint: str
    """Changes when the sources do."""
    refs: tuple[tuple[RepositoryRef, ...], ...] = ()
    """By task, where the sources are listed."""
    parts: tuple[GroupedPart, ...] = ()
    """All of them, where the sources are grouped: no list of repositories exists then, they may be sixty million."""

    def share(self, task: int) -> Share:
        """What task `task` reads: its listed repositories, or the parts whose number leaves it over when divided by the tasks."""
        return Share(self.refs[task] if self.refs else (), self.parts[task :: self.num_tasks])


def deal_sources(config: PackConfig) -> Deal:
    """Share the sources of a config out to its tasks.

    Listed repositories are dealt in the order of a seeded hash of their names, so each task's are drawn from the whole input.
    So are the parts of a grouped folder: `mose-data group` puts a repository into a part by such a hash.

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
        return Deal(config.num_tasks, fingerprint, parts=tuple(parts))
    refs = deal_repositories(list_repositories(config.sources), config)
    return Deal(config.num_tasks, fingerprint, refs=tuple(map(tuple, refs)))


# With fewer repositories one of them may hold most of the tokens, and then half of the rows cannot be mixed.
MIN_REPOSITORIES_PER_TASK = 10


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

"""The repositories of a config: listed cheaply and in order, then read one at a time."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from data_prep.sources import directory, git_checkout, installed_packages
from data_prep.sources.blobs.store import open_store
from data_prep.sources.repositories import RepositoryRef, SourceFile
from data_prep.sources.stack_v2 import grouped
from data_prep.sources.stack_v2 import rows as stack_v2
from data_prep.sources.stack_v2.parquet_file import expand, footer_fingerprint
from mose.config import fingerprint, require
from mose.errors import MoseError


@dataclass(frozen=True)
class SourcesConfig:
    """Where the repositories are; several kinds may be given at once."""

    directories: tuple[str, ...] = ()
    """Folders whose child folders are one repository each."""
    repositories: tuple[str, ...] = ()
    """Folders that are one repository each."""
    git_checkouts: tuple[str, ...] = ()
    """Git work trees, one repository each; the files of HEAD are read, not those of the work tree."""
    installed_packages: bool = False
    """Take every distribution of this Python as a repository, named pypi/NAME."""
    stack_v2: tuple[str, ...] = ()
    """Parquet files, globs or folders of `mose-data group`, in The Stack v2 train-full-ids schema: one row a repository. Any may
    be a URL such as s3://bucket/folder/*.parquet."""
    blob_store: str = ""
    """Folder or URL of what `mose-data fetch` brought, for stack_v2 rows without content."""
    include_suffixes: tuple[str, ...] = ()
    """Only files whose path ends so, e.g. [.py, .pyi]; empty means all."""
    max_repositories: int = 0
    """Take only this many repositories, the first by name; 0 means all."""
    max_repository_bytes: int = 0
    """Stop reading a repository before the file, in path order, that would pass this many bytes in all (a single file
    above it is passed over); 0 means no limit."""

    def __post_init__(self) -> None:
        wrong = [suffix for suffix in self.include_suffixes if not suffix.startswith(".")]
        require(not wrong, f"include_suffixes: {wrong} do not begin with a dot; expected suffixes such as .py")
        require(self.max_repositories >= 0, f"max_repositories: is {self.max_repositories}, expected 0 or more")
        require(self.max_repository_bytes >= 0, f"max_repository_bytes: is {self.max_repository_bytes}, expected 0 or more")


def list_repositories(config: SourcesConfig) -> list[RepositoryRef]:
    """Every repository of the config, sorted by name; a second one of the same name is called `NAME#2`.

    Raises:
        MoseError: there is none, a path does not exist or cannot be read, a parquet file is corrupt or lacks a column.
    """
    refs = [ref for folder in config.directories for ref in directory.list_children(folder)]
    refs += [ref for folder in config.repositories for ref in directory.list_one(folder)]
    refs += [ref for folder in config.git_checkouts for ref in git_checkout.list_one(folder)]
    refs += installed_packages.list_all() if config.installed_packages else []
    for pattern in config.stack_v2:
        list_rows = grouped.list_rows if grouped.is_grouped(pattern) else stack_v2.list_rows
        refs += list_rows(pattern, bool(config.blob_store))
    if not refs:
        raise MoseError(
            "sources: no repositories at all; expected directories, repositories, git_checkouts, installed_packages or stack_v2"
        )
    refs = sorted(_numbered(sorted(set(refs))))
    return refs[: config.max_repositories] if config.max_repositories else refs


def read_repository(ref: RepositoryRef, config: SourcesConfig) -> Iterator[SourceFile]:
    """The files of one repository in path order, within the config's suffixes and byte limit.

    Raises:
        MoseError: a folder, file, commit or row cannot be read; the line names it.
    """
    readers: dict[str, Callable[[RepositoryRef, Callable[[str], bool]], Iterator[SourceFile]]] = {
        directory.KIND: directory.read,
        git_checkout.KIND: git_checkout.read,
        installed_packages.KIND: installed_packages.read,
        stack_v2.KIND: functools.partial(stack_v2.read, blob_store=config.blob_store),
        grouped.KIND: functools.partial(grouped.read, blob_store=config.blob_store),
    }
    return _capped(readers[ref.kind](ref, _wanted(config)), config.max_repository_bytes)


def grouped_parts(config: SourcesConfig) -> list[grouped.GroupedPart]:
    """The parts of the config's grouped folders, numbered from 0; none where the config has no grouped folder.

    Raises:
        MoseError: a grouped folder stands beside other sources, or is limited by max_repositories; grouped.json is damaged.
    """
    folders = [pattern for pattern in config.stack_v2 if grouped.is_grouped(pattern)]
    if not folders:
        return []
    others = (config.directories, config.repositories, config.git_checkouts, config.installed_packages)
    if any(others) or len(folders) < len(config.stack_v2):
        raise MoseError(
            f"{folders[0]}: sources: a folder of `mose-data group` beside others; expected only such folders, or none"
        )
    if config.max_repositories:
        raise MoseError(f"{folders[0]}: sources.max_repositories: is {config.max_repositories}, expected 0 with a grouped folder")
    return grouped.parts_of(folders)


def read_part(part: grouped.GroupedPart, config: SourcesConfig) -> Iterator[tuple[RepositoryRef, Iterator[SourceFile]]]:
    """The repositories of one part in its order, each with its files in path order, within the suffixes and the byte limit.

    The files of a repository must be taken before the next repository is asked for; those not taken are passed over.

    Raises:
        MoseError: the part or the blob store is damaged; the line names the file.
    """
    for ref, files in grouped.read_part(part, _wanted(config), config.blob_store):
        yield ref, _capped(files, config.max_repository_bytes)


def source_fingerprint(config: SourcesConfig) -> str:
    """Changes when the inputs do: size and footer of parquet files, grouped.json, packs of the blob store, else repository names.

    No row of a parquet file is read.

    Raises:
        MoseError: an input does not exist or cannot be read.
    """
    facts: list[str] = []
    for pattern in config.stack_v2:
        if grouped.is_grouped(pattern):
            facts.append(grouped.read_description(pattern).fingerprint)
        else:
            facts += [footer_fingerprint(path) for path in expand(pattern)]
    others = replace(config, stack_v2=(), max_repositories=0)
    if any((others.directories, others.repositories, others.git_checkouts, others.installed_packages)):
        facts += [ref.name for ref in list_repositories(others)]
    store = open_store(config.blob_store).fingerprint() if config.blob_store else ""
    return fingerprint([facts, store])


def _wanted(config: SourcesConfig) -> Callable[[str], bool]:
    suffixes = config.include_suffixes
    return lambda path: not suffixes or path.endswith(suffixes)


def _numbered(refs: list[RepositoryRef]) -> list[RepositoryRef]:
    taken: set[str] = set()
    numbered = []
    for ref in refs:
        name, number = ref.name, 1
        while name in taken:
            number += 1
            name = f"{ref.name}#{number}"
        taken.add(name)
        numbered.append(replace(ref, name=name))
    return numbered


def _capped(files: Iterator[SourceFile], max_bytes: int) -> Iterator[SourceFile]:
    """Files up to `max_bytes` in all; 0 means no limit."""
    if not max_bytes:
        yield from files
        return
    total = 0
    for file in files:
        # One file above the whole limit must not end the repository before it began.
        if len(file.content) > max_bytes:
            continue
        total += len(file.content)
        if total > max_bytes:
            return
        yield file

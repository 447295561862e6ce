"""The repositories of a config: listed cheaply and in order, then read one at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from data_prep.records import RepositoryRef, SourceFile
from data_prep.sources import directory, git_checkout, installed_packages, stack_v2
from mose.config import require
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
    """Parquet files, or globs, in The Stack v2 train-full-ids schema with content in files; one row a repository."""
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
    refs += [ref for pattern in config.stack_v2 for ref in stack_v2.list_rows(pattern)]
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
        stack_v2.KIND: stack_v2.read,
    }
    suffixes = config.include_suffixes
    files = readers[ref.kind](ref, lambda path: not suffixes or path.endswith(suffixes))
    return _capped(files, config.max_repository_bytes) if config.max_repository_bytes else files


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
    total = 0
    for file in files:
        # One file above the whole limit must not end the repository before it began.
        if len(file.content) > max_bytes:
            continue
        total += len(file.content)
        if total > max_bytes:
            return
        yield file

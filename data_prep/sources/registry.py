"""The registry of sources: lists the repositories of a config by name and reads them one at a time."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from data_prep.sources.blobs.store import open_store
from data_prep.sources.detection.licences import FolderLicences, is_licence_file
from data_prep.sources.directory import CHILD_FOLDERS, FOLDER, named_place, remark_on_children
from data_prep.sources.file_kinds import detected, licensed
from data_prep.sources.git_checkout import GIT_CHECKOUT
from data_prep.sources.installed_packages import INSTALLED_PACKAGES
from data_prep.sources.repositories import (
    OVER_REPOSITORY_LIMIT,
    UNREADABLE,
    Limit,
    RepositoryRef,
    SelectedFiles,
    Selection,
    SourceFile,
    SourceKind,
)
from data_prep.sources.stack_v2 import grouped
from data_prep.sources.stack_v2.grouped import GROUPED
from data_prep.sources.stack_v2.rows import ROWS
from mose.config import fingerprint, require
from mose.errors import MoseError


def _source(*kinds: SourceKind, default: Any = ()) -> Any:
    """A config field whose entries are sources of these kinds."""
    return field(default=default, metadata={"kinds": kinds})


# The registry: each field made by `_source` belongs to one kind of source, or to several distinguished by `SourceKind.accepts`.
@dataclass(frozen=True)
class SourcesConfig:
    """Where the repositories are; several kinds can be combined."""

    directories: tuple[str, ...] = _source(CHILD_FOLDERS)
    """Folders whose child folders are one repository each."""
    repositories: tuple[str, ...] = _source(FOLDER)
    """Folders that are one repository each, named after the folder, or NAME=FOLDER."""
    git_checkouts: tuple[str, ...] = _source(GIT_CHECKOUT)
    """Git work trees, one repository each, or NAME=FOLDER; the files of HEAD are read, not those of the work tree."""
    installed_packages: bool = _source(INSTALLED_PACKAGES, default=False)
    """Take every distribution of this Python as a repository, named pypi/NAME."""
    stack_v2: tuple[str, ...] = _source(GROUPED, ROWS)
    """Parquet files, globs or folders of `mose-data group`, in The Stack v2 train-full-ids schema: one row per repository. Each
    may be a URL such as s3://bucket/folder/*.parquet."""
    blob_store: str = ""
    """Folder or URL of what `mose-data fetch` stored, for stack_v2 rows without content."""
    detection: Literal["linguist", "suffix"] = "linguist"
    """How language, generated, vendored and encoding of the files of folders, git checkouts and packages are found: by the rules
    of GitHub Linguist, where notebooks lose their outputs and LFS pointers are dropped, or by a short table of suffixes, all
    UTF-8, as in the first version. Rows of stack_v2 bring their own."""
    detect_licences: bool = True
    """Find the licences of folders and git checkouts: SPDX tags, the nearest LICENSE or COPYING, the manifest of a package; files
    that no licence covers are no_license. If false, all are unknown."""
    include_suffixes: tuple[str, ...] = ()
    """Only files whose path ends so, e.g. [.py, .pyi]; empty means all."""
    max_repositories: int = 0
    """Take only this many repositories, the first by name; 0 means all."""
    max_repository_bytes: int = 0
    """Read the files of a repository in path order until the next one would exceed this many bytes in total (a single file
    larger than it is skipped); 0 means no limit."""

    def __post_init__(self) -> None:
        wrong = [suffix for suffix in self.include_suffixes if not suffix.startswith(".")]
        require(not wrong, f"include_suffixes: {wrong} do not begin with a dot; expected suffixes such as .py")
        require(self.max_repositories >= 0, f"max_repositories: is {self.max_repositories}, expected 0 or more")
        require(self.max_repository_bytes >= 0, f"max_repository_bytes: is {self.max_repository_bytes}, expected 0 or more")


def list_repositories(config: SourcesConfig) -> list[RepositoryRef]:
    """Every repository of the config, sorted by name; a second one with the same name becomes `NAME#2`.

    Raises:
        MoseError: there is no repository, a path does not exist or cannot be read, a parquet file is corrupt or lacks a column.
    """
    refs = _list(_entries(config), config.blob_store)
    return refs[: config.max_repositories] if config.max_repositories else refs


def remarks(config: SourcesConfig) -> list[str]:
    """One line for each source with something beside its repositories that is not read."""
    return [line for line in map(remark_on_children, config.directories) if line]


def read_repository(ref: RepositoryRef, config: SourcesConfig, only: frozenset[str] | None = None) -> Iterator[SourceFile]:
    """The files of one repository in path order, within the config's suffixes and byte limit; with `only`, those of these paths.

    Raises:
        MoseError: a folder, file, commit or row cannot be read; the message names it.
    """
    kind = _kind_of(ref)
    selection = Selection(config.include_suffixes, only)
    files = _capped(kind.read(ref, selection, config.blob_store), selection, config)
    if config.detect_licences and not kind.knows_licences:
        files = _with_licences(files, kind, ref)
    if config.detection == "linguist" and not kind.knows_files:
        files = map(detected, files)
    return SelectedFiles(files, selection)


def _with_licences(files: Iterator[SourceFile], kind: SourceKind, ref: RepositoryRef) -> Iterator[SourceFile]:
    """The same files with their licences, for which all licence files of the repository are read first."""
    licences = FolderLicences()
    for stated in kind.read(ref, is_licence_file, ""):
        licences.add(stated.path.lstrip("/"), stated.content)
    for file in files:
        yield licensed(file, licences)


def listed_files(ref: RepositoryRef, config: SourcesConfig) -> list[tuple[str, int, bool]]:
    """Path, bytes, and whether it is within `max_repository_bytes`, of each file of a listed repository, without its content.

    Empty if the repository cannot be read.
    """
    selection = Selection(config.include_suffixes)
    selection.is_full = True
    limit = Limit(config.max_repository_bytes)
    try:
        files = _kind_of(ref).read(ref, selection, config.blob_store)
        return [(file.path, file.num_bytes, limit.takes(file.num_bytes)) for file in files]
    except (MoseError, OSError):
        return []


def state_of(ref: RepositoryRef, config: SourcesConfig) -> str:
    """A text that changes when a listed repository does; empty where `source_fingerprint` covers its content."""
    kind = _kind_of(ref)
    if kind.state is None:
        return ""
    try:
        return kind.state(ref)
    except (MoseError, OSError):
        return UNREADABLE


def grouped_parts(config: SourcesConfig) -> list[grouped.GroupedPart]:
    """The parts of the config's grouped folders, numbered from 0; empty if the config has no grouped folder.

    Raises:
        MoseError: a grouped folder is combined with other sources, or is limited by max_repositories; grouped.json is damaged.
    """
    entries = list(_entries(config))
    folders = [entry for kind, entry in entries if kind is GROUPED]
    if not folders:
        return []
    if len(folders) < len(entries):
        raise MoseError(
            f"{folders[0]}: sources: a folder of `mose-data group` beside others; expected only such folders, or none"
        )
    if config.max_repositories:
        raise MoseError(f"{folders[0]}: sources.max_repositories: is {config.max_repositories}, expected 0 with a grouped folder")
    return grouped.parts_of(folders)


def read_part(part: grouped.GroupedPart, config: SourcesConfig) -> Iterator[tuple[RepositoryRef, Iterator[SourceFile]]]:
    """The repositories of one part in its order, each with its files in path order, within the suffixes and the byte limit.

    Read the files of a repository before asking for the next repository: the part is streamed, so unread files are skipped.

    Raises:
        MoseError: the part or the blob store is damaged; the message names the file.
    """
    selections: dict[RepositoryRef, Selection] = {}

    def select(ref: RepositoryRef) -> Selection:
        selections.clear()
        return selections.setdefault(ref, Selection(config.include_suffixes))

    for ref, files in grouped.read_part(part, select, config.blob_store):
        yield ref, SelectedFiles(_capped(files, selections[ref], config), selections[ref])


def source_fingerprint(config: SourcesConfig) -> str:
    """A hash of the inputs: size and footer of parquet files, grouped.json, packs of the blob store, else repository names.

    Rows of parquet files are not read, because a data set may have billions of them.

    Raises:
        MoseError: an input does not exist or cannot be read.
    """
    facts: list[str] = []
    listed = []
    for kind, entry in _entries(config):
        if kind.facts:
            facts += kind.facts(entry)
        else:
            listed.append((kind, entry))
    if listed:
        facts += [ref.name for ref in _list(listed, config.blob_store)]
    store = open_store(config.blob_store).fingerprint() if config.blob_store else ""
    return fingerprint([facts, store])


def _kinds() -> dict[str, tuple[SourceKind, ...]]:
    """The kinds of source by config field."""
    return {item.name: item.metadata["kinds"] for item in fields(SourcesConfig) if "kinds" in item.metadata}


def _kind_of(ref: RepositoryRef) -> SourceKind:
    return next(kind for kinds in _kinds().values() for kind in kinds if kind.name == ref.kind)


def _entries(config: SourcesConfig) -> Iterator[tuple[SourceKind, str]]:
    """Every entry of every source field, with its kind; a boolean field that is true counts as one empty entry."""
    for name, kinds in _kinds().items():
        value = getattr(config, name)
        for entry in value if isinstance(value, tuple) else ("",) * value:
            yield next(kind for kind in kinds if kind.accepts(entry)), entry


def _list(entries: Iterable[tuple[SourceKind, str]], blob_store: str) -> list[RepositoryRef]:
    listed = list(entries)
    refs = [ref for kind, entry in listed for ref in _list_entry(kind, entry, blob_store, is_only=len(listed) == 1)]
    if not refs:
        *names, last = _kinds()
        empty = f": {', '.join(entry for _, entry in listed[:3])} held none" if listed else ""
        raise MoseError(f"sources: no repositories at all{empty}; expected {', '.join(names)} or {last}")
    return sorted(_numbered(sorted(set(refs))))


def _list_entry(kind: SourceKind, entry: str, blob_store: str, *, is_only: bool) -> list[RepositoryRef]:
    try:
        return kind.list_entry(entry, blob_store)
    except MoseError:
        # One damaged repository among others is left out when it is read, with the same message.
        name, place = named_place(entry)
        if is_only or kind not in (GIT_CHECKOUT, FOLDER) or not Path(place).is_dir():
            raise
        return [RepositoryRef(name, kind.name, place)]


def _numbered(refs: list[RepositoryRef]) -> list[RepositoryRef]:
    # A NAME#2 may itself be the name of a repository, so count up until the name is free.
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


def _capped(files: Iterator[SourceFile], selection: Selection, config: SourcesConfig) -> Iterator[SourceFile]:
    """The files, without content and with a problem beyond `max_repository_bytes` in total; 0 means no limit."""
    limit = Limit(config.max_repository_bytes)
    for file in files:
        if file.problem or limit.takes(len(file.content)):
            yield file
            continue
        selection.is_full = limit.is_reached
        yield replace(file, content=b"", size=file.num_bytes, problem=OVER_REPOSITORY_LIMIT)

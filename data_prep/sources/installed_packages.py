"""The source that reads installed Python distributions: one repository each, with the files that its RECORD lists."""

import importlib.metadata
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from data_prep.sources.directory import file_size, read_content
from data_prep.sources.file_kinds import LANGUAGE_OF_SUFFIX, found_file, unread_file
from data_prep.sources.repositories import OVER_REPOSITORY_LIMIT, RepositoryRef, SourceFile, SourceKind, is_full
from mose.errors import MoseError

KIND = "installed_package"
PREFIX = "pypi/"
PERMISSIVE = re.compile(r"\b(mit|0?bsd|apache|isc|psf|psfl|python|python-2\.0|zlib|unlicense|cc0|boost|bsl-1\.0|hpnd|mit-cmu)\b")
COPYLEFT = re.compile(r"gpl|general public|mozilla|mpl|eupl|cddl|proprietary|nvidia")
LONGEST_LICENCE = 80


def list_all() -> list[RepositoryRef]:
    """Every distribution on the import path, named `pypi/NAME`; of two with one name, the first on the path counts."""
    names = {_normal(dist.metadata["Name"]): dist.metadata["Name"] for dist in _distributions()}
    return [RepositoryRef(name=PREFIX + name, kind=KIND, location=location) for name, location in names.items()]


def read(ref: RepositoryRef, wanted: Callable[[str], bool]) -> Iterator[SourceFile]:
    """The distribution's text files (by suffix) in path order, without scripts outside the library folder.

    Raises:
        MoseError: the distribution was uninstalled, or one of its files cannot be read.
    """
    try:
        dist = importlib.metadata.distribution(ref.location)
    except importlib.metadata.PackageNotFoundError:
        raise MoseError(f"{ref.location}: installed_packages: no such distribution; it was there when listed") from None
    licences, licence_type = licences_of(dist.metadata.get_all)
    for name in sorted({entry.as_posix() for entry in dist.files or ()}):
        path = Path(str(dist.locate_file(name)))
        if _is_text(name) and wanted(name) and path.is_file():
            if is_full(wanted):
                yield unread_file(ref.name, name, file_size(path), OVER_REPOSITORY_LIMIT)
            else:
                yield found_file(ref.name, name, read_content(path), licences, licence_type)


def licences_of(get_all: Callable[[str], list[str] | None]) -> tuple[tuple[str, ...], str]:
    """Licence names from a distribution's metadata, and `permissive` if one is permissive and none copyleft, else `unknown`."""
    classifiers = [text.rpartition(" :: ")[2] for text in get_all("Classifier") or [] if text.startswith("License ::")]
    names = get_all("License-Expression") or classifiers or [text.split("\n")[0] for text in get_all("License") or []]
    licences = tuple(name[:LONGEST_LICENCE] for name in names if name and name != "UNKNOWN")
    text = " ".join(licences).lower()
    return licences, "permissive" if PERMISSIVE.search(text) and not COPYLEFT.search(text) else "unknown"


def _distributions() -> list[importlib.metadata.Distribution]:
    return [dist for dist in reversed(list(importlib.metadata.distributions())) if dist.metadata["Name"]]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _is_text(name: str) -> bool:
    path = PurePosixPath(name)
    outside = ".." in path.parts or path.is_absolute()
    return path.suffix.lower() in LANGUAGE_OF_SUFFIX and not outside and not path.parts[0].endswith((".dist-info", ".egg-info"))


INSTALLED_PACKAGES = SourceKind(
    KIND,
    lambda *_: list_all(),
    lambda ref, wanted, _: read(ref, wanted),
    knows_licences=True,
    state=lambda ref: f"version {importlib.metadata.version(ref.location)}",
)

"""The functions that can be found: those of a tree of source files, or those of a file of pairs."""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mose.dataset.functions import LARGEST_SOURCE_BYTES, FunctionReader
from mose.dataset.languages import BY_SUFFIX
from mose.dataset.pairs import Pair
from mose.errors import MoseError

# A definition is looked for first: the first name before a bracket may be a decorator's.
_NAMES = (re.compile(r"^\s*(?:async\s+)?(?:def|function|func|fn)\s+(\w+)", re.MULTILINE), re.compile(r"(\w+)\s*\("))
# Folders of code that others wrote or a tool made; hidden ones are left out as well.
_LEFT_OUT = ("node_modules", "__pycache__", "site-packages", "venv")


@dataclass(frozen=True)
class Function:
    """One function: its name, its source without the docstring, the language, and where it is."""

    name: str
    code: str
    language: str
    place: str
    """`path:line`, or repository and path of a pair."""
    signature: str = ""


@dataclass(frozen=True)
class SourceFile:
    """One file: its path relative to the folder searched, its bytes and their digest."""

    path: str
    content: bytes

    @property
    def digest(self) -> bytes:
        """16 bytes that differ where the content or its kind does."""
        return hashlib.blake2b(self.content, digest_size=16, key=Path(self.path).suffix.encode()[:64]).digest()

    def functions(self, reader: FunctionReader) -> list[Function]:
        """The functions of the file."""
        found = reader.read(self.content, Path(self.path).suffix)
        return [Function(each.name, each.code, each.language, f"{self.path}:{each.line}", each.signature) for each in found]


def function_of_pair(pair: Pair) -> Function:
    """The code side of a pair; its name is the first one that it defines, or else the first one before a bracket."""
    found = next((match for pattern in _NAMES if (match := pattern.search(pair.code_a))), None)
    name = found[1] if found else pair.code_a.split("\n")[0]
    return Function(name, pair.code_a, pair.lang_a, f"{pair.repository} {pair.path}".strip())


def source_files(folder: Path) -> Iterator[SourceFile]:
    """The source files below `folder` in path order; links, hidden folders and those of packages are left out.

    Files that cannot be read or are larger than `LARGEST_SOURCE_BYTES` are skipped.

    Raises:
        MoseError: there is no such folder.
    """
    if not folder.is_dir():
        raise MoseError(f"{folder}: no such folder, expected one with source files")
    paths = []
    for base, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _LEFT_OUT]
        paths += [Path(base) / name for name in names if not name.startswith(".") and Path(name).suffix in BY_SUFFIX]
    for path in sorted(paths):
        try:
            if not path.is_file() or path.is_symlink() or path.stat().st_size > LARGEST_SOURCE_BYTES:
                continue
            content = path.read_bytes()
        except OSError:
            continue
        # A name that is not UTF-8 is shown with its bytes escaped, and no store could hold it otherwise.
        yield SourceFile(os.fsencode(path.relative_to(folder)).decode("utf-8", "backslashreplace"), content)


def functions_of_folder(folder: Path) -> list[Function]:
    """The functions and methods of every source file below `folder`, file by file in path order.

    Raises:
        MoseError: there is no such folder, or it holds no function.
    """
    files, reader = list(source_files(folder)), FunctionReader()
    functions = [function for file in files for function in file.functions(reader)]
    if not functions:
        raise no_functions(folder, len(files))
    return functions


def no_functions(folder: Path, files: int) -> MoseError:
    """What is raised where there is nothing to search."""
    return MoseError(f"{folder}: no function in {files} source files, expected one or more")

"""Reads CodeSearchNet's files of JSON lines, as they are on disk, into the miner's functions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.synthconl.mining.documentation import comment_text, first_paragraph, summary_of_comment
from data_prep.synthconl.mining.functions import PYTHON, DocumentedFunction, functions_of
from mose.dataset.functions import FunctionReader
from mose.dataset.languages import LANGUAGES
from mose.errors import MoseError
from mose.files.json_file import json_lines

_FIELDS = ("docstring", "code", "language", "repo", "path", "func_name", "partition", "url")
_OPTIONAL = ("func_name", "partition", "url")
_NAMES = {language.name.lower(): language.name for language in LANGUAGES}


@dataclass(frozen=True)
class PublishedFunction:
    """A line of CodeSearchNet: the function, and where it is from."""

    function: DocumentedFunction
    repository: str
    path: str
    url: str
    partition: str
    """`train`, `valid`, `test`, or empty."""


def input_files(patterns: Sequence[str]) -> list[Path]:
    """The files of paths, whose last part may be a glob, sorted.

    Raises:
        MoseError: a pattern matches nothing.
    """
    found: set[Path] = set()
    for pattern in patterns:
        matches = list(Path(pattern).parent.glob(Path(pattern).name))
        if not matches:
            raise MoseError(f"{pattern}: code_search_net: no such file, expected CodeSearchNet's .jsonl or .jsonl.gz")
        found.update(matches)
    return sorted(found)


def read_functions(path: Path, reader: FunctionReader) -> Iterator[PublishedFunction]:
    """The functions of a file. Python's docstring is cut out of the code, where CodeSearchNet left it.

    Raises:
        MoseError: the file cannot be read, or a line is not JSON or lacks a field.
    """
    for where, row in json_lines(path, _FIELDS):
        for name in _FIELDS:
            if not isinstance(row[name], str) and not (name in _OPTIONAL and row[name] is None):
                raise MoseError(f"{where}: {name}: {row[name]!r}, expected text")
        language = _NAMES.get(row["language"].lower(), row["language"])
        *outer, name = (row["func_name"] or "").split(".")
        if language == PYTHON:
            inside = next(functions_of(row["code"], "", PYTHON, reader), None)
            # Their code has the docstring; that of other cuts of the same schema does not, and stays as it is.
            code = inside.code if inside is not None and inside.summary else row["code"]
            summary = first_paragraph(row["docstring"])
        else:
            code, summary = row["code"], summary_of_comment(comment_text(row["docstring"]))
        function = DocumentedFunction(name, outer[-1] if outer else "", summary, code.strip("\n"), language, 0)
        yield PublishedFunction(function, row["repo"], row["path"], row["url"] or "", row["partition"] or "")

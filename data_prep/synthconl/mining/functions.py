"""The documented functions of one source file, in ten and more languages: the one miner behind `pairs` and `seeds`."""

import ast
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from data_prep.synthconl.mining.documentation import comment_text, docstring_text, first_paragraph, summary_of_comment
from mose.dataset.functions import FunctionReader, SourceFunction
from mose.dataset.languages import BY_SUFFIX, LANGUAGES

PYTHON = "Python"


@dataclass(frozen=True)
class DocumentedFunction:
    """A function's name, the first paragraph of its documentation on one line, and its source without a docstring."""

    name: str
    """Without the class or module it stands in."""
    owner: str
    """The class or module it stands in, without what that stands in; empty where there is none."""
    summary: str
    """Empty where it has no documentation."""
    code: str
    """Empty where the docstring cannot be left out, or nothing else remains."""
    language: str
    line: int
    """Line of the definition in its file, counted from 1."""
    has_error: bool = False
    """Whether the grammar could not read part of it."""


def functions_of(source: str, path: str, language: str, reader: FunctionReader) -> Iterator[DocumentedFunction]:
    """The functions and methods of a file in file order, undocumented ones with an empty summary.

    Functions inside functions are skipped. A file of a language without grammar, or a Python file that does not parse, has none.
    `language` decides on the grammar where the suffix fits several languages (.h) or none.

    Raises:
        MoseError: the grammar of the language is not installed.
    """
    found = read_functions(source, path, language, reader)
    if language != PYTHON:
        yield from found
    elif (functions := list(found)) and is_python(source):
        yield from functions


def read_functions(source: str, path: str, language: str, reader: FunctionReader) -> Iterator[DocumentedFunction]:
    """As `functions_of`, but of a Python file that does not parse, what the grammar finds in it."""
    # This look costs far less than the parser, and many Python files hold data or imports only.
    if language == PYTHON and "def" not in source:
        return
    source = _unified(source)
    functions = reader.read(source.encode("utf-8"), _suffix(path, language))
    # Split as the grammars count lines: str.splitlines would also split at form feeds and U+2028.
    lines = source.split("\n")
    for function in functions:
        is_python = function.language == PYTHON
        summary, code = _python_parts(function, lines) if is_python else _parts(function)
        *outer, name = function.name.replace("::", ".").split(".")
        owner = outer[-1] if outer else ""
        yield DocumentedFunction(name, owner, summary, code, function.language, function.line, function.has_error)


def _unified(source: str) -> str:
    return source.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _suffix(path: str, language: str) -> str:
    suffix = PurePosixPath(path).suffix
    by_suffix = BY_SUFFIX.get(suffix)
    if by_suffix is not None and by_suffix.name == language:
        return suffix
    return next((entry.suffixes[0] for entry in LANGUAGES if entry.name == language), "")


def is_python(source: str) -> bool:
    """Whether Python 3 accepts it; the grammar also takes Python 2, and finds functions in broken files."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(_unified(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _python_parts(function: SourceFunction, lines: list[str]) -> tuple[str, str]:
    """Summary and code by whole lines, so that a comment behind the last statement stays."""
    first, last = function.lines
    if function.doc_lines is None:
        # A comment above is no docstring, and a docstring on a line with code cannot be cut out.
        has_comment = not function.doc or function.doc.startswith("#")
        return "", textwrap.dedent("\n".join(lines[first - 1 : last])) if has_comment else ""
    doc_first, doc_last = function.doc_lines
    code = textwrap.dedent("\n".join(lines[first - 1 : doc_first - 1] + lines[doc_last:last]))
    return first_paragraph(docstring_text(function.doc)), code


def _parts(function: SourceFunction) -> tuple[str, str]:
    return summary_of_comment(comment_text(function.doc)), function.code

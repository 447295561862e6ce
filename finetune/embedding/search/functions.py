"""The functions that can be found: those of a tree of Python files, or those of a file of pairs."""

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mose.dataset.pairs import Pair
from mose.errors import MoseError

LANGUAGE = "Python"
# A definition is looked for first: the first name before a bracket may be a decorator's.
_NAMES = (re.compile(r"^\s*(?:async\s+)?(?:def|function|func|fn)\s+(\w+)", re.MULTILINE), re.compile(r"(\w+)\s*\("))
AnyFunction = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Function:
    """One function: its name, its source without the docstring, the language, and where it is."""

    name: str
    code: str
    language: str
    place: str


def function_of_pair(pair: Pair) -> Function:
    """The code side of a pair; its name is the first one that it defines, or else the first one before a bracket."""
    found = next((match for pattern in _NAMES if (match := pattern.search(pair.code_a))), None)
    name = found[1] if found else pair.code_a.split("\n")[0]
    return Function(name, pair.code_a, pair.lang_a, f"{pair.repository} {pair.path}".strip())


def functions_of_folder(folder: Path) -> list[Function]:
    """The functions and methods of every Python file below `folder`, file by file in path order; hidden folders are left out.

    Files that do not parse are skipped.

    Raises:
        MoseError: there is no such folder, or it holds no Python function.
    """
    if not folder.is_dir():
        raise MoseError(f"{folder}: no such folder, expected one with Python files")
    paths = [path for path in sorted(folder.rglob("*.py")) if path.is_file() and not _is_hidden(path.relative_to(folder))]
    functions = [function for path in paths for function in _functions_of_file(path, folder)]
    if not functions:
        raise MoseError(f"{folder}: no Python function in {len(paths)} .py files, expected one or more")
    return functions


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _functions_of_file(path: Path, folder: Path) -> list[Function]:
    try:
        source = path.read_text("utf-8", errors="replace")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    # Lines as ast counts them: str.splitlines would also split at form feeds and U+2028.
    lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    found = []
    for name, node in _definitions(tree.body, ""):
        place = f"{path.relative_to(folder)}:{node.lineno}"
        found.append(Function(name, _code_without_docstring(node, lines), LANGUAGE, place))
    return found


def _definitions(body: Sequence[ast.stmt], prefix: str) -> Iterator[tuple[str, AnyFunction]]:
    """Functions of a module and of its classes, with the class in front of the name; not those inside functions."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _definitions(node.body, f"{prefix}{node.name}.")


def _code_without_docstring(node: AnyFunction, lines: Sequence[str]) -> str:
    """The function's source. Its docstring is left out, as in training, where it is the question."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    last = node.end_lineno or node.lineno
    kept = lines[first - 1 : last]
    if ast.get_docstring(node) is not None and len(node.body) > 1 and node.body[1].lineno > (node.body[0].end_lineno or 0):
        docstring = node.body[0]
        if docstring.lineno > node.lineno:
            kept = [*lines[first - 1 : docstring.lineno - 1], *lines[docstring.end_lineno or docstring.lineno : last]]
    return textwrap.dedent("\n".join(kept))

"""`mose-data pairs`: extracts (docstring, code) pairs from documented Python functions, for fine-tuning."""

import ast
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from data_prep.console import show_progress
from data_prep.filters.config import FiltersConfig
from data_prep.filters.filters import FilterCounts, filter_repository
from data_prep.sources.registry import SourcesConfig, list_repositories, read_repository
from data_prep.sources.repositories import RepositoryRef, TextFile, content_sha1, split_of
from mose.command import Command, add_config, read_config
from mose.config import require
from mose.dataset.pairs import Pair, write_pairs
from mose.errors import MoseError
from mose.files.lock import lock_file
from mose.seeding import generator

LANGUAGE = "Python"
# CodeSearchNet drops docstrings that are not English; the share of non-ASCII characters approximates that.
MAX_NON_ASCII_SHARE = 0.1


@dataclass(frozen=True)
class PairsConfig:
    """Which documented functions become pairs. The rules are CodeSearchNet's (Husain et al. 2019, section 2)."""

    output: str
    """Parquet file to write."""
    sources: SourcesConfig = field(default_factory=SourcesConfig)
    """Where the repositories are."""
    filters: FiltersConfig = field(default_factory=FiltersConfig)
    """Filters of the files."""
    held_out_fraction: float = 0.02
    """Share of repositories in the split held_out; with the value and seed of pack, the same repositories are held out."""
    seed: int = 0
    """Chooses the held-out repositories and, above max_pairs_per_repository, the pairs."""
    min_docstring_words: int = 3
    """Drop functions whose docstring has fewer words in its first paragraph."""
    min_code_lines: int = 3
    """Drop functions with fewer lines of code, without blank lines and the docstring."""
    max_pairs_per_repository: int = 0
    """Keep a seeded sample of this size of each repository; 0 means all."""

    def __post_init__(self) -> None:
        require(
            0 <= self.held_out_fraction < 1, f"held_out_fraction: is {self.held_out_fraction}, expected 0 or more and below 1"
        )
        for name in ("min_docstring_words", "min_code_lines", "max_pairs_per_repository"):
            require(getattr(self, name) >= 0, f"{name}: is {getattr(self, name)}, expected 0 or more")


@dataclass(frozen=True)
class DocumentedFunction:
    """A function's name, the first paragraph of its docstring on one line, and its source without the docstring."""

    name: str
    summary: str
    code: str


def build_pairs(config: PairsConfig) -> list[Pair]:
    """Mine every repository, write the pairs and print counts; deterministic for the same input and config.

    Raises:
        MoseError: no repositories, none with a documented Python function, or another process writes the output.
    """
    output = Path(config.output)
    with lock_file(output.with_name(f".{output.name}.lock"), config.output, "one `mose-data pairs` per output"):
        return _build_pairs(config)


def _build_pairs(config: PairsConfig) -> list[Pair]:
    refs = list_repositories(config.sources)
    seen: set[str] = set()
    pairs: list[Pair] = []
    with show_progress("mining", len(refs), "repositories") as advance:
        for ref in refs:
            pairs += _repository_pairs(ref, config, seen)
            advance(1)
    if not pairs:
        raise MoseError(f"sources: none of the {len(refs)} repositories has a documented Python function; expected some")
    write_pairs(Path(config.output), pairs)
    print(f"pairs: {config.output}")
    for split, number in sorted(Counter(pair.split for pair in pairs).items()):
        repositories = len({pair.repository for pair in pairs if pair.split == split})
        print(f"{split}: {number:,} pairs from {repositories:,} repositories")
    return pairs


def documented_functions(source: str) -> Iterator[DocumentedFunction]:
    """The documented functions and methods of a Python file in file order; none if the file does not parse.

    Nested functions, dunder methods and functions with `test` in their name are skipped.
    """
    source = source.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    # Split as ast counts lines: str.splitlines would also split at form feeds and U+2028.
    lines = source.split("\n")
    for node in _functions(tree):
        docstring = ast.get_docstring(node)
        code = _code_without_docstring(node, lines)
        if docstring and code and "test" not in node.name.lower() and not (node.name[:2] == node.name[-2:] == "__"):
            yield DocumentedFunction(node.name, " ".join(docstring.strip().split("\n\n")[0].split()), code)


def is_wanted(function: DocumentedFunction, config: PairsConfig) -> bool:
    """Whether docstring and code are long enough, and the docstring mostly ASCII."""
    foreign = sum(not character.isascii() for character in function.summary)
    code_lines = sum(bool(line.strip()) for line in function.code.split("\n"))
    return (
        len(function.summary.split()) >= config.min_docstring_words
        and code_lines >= config.min_code_lines
        and foreign <= MAX_NON_ASCII_SHARE * len(function.summary)
    )


def _repository_pairs(ref: RepositoryRef, config: PairsConfig, seen: set[str]) -> list[Pair]:
    files = filter_repository(read_repository(ref, config.sources), config.filters, FilterCounts())
    found = [pair for file in files if file.source.language == LANGUAGE for pair in _file_pairs(file, config)]
    fresh = []
    for pair in found:
        # A repeated docstring or body, in any repository, would be a second right answer in retrieval, or leak between splits.
        marks = {content_sha1(text.encode("utf-8")) for text in ("nl " + pair.nl, "code " + " ".join(pair.code_a.split()))}
        if not marks & seen:
            fresh.append(pair)
        seen |= marks
    limit = config.max_pairs_per_repository or len(fresh)
    chosen = generator(config.seed, "pairs", ref.name).permutation(len(fresh))[:limit]
    return [fresh[i] for i in sorted(chosen.tolist())]


def _file_pairs(file: TextFile, config: PairsConfig) -> list[Pair]:
    repository = file.source.repository
    split = split_of(repository, config.seed, config.held_out_fraction)
    functions = (function for function in documented_functions(file.text) if is_wanted(function, config))
    return [
        Pair(
            nl=function.summary, code_a=function.code, lang_a=LANGUAGE, repository=repository, path=file.source.path, split=split
        )
        for function in functions
    ]


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        elif not isinstance(node, ast.expr):
            waiting.extend(reversed(list(ast.iter_child_nodes(node))))


def _code_without_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str:
    """The function's source, with decorators, without its docstring; empty if both share a line or nothing else remains."""
    docstring = node.body[0]
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    last = node.end_lineno or node.lineno
    end = docstring.end_lineno or docstring.lineno
    alone = lines[docstring.lineno - 1][: docstring.col_offset].strip() == "" and len(node.body) > 1 and node.body[1].lineno > end
    if not alone:
        return ""
    return textwrap.dedent("\n".join(lines[first - 1 : docstring.lineno - 1] + lines[end:last]))


def _add_arguments(parser: ArgumentParser) -> None:
    add_config(parser, PairsConfig)


def _run(parsed: Namespace) -> None:
    build_pairs(read_config(parsed, PairsConfig))


COMMAND = Command("Mine (docstring, function) pairs for fine-tuning from the repositories' Python files.", _add_arguments, _run)

"""`mose-data pairs`: extracts (docstring, code) pairs from documented Python functions, for fine-tuning."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from data_prep.console import show_progress
from data_prep.filters.config import FiltersConfig
from data_prep.filters.filters import FilterCounts, filter_repository
from data_prep.sources.registry import SourcesConfig, list_repositories, read_repository
from data_prep.sources.repositories import RepositoryRef, TextFile, split_of
from data_prep.synthconl.mining.functions import PYTHON, DocumentedFunction, is_python, read_functions
from data_prep.synthconl.mining.rules import SeenTexts, is_dunder, is_foreign, num_code_lines
from mose.command import Command, add_config, read_config
from mose.config import require
from mose.dataset.functions import FunctionReader
from mose.dataset.pairs import Pair, write_pairs
from mose.errors import MoseError
from mose.files.lock import lock_file
from mose.seeding import generator


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
    seen, reader = SeenTexts(), FunctionReader()
    pairs: list[Pair] = []
    with show_progress("mining", len(refs), "repositories") as advance:
        for ref in refs:
            pairs += _repository_pairs(ref, config, seen, reader)
            advance(1)
    if not pairs:
        raise MoseError(f"sources: none of the {len(refs)} repositories has a documented Python function; expected some")
    write_pairs(Path(config.output), pairs)
    print(f"pairs: {config.output}")
    for split, number in sorted(Counter(pair.split for pair in pairs).items()):
        repositories = len({pair.repository for pair in pairs if pair.split == split})
        print(f"{split}: {number:,} pairs from {repositories:,} repositories")
    return pairs


def documented_functions(
    source: str,
    reader: FunctionReader | None = None,
    wanted: Callable[[DocumentedFunction], bool] = lambda function: True,
) -> list[DocumentedFunction]:
    """The documented functions and methods of a Python file in file order; none if the file does not parse.

    Nested functions, dunder methods, functions with `test` in their name and those that are not `wanted` are skipped.
    """
    functions = [
        function
        for function in read_functions(source, "", PYTHON, reader or FunctionReader())
        if function.summary and function.code and "test" not in function.name.lower() and not is_dunder(function.name)
    ]
    chosen = [function for function in functions if wanted(function)]
    # Python's own parser takes as long as the grammar's, and need not see files without a pair.
    return chosen if chosen and is_python(source) else []


def is_wanted(function: DocumentedFunction, config: PairsConfig) -> bool:
    """Whether docstring and code are long enough, and the docstring mostly ASCII."""
    return (
        len(function.summary.split()) >= config.min_docstring_words
        and num_code_lines(function.code) >= config.min_code_lines
        and not is_foreign(function.summary)
    )


def _repository_pairs(ref: RepositoryRef, config: PairsConfig, seen: SeenTexts, reader: FunctionReader) -> list[Pair]:
    files = filter_repository(read_repository(ref, config.sources), config.filters, FilterCounts())
    found = [pair for file in files if file.source.language == PYTHON for pair in _file_pairs(file, config, reader)]
    fresh = [pair for pair in found if not seen.repeated(pair.nl, pair.code_a)]
    limit = config.max_pairs_per_repository or len(fresh)
    chosen = generator(config.seed, "pairs", ref.name).permutation(len(fresh))[:limit]
    return [fresh[i] for i in sorted(chosen.tolist())]


def _file_pairs(file: TextFile, config: PairsConfig, reader: FunctionReader) -> list[Pair]:
    repository = file.source.repository
    split = split_of(repository, config.seed, config.held_out_fraction)
    functions = documented_functions(file.text, reader, lambda function: is_wanted(function, config))
    return [
        Pair(nl=function.summary, code_a=function.code, lang_a=PYTHON, repository=repository, path=file.source.path, split=split)
        for function in functions
    ]


def _add_arguments(parser: ArgumentParser) -> None:
    add_config(parser, PairsConfig)


def _run(parsed: Namespace) -> None:
    build_pairs(read_config(parsed, PairsConfig))


COMMAND = Command("Mine (docstring, function) pairs for fine-tuning from the repositories' Python files.", _add_arguments, _run)

"""`mose-data seeds`: documented functions of repositories and of CodeSearchNet, filtered and split, to one parquet file."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from data_prep.console import counted, show_progress
from data_prep.filters.config import FiltersConfig
from data_prep.filters.filters import FilterCounts, filter_repository
from data_prep.sources.registry import SourcesConfig, list_repositories, read_repository
from data_prep.sources.repositories import HELD_OUT, TRAIN, RepositoryRef, TextFile, split_of
from data_prep.synthconl.mining.code_search_net import PublishedFunction, input_files, read_functions
from data_prep.synthconl.mining.functions import DocumentedFunction, functions_of
from data_prep.synthconl.mining.rules import KEPT, REASONS, RulesConfig, SeenTexts, judge
from data_prep.synthconl.mining.seed_file import Seed, SeedWriter
from mose.command import Command, add_config, read_config
from mose.config import require
from mose.dataset.functions import FunctionReader
from mose.dataset.languages import LANGUAGES
from mose.errors import MoseError
from mose.files.atomic_file import write_json
from mose.files.lock import lock_file
from mose.seeding import generator

NO_SOURCES = SourcesConfig()
OVER_LIMIT = "over_max_per_repository"
_PARTITIONS = {"train": TRAIN, "valid": HELD_OUT, "test": HELD_OUT}
_KNOWN = tuple(dict.fromkeys(language.name for language in LANGUAGES))


@dataclass(frozen=True)
class SeedsConfig:
    """Where documented functions come from, which are kept, and how they are split."""

    output: str
    """Parquet file to write; its counts go beside it, with the suffix .json."""
    code_search_net: tuple[str, ...] = ()
    """CodeSearchNet's files (.jsonl, .jsonl.gz) or globs of them."""
    sources: SourcesConfig = field(default_factory=SourcesConfig)
    """Where the repositories are."""
    filters: FiltersConfig = field(default_factory=FiltersConfig)
    """Filters of the repositories' files."""
    rules: RulesConfig = field(default_factory=RulesConfig)
    """Which functions are kept."""
    languages: tuple[str, ...] = ()
    """Only functions in these languages, e.g. [Python, Java, Go, PHP] as the paper; empty means all with a grammar."""
    held_out_fraction: float = 0.02
    """Share of repositories in the split held_out, chosen by name as `mose-data pack` does."""
    keep_partition: bool = True
    """CodeSearchNet's valid and test parts are held_out; false splits its repositories by held_out_fraction instead."""
    seed: int = 0
    """Chooses the held-out repositories and, above max_per_repository, the functions."""
    max_per_repository: int = 0
    """Keep a seeded sample of this size of each repository; 0 means all. Does not apply to CodeSearchNet's files."""

    def __post_init__(self) -> None:
        require(self.output != "", "output: is empty, expected a parquet file to write")
        for name in self.languages:
            require(name in _KNOWN, f"languages: {name!r} has no grammar; expected some of {', '.join(_KNOWN)}")
        require(
            0 <= self.held_out_fraction < 1, f"held_out_fraction: is {self.held_out_fraction}, expected 0 or more and below 1"
        )
        require(self.max_per_repository >= 0, f"max_per_repository: is {self.max_per_repository}, expected 0 or more")
        require(
            bool(self.code_search_net) or self.sources != NO_SOURCES,
            "sources: is empty, and so is code_search_net; expected repositories or CodeSearchNet's files",
        )


class SeedCounts:
    """Functions by language and outcome, and kept ones by split."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Counter[str]] = {}
        self.splits: Counter[str] = Counter()
        self.repositories: dict[str, set[str]] = {}
        self.files = FilterCounts()

    def add(self, language: str, outcome: str) -> None:
        """Count one function."""
        self.outcomes.setdefault(language, Counter())[outcome] += 1

    def keep(self, seed: Seed) -> None:
        """Count a function that is written."""
        self.add(seed.lang_a, KEPT)
        self.splits[seed.split] += 1
        self.repositories.setdefault(seed.split, set()).add(seed.repository)

    @property
    def kept(self) -> int:
        """Functions that were written."""
        return sum(counts[KEPT] for counts in self.outcomes.values())

    def to_plain(self) -> dict[str, Any]:
        """The counts for JSON."""
        return {
            "functions": {language: dict(sorted(counts.items())) for language, counts in sorted(self.outcomes.items())},
            "splits": {
                split: {"seeds": number, "repositories": len(self.repositories[split])}
                for split, number in sorted(self.splits.items())
            },
            "files": self.files.to_plain()["reasons"],
        }


def mine_seeds(config: SeedsConfig) -> SeedCounts:
    """Write the seeds file and its counts; deterministic for the same input and config.

    Raises:
        MoseError: an input cannot be read, none has a function that is kept, or another process writes the output.
    """
    output = Path(config.output)
    with lock_file(output.with_name(f".{output.name}.lock"), config.output, "one `mose-data seeds` per output"):
        counts, seen, reader = SeedCounts(), SeenTexts(), FunctionReader()
        files = input_files(config.code_search_net)
        refs = list_repositories(config.sources) if config.sources != NO_SOURCES else []
        with SeedWriter(output) as writer:
            for seed in _seeds(config, files, refs, counts, seen, reader):
                counts.keep(seed)
                writer.add(seed)
            if not counts.kept:
                seen_functions = sum(sum(found.values()) for found in counts.outcomes.values())
                raise MoseError(f"{output}: none of {counted(seen_functions, 'function')} passes the rules; expected some")
        write_json(output.with_suffix(".json"), counts.to_plain())
    return counts


def _seeds(
    config: SeedsConfig,
    files: list[Path],
    refs: list[RepositoryRef],
    counts: SeedCounts,
    seen: SeenTexts,
    reader: FunctionReader,
) -> Iterator[Seed]:
    with show_progress("mining", len(files) + len(refs), "inputs", lambda: f"{counts.kept:,} seeds") as advance:
        for path in files:
            for published in read_functions(path, reader):
                if _is_wanted(published.function, config, counts, seen):
                    yield _published_seed(published, config)
            advance(1)
        for ref in refs:
            found = list(_repository_seeds(ref, config, counts, seen, reader))
            limit = config.max_per_repository or len(found)
            chosen = generator(config.seed, "seeds", ref.name).permutation(len(found))[:limit]
            for i in sorted(chosen.tolist()):
                yield found[i]
            for i in sorted(set(range(len(found))) - set(chosen.tolist())):
                counts.add(found[i].lang_a, OVER_LIMIT)
            advance(1)


def _is_wanted(function: DocumentedFunction, config: SeedsConfig, counts: SeedCounts, seen: SeenTexts) -> bool:
    """Whether a function passes the rules and is new; counts it if not."""
    if config.languages and function.language not in config.languages:
        return False
    outcome = judge(function, config.rules)
    if outcome == KEPT:
        outcome = seen.repeated(function.summary, function.code) or KEPT
    if outcome != KEPT:
        counts.add(function.language, outcome)
    return outcome == KEPT


def _published_seed(published: PublishedFunction, config: SeedsConfig) -> Seed:
    split = _PARTITIONS.get(published.partition) if config.keep_partition else None
    split = split or split_of(published.repository, config.seed, config.held_out_fraction)
    function = published.function
    place = {"repository": published.repository, "path": published.path, "url": published.url}
    return Seed(function.summary, function.code, function.language, name=function.name, split=split, **place)


def _repository_seeds(
    ref: RepositoryRef, config: SeedsConfig, counts: SeedCounts, seen: SeenTexts, reader: FunctionReader
) -> Iterator[Seed]:
    wanted = config.languages or _KNOWN
    for file in filter_repository(read_repository(ref, config.sources), config.filters, counts.files):
        if file.source.language in wanted:
            for function in functions_of(file.text, file.source.path, file.source.language, reader):
                if _is_wanted(function, config, counts, seen):
                    yield _mined_seed(function, file, config)


def _mined_seed(function: DocumentedFunction, file: TextFile, config: SeedsConfig) -> Seed:
    source = file.source
    split = split_of(source.repository, config.seed, config.held_out_fraction)
    licence = " AND ".join(sorted(source.licences)) or source.licence_type
    seed = Seed(function.summary, function.code, function.language, source.repository, source.path, split, function.name)
    return replace(seed, licence=licence)


def print_counts(config: SeedsConfig, counts: SeedCounts) -> None:
    """Print functions by outcome, and the seeds of each language and split."""
    total: Counter[str] = sum(counts.outcomes.values(), Counter())
    for outcome in (KEPT, *REASONS, OVER_LIMIT):
        if total[outcome]:
            print(f"{total[outcome]:>11,} {outcome.replace('_', ' ')}")
    kept = sorted(((found[KEPT], name) for name, found in counts.outcomes.items() if found[KEPT]), reverse=True)
    print(f"languages: {', '.join(f'{name} {number:,}' for number, name in kept)}")
    print(f"seeds: {config.output}")
    for split, number in sorted(counts.splits.items()):
        print(f"{split}: {counted(number, 'seed')} from {len(counts.repositories[split]):,} repositories")


def _add_arguments(parser: ArgumentParser) -> None:
    add_config(parser, SeedsConfig)


def _run(parsed: Namespace) -> None:
    config = read_config(parsed, SeedsConfig)
    print_counts(config, mine_seeds(config))


COMMAND = Command("Mine documented functions of many languages, as seeds of translation.", _add_arguments, _run)

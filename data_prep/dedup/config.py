"""The options of `mose-data dedup`."""

from dataclasses import dataclass, field
from typing import Any, Literal

from data_prep.dedup.minhash.groups import Keep
from data_prep.dedup.minhash.signatures import Method
from data_prep.filters.config import FiltersConfig
from data_prep.sources.registry import SourcesConfig
from mose.config import require, to_plain
from mose.files.storage import is_local, storage_path

MIN_MEMORY_BYTES = 1 << 28
FREE_FIELDS = ("output", "num_workers", "memory_bytes")
"""Fields that do not change what is found; evaluation files and inputs count by their content."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation texts; what is nearly equal to one of them is removed."""

    files: tuple[str, ...] = ()
    """Evaluation files, paths or URLs: .jsonl, .json, .parquet or plain text, all but parquet also as .gz; empty means none."""
    fields: tuple[str, ...] = ()
    """Fields of an example that hold its texts, each compared alone; empty means every string at any depth."""


@dataclass(frozen=True)
class DedupConfig:
    """What is searched for near-duplicates, and what counts as one. The defaults are those of the paper."""

    output: str
    """Local folder for the result and the files of the phases; an unfinished run with the same settings is completed."""
    inputs: tuple[str, ...] = ()
    """Parquet files, folders or globs (paths or URLs): one document per row and column. Or `sources`, not both."""
    columns: tuple[str, ...] = ("func1_CSN", "func2")
    """Text columns of `inputs`. Two rows are near-duplicates if their texts of one of these columns are, whichever it is."""
    sources: SourcesConfig = field(default_factory=SourcesConfig)
    """Repositories whose files are searched before packing."""
    filters: FiltersConfig = field(default_factory=FiltersConfig)
    """Which files of the repositories are searched; take those of `mose-data pack`."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Rows and files that are near-duplicates of these texts are removed, too."""
    threshold: float = 0.7
    """Least Jaccard similarity of the sets of character 5-grams of two near-duplicates."""
    method: Method = "one_permutation"
    """How signatures are made: `one_permutation` hashes each 5-gram once, `classic` hashes it `num_permutations` times, as the
    paper did."""
    num_permutations: int = 256
    """Places of a signature."""
    bands: int = 32
    """Bands of a signature: two texts that agree in all rows of a band are compared."""
    rows_per_band: int = 8
    """Places per band. The candidates' S-curve rises near (1 / bands)^(1 / rows_per_band)."""
    keep: Keep = "first"
    """Which of two near-duplicates is kept: the first of the input, or the longest (of equal ones the first)."""
    chains: Literal["keep", "remove"] = "keep"
    """What happens to a row that other near-duplicates link to a kept one, but that is less similar to every kept one than the
    threshold: it stays, or, as with one row per group, it goes."""
    max_documents_per_key: int = 64
    """Of texts that share a band, all pairs are compared up to this number; of more, each with the first and the next one."""
    num_tasks: int = 8
    """Tasks of each phase; each may run as one element of a job array."""
    num_workers: int = 1
    """Processes that run tasks in parallel; the result does not depend on it."""
    memory_bytes: int = 1 << 30
    """Approximate memory bound of a process, for any size of the input; the tables of groups add 40 bytes per duplicate row."""

    def __post_init__(self) -> None:
        require(
            self.output != "" and is_local(storage_path(self.output)),
            f"output: is {self.output!r}, expected a local folder (its files are mapped into memory)",
        )
        require(
            bool(self.inputs) != has_sources(self.sources),
            "inputs: expected either inputs (parquet files) or sources (repositories), not both and not none",
        )
        require(not self.inputs or bool(self.columns), "columns: is empty, expected text columns of inputs")
        require(len(set(self.columns)) == len(self.columns), f"columns: {list(self.columns)} names one twice")
        require(0 < self.threshold <= 1, f"threshold: is {self.threshold}, expected above 0 and at most 1")
        require(1 <= self.num_permutations <= 4096, f"num_permutations: is {self.num_permutations}, expected 1 to 4096")
        require(self.bands > 0 and self.rows_per_band > 0, "bands, rows_per_band: expected 1 or more")
        require(
            self.bands * self.rows_per_band <= self.num_permutations,
            f"bands: {self.bands} bands of {self.rows_per_band} rows need {self.bands * self.rows_per_band} places, expected at "
            f"most num_permutations, {self.num_permutations}",
        )
        require(self.max_documents_per_key > 1, f"max_documents_per_key: is {self.max_documents_per_key}, expected 2 or more")
        require(1 <= self.num_tasks <= 100_000, f"num_tasks: is {self.num_tasks}, expected 1 to 100000")
        require(self.num_workers > 0, f"num_workers: is {self.num_workers}, expected 1 or more")
        require(
            self.memory_bytes >= MIN_MEMORY_BYTES,
            f"memory_bytes: is {self.memory_bytes}, expected {MIN_MEMORY_BYTES} (256 MiB) or more",
        )

    @property
    def num_columns(self) -> int:
        """Texts per row: one per column, one per file of a repository."""
        return len(self.columns) if self.inputs else 1


def has_sources(sources: SourcesConfig) -> bool:
    """Whether any source of repositories is named."""
    return bool(
        sources.directories or sources.repositories or sources.git_checkouts or sources.installed_packages or sources.stack_v2
    )


def content_fields(config: DedupConfig) -> dict[str, Any]:
    """The fields that decide the result, as plain values."""
    return {name: value for name, value in to_plain(config).items() if name not in FREE_FIELDS}

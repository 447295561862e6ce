"""The config of `mose-data pack`: the inputs of a data set, and how its rows are built."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from data_prep.filters.config import FiltersConfig
from data_prep.filters.decontamination import DecontaminationConfig
from data_prep.filters.fingerprint import filters_fingerprint
from data_prep.packing.config import PackingConfig
from data_prep.pipeline.near_duplicates import lists_of_near_duplicates
from data_prep.sources.registry import SourcesConfig
from mose.config import fingerprint, require, to_plain, with_new_fields_at_default
from mose.tokenizer import Tokenizer

# These fields say where a data set and its inputs are, or how fast it is made, but not what is in it. Tokenizer, opt-out lists,
# lists of near-duplicates, evaluation files and blob store count by their content.
FREE_FIELDS = (
    *("output", "num_workers", "max_bad_repositories", "tokenizer", "near_duplicates"),
    *("filters.opt_out", "decontamination.files", "sources.blob_store"),
)

# The fields of the first version. These always count in a fingerprint. A field that is added later is not listed here and only
# counts where it differs from its default, so that the fingerprints of existing data sets do not change.
FIRST_FIELDS = frozenset(
    [
        *(f"sources.{name}" for name in ("directories", "repositories", "git_checkouts", "installed_packages", "stack_v2")),
        *(f"sources.{name}" for name in ("include_suffixes", "max_repositories", "max_repository_bytes")),
        *(f"filters.{name}" for name in ("licence_types", "allowed_licences", "denied_licences", "max_bytes")),
        *(f"filters.{name}" for name in ("max_line_length", "max_mean_line_length", "min_alphanumeric_share")),
        *(f"filters.{name}" for name in ("drop_vendored", "drop_generated", "drop_duplicates")),
        *(f"decontamination.{name}" for name in ("fields", "ngram_words", "min_words", "min_distinct_words", "max_examples")),
        *(f"packing.{name}" for name in ("mode", "sequence_length", "piece_tokens", "look_ahead", "mixed_share", "pool_tokens")),
        *("num_tasks", "held_out_fraction", "seed"),
    ]
)

# Newer fields whose default changes the bytes. A data set whose config.yaml has no such field was made as these values say, and
# is completed so; in a fingerprint such a field counts where it differs from them.
EARLIER_VALUES: dict[str, Any] = {
    "sources.detection": "suffix",
    "sources.detect_licences": False,
    "filters.secrets": "keep",
    "filters.personal_data": "keep",
}


@dataclass(frozen=True)
class PackConfig:
    """Everything that decides the bytes of a data set, and the `FREE_FIELDS`, which do not."""

    output: str
    """Folder of the data set, or a URL such as s3://bucket/folder; one that holds part of the same data set is completed."""
    tokenizer: str
    """tokenizer.model or tokenizer.json, or a folder that holds one; a path or a URL."""
    sources: SourcesConfig = field(default_factory=SourcesConfig)
    """Where the repositories are."""
    filters: FiltersConfig = field(default_factory=FiltersConfig)
    """Which files are kept."""
    decontamination: DecontaminationConfig = field(default_factory=DecontaminationConfig)
    """Which text is dropped because evaluation files contain it."""
    packing: PackingConfig = field(default_factory=PackingConfig)
    """How files become rows."""
    num_tasks: int = 8
    """Tasks are packed independently, each into at most one shard per split. At most the number of parts of a grouped input.
    With few repositories some tasks stay empty, because a task of few repositories cannot mix them evenly."""
    num_workers: int = 1
    """Processes that run tasks in parallel; the bytes of the data set do not depend on it."""
    held_out_fraction: float = 0.02
    """Share of repositories whose rows go to the split held_out, chosen by a hash of the name."""
    held_out_repository_bytes: int = 0
    """Most bytes of each held-out repository; 0 means no limit. With a limit, held-out figures describe many repositories, not
    the few largest."""
    held_out_copies: Literal["drop", "count", "ignore"] = "drop"
    """What happens to a file of a train repository whose bytes a held-out repository holds, too: drop it (with held-out files in
    train, validation measures memory), keep and count it, or ignore it. Counted and listed as copy_of_held_out."""
    duplicates: Literal["drop", "count", "ignore"] = "ignore"
    """What happens to a file whose bytes several train repositories hold: one of them keeps it and the others drop it, all keep
    it and are counted, or nothing. Listed as duplicate_across_repositories; needs a pass over all files before packing."""
    near_duplicates: tuple[str, ...] = ()
    """Outputs of `mose-data dedup` over the same sources (folders or URLs): drops the files that they list as near-duplicates of
    other files (counted as near_duplicate) or of evaluation texts (near_evaluation), in both splits."""
    max_train_tokens: int = 0
    """Most tokens of text in train; 0 means no limit. Each of num_tasks tasks takes an equal share, from its repositories in
    seeded order, and ends with the one that exceeds it; the files of the others are counted as over_token_budget."""
    max_bad_repositories: int = 10
    """Repositories that cannot be read (missing git objects, unreadable folder, damaged row) are left out and listed with their
    reason by finish, status and dropped. With more of them than this, packing fails. One that was mended is packed by a rerun."""
    seed: int = 0
    """Decides the held-out repositories, the order of repositories and chunks, and the labels."""

    def __post_init__(self) -> None:
        require(self.output != "", "output: is empty, expected a folder")
        require(self.tokenizer != "", "tokenizer: is empty, expected a tokenizer.model or tokenizer.json")
        require(1 <= self.num_tasks <= 1_000_000, f"num_tasks: is {self.num_tasks}, expected 1 to 1000000")
        require(self.num_workers > 0, f"num_workers: is {self.num_workers}, expected 1 or more")
        require(self.max_train_tokens >= 0, f"max_train_tokens: is {self.max_train_tokens}, expected 0 or more")
        require(self.max_bad_repositories >= 0, f"max_bad_repositories: is {self.max_bad_repositories}, expected 0 or more")
        require(
            0 <= self.held_out_fraction < 1, f"held_out_fraction: is {self.held_out_fraction}, expected 0 or more and below 1"
        )
        require(
            self.held_out_repository_bytes >= 0,
            f"held_out_repository_bytes: is {self.held_out_repository_bytes}, expected 0 or more",
        )

    def resolve(self) -> "PackConfig":
        """The same with every derived value filled in."""
        return replace(self, packing=self.packing.resolve())


def content_fields(config: PackConfig) -> dict[str, Any]:
    """The fields that decide the bytes of a data set, as plain values."""
    without_new = with_new_fields_at_default(config, FIRST_FIELDS | set(FREE_FIELDS))
    earlier = to_plain(without_new.resolve())
    for name, value in EARLIER_VALUES.items():
        section, _, key = name.rpartition(".")
        (earlier[section] if section else earlier)[key] = value
    return _counted(to_plain(config.resolve()), earlier)


def _counted(values: dict[str, Any], without_new: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    counted: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name in FREE_FIELDS:
            continue
        if name in FIRST_FIELDS:
            counted[key] = value
        elif any(first.startswith(f"{name}.") for first in FIRST_FIELDS):
            counted[key] = _counted(value, without_new[key], f"{name}.")
        elif value != without_new[key]:
            counted[key] = value
    return counted


def lists_fingerprint(config: PackConfig) -> str:
    """A fingerprint of the content of the opt-out and evaluation files, and of the lists of near-duplicates."""
    lists = filters_fingerprint(config.filters, config.decontamination)
    # Data sets without such a list keep the fingerprint that they had before there were any.
    return fingerprint([lists, lists_of_near_duplicates(config.near_duplicates)]) if config.near_duplicates else lists


def content_fingerprint(config: PackConfig, tokenizer: Tokenizer) -> str:
    """A fingerprint of all that decides the bytes of a data set except its sources."""
    parts = {"tokenizer": tokenizer.fingerprint(), "lists": lists_fingerprint(config)}
    return fingerprint({**content_fields(config), **parts})

"""The options of `mose-data synthconl`."""

from dataclasses import dataclass

from mose.config import require


@dataclass(frozen=True)
class ReleaseConfig:
    """What the data set is made of. Twice: first without near-duplicates known, as a draft, then from the draft."""

    output: str
    """Folder to write; it must not exist."""
    seeds: str = ""
    """Parquet file of `mose-data seeds`."""
    translations: str = ""
    """Folder of `mose-data translate`, with all journals of its tasks."""
    draft: str = ""
    """Folder that this command wrote from seeds and translations, which `mose-data dedup` has read; instead of those two."""
    duplicates: str = ""
    """Near-duplicates of the draft: a parquet file, or a folder of them, with the columns id, group and kept, as
    `mose-data dedup` writes below groups/. An id is a row number of the draft, or text of its column id."""
    keep_one: bool = True
    """Keep only the rows that `duplicates` marks as kept; false keeps the others, too. Rows of train in a group with a held-out
    row that is kept go in both cases."""
    name: str = "SynthCoNL"
    """Title of the page and the data card."""

    def __post_init__(self) -> None:
        require(self.output != "", "output: is empty, expected a folder to write")
        is_first = bool(self.seeds and self.translations)
        require(
            is_first != bool(self.draft) and bool(self.seeds) == bool(self.translations),
            "draft: expected either seeds and translations, or a draft",
        )
        require(
            bool(self.draft) or not self.duplicates,
            "duplicates: expected a draft, whose rows they number; write one without duplicates first",
        )

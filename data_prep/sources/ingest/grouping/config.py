"""The options of `mose-data group`."""

from dataclasses import dataclass

from data_prep.sources.ingest.grouping.columns import FILE_TYPES, REPOSITORY_TYPES
from mose.config import require
from mose.files.storage import is_local, storage_path

MIN_MEMORY_BYTES = 1 << 29


@dataclass(frozen=True)
class GroupConfig:
    """Inputs, number of parts and memory bound of a grouping."""

    inputs: tuple[str, ...]
    """Parquet files, globs or URLs: rows of single files (the-stack-v2-dedup) or of repositories (train-full-ids)."""
    output: str
    """Folder or URL for the parts and grouped.json; an unfinished grouping with the same settings is completed."""
    num_parts: int = 256
    """Number of parts; `mose-data pack` and `fetch` assign whole parts to tasks, so choose more parts than tasks."""
    seed: int = 0
    """Determines the part of each repository and the order inside a part."""
    memory_bytes: int = 1 << 30
    """Memory bound of a process, for any size of the input; a row with contents above a quarter of it is written without
    contents, counted and named."""
    num_workers: int = 1
    """Worker processes, each within memory_bytes; the output does not depend on their number."""
    scratch: str = ""
    """Local folder for temporary files, which take about twice the size of the compressed input; empty means in the output."""
    repository_columns: tuple[str, ...] = tuple(REPOSITORY_TYPES)
    """Columns of a repository to keep; repo_name is always kept."""
    file_columns: tuple[str, ...] = tuple(FILE_TYPES)
    """Columns of a file to keep; those that `mose-data pack` reads are always kept, content only if it is named."""

    def __post_init__(self) -> None:
        require(bool(self.inputs), "inputs: is empty, expected parquet files, globs or URLs")
        require(self.output != "", "output: is empty, expected a folder or URL")
        require(1 <= self.num_parts <= 100_000, f"num_parts: is {self.num_parts}, expected 1 to 100000")
        require(
            self.memory_bytes >= MIN_MEMORY_BYTES,
            f"memory_bytes: is {self.memory_bytes}, expected {MIN_MEMORY_BYTES} (512 MiB) or more",
        )
        require(self.num_workers > 0, f"num_workers: is {self.num_workers}, expected 1 or more")
        for field, known in (("repository_columns", REPOSITORY_TYPES), ("file_columns", FILE_TYPES)):
            unknown = [name for name in getattr(self, field) if name not in known]
            require(not unknown, f"{field}: {unknown} are no columns of The Stack v2; expected some of {', '.join(known)}")
        require(
            self.scratch != "" or is_local(storage_path(self.output)),
            "scratch: is empty, expected a local folder for an output URL",
        )

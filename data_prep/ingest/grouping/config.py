"""The config of `mose-data group`."""

from dataclasses import dataclass

from data_prep.ingest.grouping.columns import FILE_TYPES, REPOSITORY_TYPES
from mose.config import require
from mose.files.storage import is_local, storage_path

MIN_MEMORY_BYTES = 1 << 29


@dataclass(frozen=True)
class GroupConfig:
    """What is grouped, into how many parts, within which memory."""

    inputs: tuple[str, ...]
    """Parquet files, globs or URLs: rows of single files (the-stack-v2-dedup) or of repositories (train-full-ids)."""
    output: str
    """Folder or URL for the parts and grouped.json; a folder that holds a part of the same grouping is completed."""
    num_parts: int = 256
    """Parts; `mose-data pack` and `fetch` assign whole parts to tasks, so expect more parts than tasks."""
    seed: int = 0
    """Decides which part a repository is in, and the order inside a part."""
    memory_bytes: int = 1 << 30
    """The most that a process may hold in memory, whatever the size of the input; a row of contents above a quarter of it is
    kept without its contents, counted and named."""
    num_workers: int = 1
    """Processes that work at the same time, each within memory_bytes; the output does not depend on it."""
    scratch: str = ""
    """Local folder for temporary files, about twice as large as the compressed input; empty means inside the output."""
    repository_columns: tuple[str, ...] = tuple(REPOSITORY_TYPES)
    """Columns of a repository to keep; repo_name always is."""
    file_columns: tuple[str, ...] = tuple(FILE_TYPES)
    """Columns of a file to keep; those that `mose-data pack` reads always are, and content must be named to be kept."""

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

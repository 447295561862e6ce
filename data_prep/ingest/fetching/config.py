"""The config of `mose-data fetch`."""

from dataclasses import dataclass

from data_prep.sources.repositories import READ_LIMIT_BYTES
from mose.config import require
from mose.files.storage import is_local, storage_path

SOFTWARE_HERITAGE = "s3://softwareheritage/content"


@dataclass(frozen=True)
class FetchConfig:
    """Which bodies are fetched, from where, into which store, and how patiently."""

    inputs: tuple[str, ...]
    """Folders of `mose-data group`, or parquet files, globs or URLs in The Stack v2 schema: their blob_id are wanted."""
    store: str
    """Local folder of the blob store; what is in it already is not asked for again."""
    url: str = SOFTWARE_HERITAGE
    """Where a blob lies under its blob_id, gzip: s3://BUCKET/PREFIX, https://..., or any other fsspec URL."""
    anonymous: bool = False
    """Ask S3 without a signature; otherwise credentials come from AWS's own places (environment, ~/.aws, instance role)."""
    endpoint_url: str = ""
    """Another S3 server than Amazon's."""
    task: int = 0
    """Which of num_tasks this is: several machines fetch at once, each into its own part of the store."""
    num_tasks: int = 1
    """Task I of N fetches for the parts (or parquet files) whose number leaves I when divided by N."""
    max_concurrency: int = 64
    """Requests under way at a time."""
    attempts: int = 8
    """Requests for one blob before it is given up for this run: after 429, 5xx, time-outs, cut or damaged bodies."""
    timeout_seconds: float = 60.0
    """Time for one request, body included."""
    backoff_seconds: float = 0.5
    """Longest wait after the first failure; doubles with each, up to max_backoff_seconds. The wait is drawn below it."""
    max_backoff_seconds: float = 30.0
    """Longest wait at all."""
    max_bytes: int = 1 << 20
    """Bodies above this are not stored but counted as too_large; as filters.max_bytes of pack, which would drop them."""
    max_bytes_in_flight: int = 1 << 28
    """Bodies held in memory at a time."""
    pack_bytes: int = 1 << 30
    """Size of the store's files."""
    retry_missing: bool = False
    """Ask again for blobs that an earlier run found missing or damaged."""

    def __post_init__(self) -> None:
        require(bool(self.inputs), "inputs: is empty, expected folders of `mose-data group` or parquet files")
        require(self.store != "" and is_local(storage_path(self.store)), f"store: is {self.store!r}, expected a local folder")
        require("://" in self.url, f"url: is {self.url!r}, expected a URL such as {SOFTWARE_HERITAGE}")
        require(0 <= self.task < self.num_tasks, f"task: is {self.task} of {self.num_tasks}, expected 0 to num_tasks - 1")
        for name in ("max_concurrency", "attempts", "pack_bytes"):
            require(getattr(self, name) > 0, f"{name}: is {getattr(self, name)}, expected 1 or more")
        for name in ("timeout_seconds", "backoff_seconds", "max_backoff_seconds"):
            require(getattr(self, name) > 0, f"{name}: is {getattr(self, name)}, expected more than 0")
        require(
            0 < self.max_bytes <= READ_LIMIT_BYTES, f"max_bytes: is {self.max_bytes}, expected 1 to {READ_LIMIT_BYTES} (64 MiB)"
        )
        require(
            self.max_bytes_in_flight >= 2 * self.max_bytes,
            f"max_bytes_in_flight: is {self.max_bytes_in_flight}, expected twice max_bytes or more",
        )

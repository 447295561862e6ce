"""The options of `mose-data fetch`."""

from dataclasses import dataclass

from data_prep.sources.repositories import READ_LIMIT_BYTES
from mose.config import require
from mose.files.storage import is_local, storage_path

SOFTWARE_HERITAGE = "s3://softwareheritage/content"


@dataclass(frozen=True)
class FetchConfig:
    """Which bodies to fetch, from where, into which store, and with which limits."""

    inputs: tuple[str, ...]
    """Folders of `mose-data group`, or parquet files, globs or URLs in The Stack v2 schema, whose blob_id are fetched."""
    store: str
    """Local folder of the blob store; blobs that it holds are not requested again."""
    url: str = SOFTWARE_HERITAGE
    """Location that holds gzip bodies by blob_id: s3://BUCKET/PREFIX, https://..., or any other fsspec URL."""
    anonymous: bool = False
    """Send unsigned requests to S3; otherwise credentials come from the AWS defaults (environment, ~/.aws, instance role)."""
    endpoint_url: str = ""
    """Address of an S3 server other than Amazon's."""
    task: int = 0
    """Number of this task, from 0; several machines can fetch at once, each into its own part of the store."""
    num_tasks: int = 1
    """Number of tasks N; task I fetches the blobs of the parts (or parquet files) whose number modulo N is I."""
    max_concurrency: int = 64
    """Concurrent requests."""
    attempts: int = 8
    """Requests per blob before this run gives it up; repeated after 429, 5xx, timeouts, and truncated or damaged bodies."""
    timeout_seconds: float = 60.0
    """Timeout of one request, body included."""
    backoff_seconds: float = 0.5
    """Longest wait after the first failure; doubles per failure up to max_backoff_seconds. The wait is random below it."""
    max_backoff_seconds: float = 30.0
    """Upper bound of the wait."""
    max_bytes: int = 1 << 20
    """Larger bodies are not stored but counted as too_large. Matches filters.max_bytes of pack, which would drop them."""
    max_bytes_in_flight: int = 1 << 28
    """Total size of the bodies held in memory."""
    pack_bytes: int = 1 << 30
    """Size of a pack file of the store."""
    retry_missing: bool = False
    """Request blobs again that an earlier run found missing or damaged."""

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

"""Fetches blobs into a store with bounded concurrency, retries with backoff and jitter, and a SHA-1 check per body."""

import asyncio
import hashlib
from collections.abc import Callable, Iterator

from data_prep.sources.blobs.pack import GZIP
from data_prep.sources.blobs.store import BODY, INVALID_ID, MISSING, NOT_GZIP, TOO_LARGE, WRONG_CHECKSUM, gunzip
from data_prep.sources.ingest.blob_writer import BlobWriter
from data_prep.sources.ingest.fetching.config import FetchConfig
from data_prep.sources.ingest.fetching.counts import FetchCounts
from data_prep.sources.ingest.fetching.remote import AbsentError, OversizedError, PassingError, Remote
from data_prep.sources.ingest.fetching.wanted import Wanted
from mose.errors import MoseError
from mose.seeding import derive_key

FORBIDDEN = "forbidden"
# After so many consecutive failures the server is down or refuses access; all retries of every further blob would take days.
MAX_FAILURES_IN_A_ROW = 100
# After so many missing blobs before the first body, the url is probably wrong; recording them would mark every blob as missing.
MAX_MISSING_AT_FIRST = 100
# Bodies up to this size are decoded in the event loop; larger ones in a thread, so that they do not stall the other requests.
_SMALL_BYTES = 1 << 16


class Fetcher:
    """One run: requests wanted blobs and writes bodies, or the status of those without one, into the store."""

    def __init__(
        self, config: FetchConfig, remote: Remote, writer: BlobWriter, counts: FetchCounts, show: Callable[[], None]
    ) -> None:
        self._config = config
        self._remote = remote
        self._writer = writer
        self._counts = counts
        self._show = show
        self._under_way: set[bytes] = set()
        self._failures_in_a_row = 0
        self._held_missing: list[bytes] = []

    async def run(self, batches: Iterator[list[Wanted]]) -> None:
        """Fetch all blobs that the store has no record of.

        Raises:
            MoseError: the server refuses access, or fails for too long; fetched bodies are in the store.
            OSError: the disk is full.
        """
        blobs = self._unknown(batches)
        workers = [asyncio.create_task(self._work(blobs)) for _ in range(self._config.max_concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        for blob in self._held_missing:
            self._store(blob, MISSING)

    def _unknown(self, batches: Iterator[list[Wanted]]) -> Iterator[tuple[bytes, int]]:
        """The blobs to request, with their lengths; counts the others."""
        for batch in batches:
            self._counts.wanted += len(batch)
            named = [(wanted.blob, wanted.length) for wanted in batch if wanted.blob is not None]
            if len(named) < len(batch):
                self._counts.given_up[INVALID_ID] += len(batch) - len(named)
            statuses = self._writer.statuses([blob for blob, _ in named])
            for (blob, length), known in zip(named, statuses, strict=True):
                if blob in self._under_way:
                    self._counts.repeated += 1
                elif known is not None and not self._asks_again(*known):
                    self._counts.known[known[0]] += 1
                elif length > self._config.max_bytes:
                    self._store(blob, TOO_LARGE, length)
                else:
                    # Marked before a worker receives it, so that the same blob in the next row group is not requested twice.
                    self._under_way.add(blob)
                    yield blob, length
            self._show()

    def _asks_again(self, status: str, length: int) -> bool:
        if status == TOO_LARGE:
            return length <= self._config.max_bytes
        return status != BODY and self._config.retry_missing

    async def _work(self, blobs: Iterator[tuple[bytes, int]]) -> None:
        for blob, length in blobs:
            await self._fetch(blob, length)
            # A withheld blob is not in the store yet: it stays marked, or it would be requested again.
            if blob not in self._held_missing:
                self._under_way.discard(blob)
            self._show()

    async def _fetch(self, blob: bytes, length: int) -> None:
        failure = ""
        for attempt in range(self._config.attempts):
            if attempt:
                self._counts.retries[failure] += 1
                await asyncio.sleep(backoff_seconds(self._config, blob, attempt))
            self._counts.requests += 1
            try:
                stored = await self._remote.get(blob.hex())
            except AbsentError:
                self._missing(blob)
                return
            except OversizedError as error:
                self._store(blob, TOO_LARGE, max(error.args[0], length, self._config.max_bytes + 1))
                return
            except PassingError as error:
                failure = str(error)
                if failure == FORBIDDEN:
                    break
                continue
            failure = await self._keep(blob, stored)
            if not failure:
                return
        self._give_up(blob, failure)

    async def _keep(self, blob: bytes, stored: bytes) -> str:
        """Store a body that matches its id, or record that it is too large; returns the name of the failure, empty if none."""
        limit = self._config.max_bytes
        body = gunzip(stored, limit) if len(stored) <= _SMALL_BYTES else await asyncio.to_thread(gunzip, stored, limit)
        if body is None:
            return NOT_GZIP
        if len(body) > limit:
            self._store(blob, TOO_LARGE, len(body))
            return ""
        if hashlib.sha1(body, usedforsecurity=False).digest() != blob:
            return WRONG_CHECKSUM
        self._store(blob, BODY, len(body), stored)
        self._counts.bytes_received += len(stored)
        self._counts.bytes_decoded += len(body)
        for missing in self._held_missing:
            self._store(missing, MISSING)
        self._held_missing = []
        return ""

    def _missing(self, blob: bytes) -> None:
        """Record a blob as missing; withhold the record until a body, in this run or before, shows that the url is right."""
        is_trusted = self._counts.stored[BODY] or self._counts.known[BODY] or self._config.retry_missing
        if is_trusted:
            self._store(blob, MISSING)
            return
        self._held_missing.append(blob)
        if len(self._held_missing) >= MAX_MISSING_AT_FIRST:
            raise MoseError(
                f"{self._config.url}: url: the first {MAX_MISSING_AT_FIRST} blobs are all missing; expected a location that "
                f"holds them under their blob_id, such as .../{blob.hex()}"
            )

    def _store(self, blob: bytes, status: str, length: int = 0, stored: bytes = b"") -> None:
        self._writer.add(blob, status, GZIP, length, stored)
        self._counts.stored[status] += 1
        self._failures_in_a_row = 0

    def _give_up(self, blob: bytes, failure: str) -> None:
        """Count a blob whose attempts all failed; a body damaged at its source is recorded, the next run requests the others."""
        if failure in (NOT_GZIP, WRONG_CHECKSUM):
            self._store(blob, failure)
            return
        self._counts.given_up[failure] += 1
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise MoseError(
                f"{self._config.url}: url: {MAX_FAILURES_IN_A_ROW} blobs in a row could not be fetched, the last for {failure}; "
                "fetched bodies are kept: run again when the server answers"
            )


def backoff_seconds(config: FetchConfig, blob: bytes, attempt: int) -> float:
    """The wait in seconds before repeat number `attempt` (from 1): uniform up to a doubling bound ("full jitter").

    The jitter spreads the retries of requests that failed together; it is derived from the blob id and needs no random state.

    https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter
    """
    bound = min(config.max_backoff_seconds, config.backoff_seconds * 2.0 ** min(attempt - 1, 32))
    return bound * derive_key("fetch backoff", blob.hex(), attempt) / 2.0**64

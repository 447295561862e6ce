"""Requests single bodies over HTTP (S3, signed or not, or any web server) or from another fsspec store.

The class of an error determines the reaction: record it (`AbsentError`, `OversizedError`), retry (`PassingError`), or stop,
because requests for other blobs would fail in the same way (`MoseError`).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import aiohttp
import botocore.session  # type: ignore[import-untyped]
from botocore.auth import S3SigV4Auth  # type: ignore[import-untyped]
from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped]

from data_prep.sources.ingest.fetching.config import FetchConfig
from mose.errors import MoseError
from mose.files.storage import storage_path

_AMAZON = "s3.amazonaws.com"
_REGION = "us-east-1"
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_READ_BYTES = 1 << 16
# A gzip body that exceeds the limit of the decoded size by more than this is taken to decode above the limit.
_GZIP_OVERHEAD = 1 << 12
_ERROR_BYTES = 4096


class AbsentError(Exception):
    """The server answers that it does not have the blob."""


class OversizedError(Exception):
    """The stored body is longer than any body within the limit; holds its length, 0 if unknown."""


class PassingError(Exception):
    """A failure that may be temporary; holds its name, e.g. `http_503`."""


class Remote(Protocol):
    """A server or folder that holds gzip bodies under their blob ids."""

    async def get(self, blob_id: str) -> bytes:
        """The stored bytes of one blob.

        Raises:
            AbsentError: the blob does not exist.
            OversizedError: the body is above the limit.
            PassingError: the request failed and may be repeated.
            MoseError: every request would fail.
        """

    async def close(self) -> None:
        """Close the connections."""


class ByteBudget:
    """A semaphore over bytes: bounds the memory of concurrent requests; a request above the free bytes waits."""

    def __init__(self, capacity: int) -> None:
        self._capacity = self._free = capacity
        self._condition = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def hold(self, wanted: int) -> AsyncIterator[None]:
        """Reserve `wanted` bytes, at most the whole capacity, for the duration of the block."""
        size = min(wanted, self._capacity)
        async with self._condition:
            await self._condition.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            async with self._condition:
                self._free += size
                self._condition.notify_all()


@dataclass(frozen=True)
class Signing:
    """Signs requests with AWS signature version 4; leaves them unsigned without credentials."""

    credentials: Any = None
    region: str = _REGION

    def headers(self, url: str) -> dict[str, str]:
        """The headers of a GET request."""
        plain = {"Accept-Encoding": "identity"}
        if self.credentials is None:
            return plain
        request = AWSRequest(method="GET", url=url, headers=plain)
        # Frozen per request, because the credentials of an instance role are renewed during a long run.
        S3SigV4Auth(self.credentials.get_frozen_credentials(), "s3", self.region).add_auth(request)
        return {str(name): str(value) for name, value in request.headers.items()}


class HttpRemote:
    """Requests bodies over HTTP with persistent connections."""

    def __init__(self, config: FetchConfig, base: str, signing: Signing) -> None:
        self._base = base
        self._signing = signing
        self._limit = config.max_bytes + _GZIP_OVERHEAD
        self._budget = ByteBudget(config.max_bytes_in_flight)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=config.max_concurrency),
            timeout=aiohttp.ClientTimeout(total=config.timeout_seconds),
            auto_decompress=False,
            # Honours HTTPS_PROXY, through which many clusters reach the internet.
            trust_env=True,
        )

    async def get(self, blob_id: str) -> bytes:
        url = f"{self._base}/{blob_id}"
        try:
            async with self._session.get(url, headers=self._signing.headers(url)) as response:
                if response.status == 200:
                    return await self._body(response)
                await self._refuse(response)
                raise PassingError(f"http_{response.status}")
        except asyncio.TimeoutError:
            raise PassingError("timeout") from None
        except aiohttp.ClientPayloadError:
            raise PassingError("short_body") from None
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise MoseError(f"{self._base}: url: {error}; expected a URL that can be asked") from None
        except (aiohttp.ClientError, OSError):
            raise PassingError("connection") from None

    async def close(self) -> None:
        await self._session.close()

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        length = response.content_length
        if length is not None and length > self._limit:
            raise OversizedError(length)
        # Twice, because the stored and the decoded body are held together, each at most as large as the limit.
        async with self._budget.hold(2 * (length if length is not None else self._limit)):
            body = bytearray()
            async for block in response.content.iter_chunked(_READ_BYTES):
                body += block
                if len(body) > self._limit:
                    raise OversizedError(0)
            return bytes(body)

    async def _refuse(self, response: aiohttp.ClientResponse) -> None:
        """Raise for a response that is not a temporary failure."""
        text = (await response.content.read(_ERROR_BYTES)).decode("utf-8", "replace")
        if "NoSuchBucket" in text:
            raise MoseError(f"{self._base}: url: the server has no such bucket; expected one that holds blobs under their ids")
        if response.status in (404, 410):
            raise AbsentError
        if response.status in (401, 403):
            raise PassingError("forbidden")
        if response.status not in _RETRIED and response.status < 500:
            raise MoseError(f"{self._base}: url: the server answers {response.status} {response.reason}; expected 200 or 404")


class FsspecRemote:
    """Reads bodies from any other fsspec store, in threads."""

    def __init__(self, config: FetchConfig) -> None:
        self._folder = storage_path(config.url)
        self._limit = config.max_bytes + _GZIP_OVERHEAD
        self._budget = ByteBudget(config.max_bytes_in_flight)

    async def get(self, blob_id: str) -> bytes:
        try:
            async with self._budget.hold(2 * self._limit):
                body = await asyncio.to_thread(self._read, blob_id)
        except FileNotFoundError:
            raise AbsentError from None
        except OSError:
            raise PassingError("connection") from None
        if len(body) > self._limit:
            raise OversizedError(0)
        return body

    async def close(self) -> None:
        return

    def _read(self, blob_id: str) -> bytes:
        with (self._folder / blob_id).open("rb") as file:
            return file.read(self._limit + 1)


def open_remote(config: FetchConfig) -> Remote:
    """The remote for a config's url; call it inside a running event loop.

    Raises:
        MoseError: signed requests are configured, but there are no credentials.
    """
    if config.url.startswith(("http://", "https://")):
        return HttpRemote(config, config.url.rstrip("/"), Signing())
    if config.url.startswith("s3://"):
        signing = Signing() if config.anonymous else _own_signing()
        return HttpRemote(config, s3_address(config.url, config.endpoint_url), signing)
    return FsspecRemote(config)


def s3_address(url: str, endpoint_url: str) -> str:
    """`s3://BUCKET/PREFIX` as an HTTP address: BUCKET.s3.amazonaws.com/PREFIX, or ENDPOINT/BUCKET/PREFIX."""
    parts = urlsplit(url)
    bucket, prefix = parts.netloc, quote(parts.path.rstrip("/"))
    if endpoint_url:
        return f"{endpoint_url.rstrip('/')}/{bucket}{prefix}"
    # Amazon's wildcard certificate does not cover bucket names with dots, which therefore go into the path.
    return f"https://{_AMAZON}/{bucket}{prefix}" if "." in bucket else f"https://{bucket}.{_AMAZON}{prefix}"


def _own_signing() -> Signing:
    session = botocore.session.get_session()
    credentials = session.get_credentials()
    if credentials is None:
        raise MoseError("anonymous: is false and there are no AWS credentials; expected some, or --anonymous true")
    return Signing(credentials, session.get_config_variable("region") or _REGION)

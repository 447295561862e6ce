"""An S3 server over HTTP (moto's) with blobs in it, and a proxy in front that fails a seeded share of requests."""

import contextlib
import gzip
import hashlib
import http.client
import logging
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import boto3  # type: ignore[import-untyped]
import pytest
from moto.server import ThreadedMotoServer

from mose.seeding import derive_key, generator

BUCKET = "softwareheritage"
URL = f"s3://{BUCKET}/content"
FAULTS = ("503", "429", "500", "stall", "reset", "short", "garbage", "truncated_gzip", "other_body")
STALL_SECONDS = 6.0


def allow_local_http(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Credentials and endpoint for every S3 client of this process, and no proxy of the machine in between."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """A running S3 server with an empty bucket `BUCKET`; yields its address."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    # One line a request, beside what is tested.
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    try:
        host, port = server.get_host_and_port()
        client(f"http://{host}:{port}").create_bucket(Bucket=BUCKET)
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def client(endpoint: str) -> Any:
    """A boto3 client of a test server."""
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=endpoint, **keys)


def put_blobs(endpoint: str, bodies: Sequence[bytes]) -> list[str]:
    """Store gzipped bodies as Software Heritage does, readable without a signature; returns their blob ids."""
    s3 = client(endpoint)
    ids = [hashlib.sha1(body).hexdigest() for body in bodies]
    for blob_id, body in zip(ids, bodies, strict=True):
        s3.put_object(Bucket=BUCKET, Key=f"content/{blob_id}", Body=gzip.compress(body), ACL="public-read")
    return ids


class FaultyProxy(ThreadingHTTPServer):
    """Passes GETs on to a server, but fails a share of them; counts requests and faults."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: str, share: float, faults: Sequence[str] = FAULTS, seed: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream)
        self.share = share
        self.faults = faults
        self.seed = seed
        self.requests: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fault(self, path: str) -> str:
        """The fault of this request, by its path and how often it was asked for; empty for none."""
        with self.lock:
            number = self.requests[path]
            self.requests[path] += 1
            key = derive_key(self.seed, "fault", path, number)
            name = self.faults[key % len(self.faults)] if (key >> 32) / 2**32 < self.share else ""
            self.injected[name] += 1
        return name

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no news."""


@contextlib.contextmanager
def faulty_proxy(upstream: str, share: float, faults: Sequence[str] = FAULTS, seed: int = 0) -> Iterator[FaultyProxy]:
    """A running `FaultyProxy`."""
    proxy = FaultyProxy(upstream, share, faults, seed)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def do_GET(self) -> None:
        fault = self.server.fault(self.path)
        self.server.headers.append(dict(self.headers))
        if fault.isdigit():
            self._answer(int(fault), b"<Error><Code>SlowDown</Code></Error>")
        elif fault == "stall":
            time.sleep(STALL_SECONDS)
            self.close_connection = True
        elif fault == "reset":
            # Lingering for no time makes the kernel send RST.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        else:
            self._pass_on(fault)

    def _pass_on(self, fault: str) -> None:
        upstream = http.client.HTTPConnection(self.server.upstream.netloc, timeout=30)
        upstream.request("GET", self.path, headers=dict(self.headers))
        answer = upstream.getresponse()
        body = answer.read()
        upstream.close()
        if answer.status != 200 or not fault:
            self._answer(answer.status, body)
        elif fault == "short":
            self._answer(200, body, sent=len(body) // 2)
        elif fault == "garbage":
            self._answer(200, generator(0, "garbage").bytes(len(body)))
        elif fault == "truncated_gzip":
            self._answer(200, body[: len(body) // 2])
        else:
            self._answer(200, gzip.compress(b"not what you asked for"))

    def _answer(self, status: int, body: bytes, sent: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:sent])
        self.close_connection = sent is not None

    def log_message(self, *args: Any) -> None:
        """Quiet."""

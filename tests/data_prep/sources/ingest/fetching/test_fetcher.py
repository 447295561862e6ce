"""Fetching bodies from a real S3 server over HTTP through a proxy that fails: all accounted for, nothing twice, killed, rerun."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep.sources.blobs.store import BODY, MISSING, NOT_FETCHED, TOO_LARGE, BlobStore
from data_prep.sources.ingest.fetching.command import COMMAND, fetch, statistics_path
from data_prep.sources.ingest.fetching.config import FetchConfig
from data_prep.sources.ingest.fetching.fetcher import backoff_seconds
from data_prep.sources.ingest.fetching.remote import s3_address
from data_prep.sources.ingest.grouping.config import GroupConfig
from data_prep.sources.ingest.grouping.run import group
from data_prep.sources.registry import SourcesConfig, grouped_parts, list_repositories, read_part, read_repository
from mose.command import run_command
from mose.errors import MoseError
from mose.files.storage import storage_path
from tests.data_prep.faulty_s3 import BUCKET, FAULTS, URL, allow_local_http, client, faulty_proxy, put_blobs, s3_server
from tests.data_prep.stack_rows import stack_file, write_repositories

ROOT = Path(__file__).parents[5]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def endpoint(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    allow_local_http(monkeypatch, server)
    return server


def a_config(tmp_path: Path, source: Path, **changes: Any) -> FetchConfig:
    fields: dict[str, Any] = {
        "inputs": (str(source),),
        "store": str(tmp_path / "store"),
        "url": URL,
        "backoff_seconds": 0.01,
        "max_backoff_seconds": 0.05,
        "timeout_seconds": 30.0,
        "max_concurrency": 16,
    }
    return FetchConfig(**{**fields, **changes})


def made_bodies(count: int, name: str) -> list[str]:
    return [f"# {name} {i}\n" + "x = 1\n" * (i % 40) for i in range(count)]


def an_input(tmp_path: Path, endpoint: str, count: int, name: str, absent: int = 0) -> Path:
    """Repositories of three files each; the last `absent` bodies are not on the server."""
    bodies = made_bodies(count, name)
    put_blobs(endpoint, [body.encode() for body in bodies[: count - absent]])
    rows = [(f"o/{i:03d}", [stack_file(f"/{j}.py", bodies[j]) for j in range(i, min(i + 3, count))]) for i in range(0, count, 3)]
    return write_repositories(tmp_path / "in.parquet", rows)


def test_every_blob_is_accounted_for_under_faults_and_none_is_asked_for_twice(tmp_path: Path, endpoint: str) -> None:
    source = an_input(tmp_path, endpoint, 120, "faults", absent=6)
    with faulty_proxy(endpoint, share=0.4) as proxy:
        config = a_config(tmp_path, source, endpoint_url=proxy.address, attempts=12, timeout_seconds=2.0)
        counts = fetch(config)
        assert set(proxy.injected) >= {"", *FAULTS}
        assert (counts.wanted, counts.accounted()) == (120, 120)
        assert counts.stored == {BODY: 114, MISSING: 6} and not counts.given_up.total()
        # A reset of a connection that was used before is hidden by aiohttp, which asks again on a new one.
        assert set(counts.retries) - {"connection"} == {
            *("http_503", "http_429", "http_500", "timeout", "short_body", "not_gzip", "wrong_checksum")
        }
        assert counts.requests == 120 + counts.retries.total()
        before = proxy.requests.total()
        again = fetch(config)
        assert proxy.requests.total() == before
    assert (again.known[BODY], again.known[MISSING], again.requests) == (114, 6, 0)
    store = BlobStore(tmp_path / "store")
    for body in made_bodies(120, "faults")[:114]:
        assert store.get(stack_file("/", body)["blob_id"]) == (BODY, body.encode())


def test_blobs_that_never_come_are_counted_by_their_last_failure_and_asked_for_again(tmp_path: Path, endpoint: str) -> None:
    source = an_input(tmp_path, endpoint, 12, "never")
    with faulty_proxy(endpoint, share=1.0, faults=("503",)) as proxy:
        counts = fetch(a_config(tmp_path, source, endpoint_url=proxy.address, attempts=3))
    assert counts.given_up["http_503"] == 12 and counts.requests == 36
    assert fetch(a_config(tmp_path, source, endpoint_url=endpoint)).stored == {BODY: 12}


def test_a_blob_that_is_damaged_at_its_source_is_remembered_by_reason(tmp_path: Path, endpoint: str) -> None:
    files = [stack_file("/plain.py", "plain"), stack_file("/other.py", "other"), stack_file("/good.py", "good")]
    s3 = client(endpoint)
    s3.put_object(Bucket=BUCKET, Key=f"content/{files[0]['blob_id']}", Body=b"no gzip at all")
    put_blobs(endpoint, [b"good"])
    with faulty_proxy(endpoint, share=0.0) as proxy:
        other = s3.get_object(Bucket=BUCKET, Key=f"content/{files[2]['blob_id']}")["Body"].read()
        s3.put_object(Bucket=BUCKET, Key=f"content/{files[1]['blob_id']}", Body=other)
        files.append(stack_file("/bad.py", "x", blob_id="../../etc/passwd"))
        source = write_repositories(tmp_path / "in.parquet", [("o/r", files)])
        config = a_config(tmp_path, source, endpoint_url=proxy.address, attempts=2)
        counts = fetch(config)
        assert counts.stored == {BODY: 1, "not_gzip": 1, "wrong_checksum": 1} and counts.given_up["invalid_blob_id"] == 1
        assert not any("passwd" in path for path in proxy.requests)
    sources = SourcesConfig(stack_v2=(str(source),), blob_store=config.store)
    found = {file.path: file.problem for file in read_repository(list_repositories(sources)[0], sources)}
    assert found == {"/good.py": "", "/plain.py": "not_gzip", "/other.py": "wrong_checksum", "/bad.py": "invalid_blob_id"}


def test_large_bodies_and_bombs_are_not_kept(tmp_path: Path, endpoint: str) -> None:
    bomb, long, noise = "0" * 5_000_000, "long " * 1000, os.urandom(40_000).hex()
    put_blobs(endpoint, [bomb.encode(), long.encode(), noise.encode()])
    files = [
        stack_file("/bomb.py", bomb, length_bytes=None),
        stack_file("/long.py", long),
        stack_file("/noise.py", noise, length_bytes=None),
    ]
    source = write_repositories(tmp_path / "in.parquet", [("o/r", files)])
    config = a_config(tmp_path, source, endpoint_url=endpoint, max_bytes=4000)
    counts = fetch(config)
    assert counts.stored == {TOO_LARGE: 3} and counts.requests == 2
    raised = fetch(a_config(tmp_path, source, endpoint_url=endpoint, max_bytes=6000))
    assert raised.stored[BODY] == 1 and raised.known[TOO_LARGE] <= 2
    assert BlobStore(tmp_path / "store").get(files[1]["blob_id"]) == (BODY, long.encode())


def test_missing_blobs_are_asked_for_again_only_on_request(tmp_path: Path, endpoint: str) -> None:
    source = an_input(tmp_path, endpoint, 9, "later", absent=2)
    config = a_config(tmp_path, source, endpoint_url=endpoint)
    assert fetch(config).stored == {BODY: 7, MISSING: 2}
    put_blobs(endpoint, [body.encode() for body in made_bodies(9, "later")[7:]])
    assert fetch(config).requests == 0
    retried = fetch(a_config(tmp_path, source, endpoint_url=endpoint, retry_missing=True))
    assert (retried.stored[BODY], retried.requests) == (2, 2)
    assert BlobStore(tmp_path / "store").get(stack_file("/", made_bodies(9, "later")[8])["blob_id"])[0] == BODY


def test_a_wrong_url_is_refused_before_all_is_remembered_as_missing(tmp_path: Path, endpoint: str) -> None:
    rows = [("o/r", [stack_file(f"/{i}", f"absent {i}") for i in range(150)])]
    source = write_repositories(tmp_path / "in.parquet", rows)
    with pytest.raises(MoseError, match="the first 100 blobs are all missing"):
        fetch(a_config(tmp_path, source, endpoint_url=endpoint, url=f"s3://{BUCKET}/contents"))
    with pytest.raises(MoseError, match="no such bucket"):
        fetch(a_config(tmp_path, source, endpoint_url=endpoint, url="s3://no-such-bucket/content"))
    assert BlobStore(tmp_path / "store").get(rows[0][1][0]["blob_id"])[0] == NOT_FETCHED


def test_a_place_that_is_down_ends_the_run(tmp_path: Path, endpoint: str) -> None:
    source = an_input(tmp_path, endpoint, 120, "down", absent=120)
    down = a_config(tmp_path, source, endpoint_url="http://127.0.0.1:9", attempts=1)
    with pytest.raises(MoseError, match="100 blobs in a row could not be fetched, the last for connection"):
        fetch(down)
    (statistics,) = json.loads(statistics_path(down).read_text())["runs"]
    assert statistics["given_up"]["connection"] >= 100 and statistics["stored"] == {}


def test_a_blob_of_several_repositories_is_fetched_once(tmp_path: Path, endpoint: str) -> None:
    put_blobs(endpoint, [b"shared"])
    rows = [(f"o/{i}", [stack_file(f"/{i}.py", "shared")]) for i in range(9)]
    source = write_repositories(tmp_path / "in.parquet", rows, row_group_size=1)
    with faulty_proxy(endpoint, share=0.0) as proxy:
        counts = fetch(a_config(tmp_path, source, endpoint_url=proxy.address))
        assert proxy.requests.total() == 1
    assert (counts.wanted, counts.accounted(), counts.stored[BODY]) == (9, 9, 1)


@pytest.mark.parametrize("url", ["https", "memory"])
def test_other_places_than_s3(tmp_path: Path, endpoint: str, url: str) -> None:
    source = an_input(tmp_path, endpoint, 6, url)
    address = f"{endpoint}/{BUCKET}/content"
    if url == "memory":
        address, s3 = "memory://swh/content", client(endpoint)
        for body in made_bodies(6, url)[:5]:
            blob_id = stack_file("/", body)["blob_id"]
            stored = s3.get_object(Bucket=BUCKET, Key=f"content/{blob_id}")["Body"].read()
            (storage_path(address) / blob_id).write_bytes(stored)
    counts = fetch(a_config(tmp_path, source, url=address))
    assert counts.stored == ({BODY: 5, MISSING: 1} if url == "memory" else {BODY: 6})


def test_signed_and_anonymous_requests_differ_by_their_signature(tmp_path: Path, endpoint: str) -> None:
    source = write_repositories(tmp_path / "in.parquet", [("o/r", [stack_file("/a", "signed")])])
    with faulty_proxy(endpoint, share=0.0) as proxy:
        for anonymous in (False, True):
            config = a_config(
                tmp_path,
                source,
                endpoint_url=proxy.address,
                anonymous=anonymous,
                retry_missing=True,
                store=str(tmp_path / f"{anonymous}"),
            )
            fetch(config)
    signed, unsigned = proxy.headers
    assert signed["Authorization"].startswith("AWS4-HMAC-SHA256 Credential=test/") and "Authorization" not in unsigned


def test_grouped_rows_are_fetched_by_part_and_packed_from_the_store(tmp_path: Path, endpoint: str) -> None:
    bodies = made_bodies(40, "parts")
    put_blobs(endpoint, [body.encode() for body in bodies])
    rows = [(f"o/{i}", [stack_file(f"/{j}.py", bodies[(i * 3 + j) % 40]) for j in range(4)]) for i in range(20)]
    grouped = tmp_path / "grouped"
    source = write_repositories(tmp_path / "in.parquet", rows)
    group(GroupConfig(inputs=(str(source),), output=str(grouped), num_parts=4))
    for task in range(2):
        fetch(a_config(tmp_path, grouped, endpoint_url=endpoint, task=task, num_tasks=2))
    assert sorted(path.name for path in (tmp_path / "store").glob("part-*")) == ["part-00000", "part-00001"]
    sources = SourcesConfig(stack_v2=(str(grouped),), blob_store=str(tmp_path / "store"))
    found = {
        ref.name: [(file.path, file.content.decode(), file.problem) for file in files]
        for part in grouped_parts(sources)
        for ref, files in read_part(part, sources)
    }
    assert found == {name: [(file["path"], file["content"], "") for file in files] for name, files in rows}


def test_a_killed_run_fetches_nothing_twice_that_it_had_stored(tmp_path: Path, endpoint: str) -> None:
    source = an_input(tmp_path, endpoint, 120, "killed")
    with faulty_proxy(endpoint, share=0.1, faults=("503", "reset")) as proxy:
        words = ["fetch", f"--inputs=['{source}']", f"--store={tmp_path / 'store'}", f"--endpoint_url={proxy.address}"]
        words += ["--max_concurrency=4", "--backoff_seconds=0.01"]
        script = (
            "import sys; from mose.command import run_command; from data_prep.sources.ingest.fetching.command import COMMAND; "
            "sys.exit(run_command('mose-data', '', {'fetch': COMMAND}, sys.argv[1:]))"
        )
        process = subprocess.Popen([sys.executable, "-c", script, *words], cwd=ROOT)
        deadline = time.monotonic() + 60
        while proxy.requests.total() < 40 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        store = BlobStore(tmp_path / "store")
        ids = [stack_file("/", body)["blob_id"] for body in made_bodies(120, "killed")]
        had = {blob_id for blob_id in ids if store.get(blob_id)[0] == BODY}
        assert 0 < len(had) < 120
        proxy.requests.clear()
        counts = fetch(a_config(tmp_path, source, endpoint_url=proxy.address))
        asked = {path.rpartition("/")[2] for path in proxy.requests}
    assert not asked & had and counts.known[BODY] == len(had) and counts.stored[BODY] == 120 - len(had)


def test_the_command_tells_what_came_and_ends_by_it(tmp_path: Path, endpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = an_input(tmp_path, endpoint, 6, "told", absent=1)
    words = ["fetch", f"--inputs=['{source}']", f"--store={tmp_path / 'store'}", f"--endpoint_url={endpoint}"]
    assert run_command("mose-data", "", {"fetch": COMMAND}, words) == 0
    printed = capsys.readouterr().out
    assert "6 blobs wanted: 5 fetched, 0 already in the store" in printed and "missing" in printed
    with faulty_proxy(endpoint, share=1.0, faults=("500",)) as proxy:
        more = [*words[:1], *words[1:3], f"--endpoint_url={proxy.address}", "--retry_missing=true", "--attempts=1"]
        assert run_command("mose-data", "", {"fetch": COMMAND}, more) == 1
    assert "not in the store: run again" in capsys.readouterr().out


def test_values_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    for name, value in {
        "inputs": (),
        "store": "s3://bucket/store",
        "url": "/folder",
        "task": 1,
        "attempts": 0,
        "timeout_seconds": 0.0,
        "max_bytes": 0,
        "max_bytes_in_flight": 1,
    }.items():
        with pytest.raises(MoseError, match=name):
            a_config(tmp_path, tmp_path, **{name: value})


def test_waits_grow_and_are_drawn_below_their_bound(tmp_path: Path) -> None:
    config = a_config(tmp_path, tmp_path, backoff_seconds=1.0, max_backoff_seconds=30.0)
    waits = [[backoff_seconds(config, bytes([i] * 20), attempt) for i in range(200)] for attempt in range(1, 12)]
    for attempt, drawn in enumerate(waits, start=1):
        bound = min(30.0, 2.0 ** (attempt - 1))
        assert 0 <= min(drawn) < 0.1 * bound and 0.9 * bound < max(drawn) <= bound


def test_s3_urls_become_addresses() -> None:
    assert s3_address("s3://softwareheritage/content", "") == "https://softwareheritage.s3.amazonaws.com/content"
    assert s3_address("s3://with.dots/content/", "") == "https://s3.amazonaws.com/with.dots/content"
    assert s3_address("s3://bucket/a/b", "http://here:9000/") == "http://here:9000/bucket/a/b"

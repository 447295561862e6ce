"""The blob store: what goes in comes out, torn tails are cut off, indices are rebuilt, damage is told, one writer a part."""

import gzip
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.sources.blobs.pack import GZIP, HEADER, RAW, Record, build_index, index_paths, read_index, scan
from data_prep.sources.blobs.store import (
    BODY,
    INVALID_ID,
    MISSING,
    NOT_FETCHED,
    STATUSES,
    TOO_LARGE,
    BlobStore,
    as_ids,
    gunzip,
    open_store,
    parse_id,
)
from data_prep.sources.ingest.blob_writer import BlobWriter
from mose.errors import MoseError
from mose.files.storage import storage_path

ROOT = Path(__file__).parents[4]


def sha1(body: bytes) -> bytes:
    return hashlib.sha1(body).digest()


def fill(store: Path, bodies: list[bytes], part: int = 0, pack_bytes: int = 1 << 30) -> None:
    with BlobWriter(store, part, pack_bytes) as writer:
        for body in bodies:
            writer.add(sha1(body), BODY, GZIP, len(body), gzip.compress(body, mtime=0))


def made(count: int, first: int = 0) -> list[bytes]:
    return [f"body {i} ".encode() * (i % 50) for i in range(first, first + count)]


def packs_of(store: Path) -> list[Path]:
    return sorted(store.glob("part-*/pack-*.blobs"))


def test_what_went_in_comes_out_over_packs_parts_and_reopenings(tmp_path: Path) -> None:
    bodies = made(300)
    fill(tmp_path, bodies[:100], pack_bytes=2000)
    fill(tmp_path, bodies[100:200], pack_bytes=2000)
    fill(tmp_path, bodies[200:], part=1)
    assert len(packs_of(tmp_path)) > 5
    store = BlobStore(tmp_path)
    for body in reversed(bodies):
        assert store.get(sha1(body).hex()) == (BODY, body)
    assert store.get(sha1(b"never").hex()) == (NOT_FETCHED, b"")
    assert [store.get(name)[0] for name in ("", "zz", "ab", "../../etc/passwd")] == [INVALID_ID] * 4


def test_statuses_without_a_body_and_raw_bodies(tmp_path: Path) -> None:
    with BlobWriter(tmp_path, 0) as writer:
        for status in STATUSES[1:]:
            writer.add(sha1(status.encode()), status, GZIP, 7)
        writer.add(sha1(b"raw"), BODY, RAW, 3, b"raw")
        assert writer.statuses([sha1(b"too_large"), sha1(b"none")]) == [(TOO_LARGE, 7), None]
    store = BlobStore(tmp_path)
    assert [store.get(sha1(status.encode()).hex()) for status in STATUSES[1:]] == [(status, b"") for status in STATUSES[1:]]
    assert store.get(sha1(b"raw").hex()) == (BODY, b"raw")


def test_a_body_is_found_before_an_older_or_newer_failure(tmp_path: Path) -> None:
    blob, body = sha1(b"late"), gzip.compress(b"late", mtime=0)
    with BlobWriter(tmp_path, 0, pack_bytes=1) as writer:
        writer.add(blob, MISSING, GZIP, 0)
        writer.add(blob, BODY, GZIP, 4, body)
        assert writer.statuses([blob]) == [(BODY, 4)]
    with BlobWriter(tmp_path, 1) as writer:
        assert writer.statuses([blob]) == [(BODY, 4)]
        writer.add(blob, MISSING, GZIP, 0)
    assert BlobStore(tmp_path).get(blob.hex()) == (BODY, b"late")


@pytest.mark.parametrize("cut", [1, HEADER.size - 1, HEADER.size, HEADER.size + 5])
def test_a_torn_tail_is_cut_off_and_the_rest_stays(tmp_path: Path, cut: int) -> None:
    fill(tmp_path, made(20, 1))
    (pack,) = packs_of(tmp_path)
    whole = pack.read_bytes()
    with pack.open("rb") as file:
        last = list(scan(file))[-1]
    pack.write_bytes(whole[: last.offset + cut])
    assert BlobStore(tmp_path).get(sha1(made(20, 1)[18]).hex())[0] == BODY
    with BlobWriter(tmp_path, 0) as writer:
        assert writer.statuses([sha1(body) for body in made(20, 1)])[18:] == [(BODY, len(made(20, 1)[18])), None]
    fill(tmp_path, made(20, 1)[19:])
    assert pack.read_bytes() == whole


def test_zeros_behind_the_last_record_are_cut_off(tmp_path: Path) -> None:
    # What some file systems leave after a power cut: the length is there, the bytes are not.
    fill(tmp_path, made(5))
    (pack,) = packs_of(tmp_path)
    whole = pack.read_bytes()
    pack.write_bytes(whole + bytes(500))
    fill(tmp_path, [])
    assert pack.read_bytes() == whole


def test_an_index_that_is_gone_old_or_damaged_is_built_again(tmp_path: Path) -> None:
    fill(tmp_path, made(50), pack_bytes=1000)
    first, second, third = packs_of(tmp_path)[:3]
    for path in index_paths(first):
        path.unlink()
    index_paths(second)[0].write_bytes(b"not an array")
    index_paths(third)[1].write_bytes(index_paths(second)[1].read_bytes())
    assert [read_index(pack) for pack in (first, second)] == [None, None]
    store = BlobStore(tmp_path)
    assert all(store.get(sha1(body).hex()) == (BODY, body) for body in made(50))
    fill(tmp_path, [])
    assert all(read_index(pack) is not None for pack in packs_of(tmp_path))


def test_a_damaged_body_is_told_by_its_place(tmp_path: Path) -> None:
    fill(tmp_path, [b"first", b"second"])
    (pack,) = packs_of(tmp_path)
    content = bytearray(pack.read_bytes())
    content[HEADER.size + 12] ^= 1
    pack.write_bytes(content)
    with pytest.raises(MoseError, match=rf"pack-000000\.blobs: damaged at byte 0; expected blob {sha1(b'first').hex()}"):
        BlobStore(tmp_path).get(sha1(b"first").hex())
    assert BlobStore(tmp_path).get(sha1(b"second").hex()) == (BODY, b"second")


def test_one_writer_a_part(tmp_path: Path) -> None:
    with BlobWriter(tmp_path, 0), BlobWriter(tmp_path, 1), pytest.raises(MoseError, match="part-00000: another process"):
        BlobWriter(tmp_path, 0)
    fill(tmp_path, [b"free again"])


def test_a_full_disk_leaves_what_was_complete(tmp_path: Path) -> None:
    script = (
        "import resource, sys, gzip, hashlib; from pathlib import Path\n"
        "from data_prep.sources.ingest.blob_writer import BlobWriter;"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "with BlobWriter(Path(sys.argv[1]), 0) as writer:\n"
        "    for i in range(100):\n"
        "        writer.add(hashlib.sha1(b'%d' % i).digest(), 'body', 0, 300, bytes(300))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "File too large" in done.stderr
    (pack,) = packs_of(tmp_path)
    with pack.open("rb") as file:
        records = list(scan(file))
    assert len(records) == 5000 // (300 + HEADER.size) and pack.stat().st_size == len(records) * (300 + HEADER.size)


def test_a_store_without_packs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MoseError, match="gone: blob_store: no such folder"):
        open_store(str(tmp_path / "gone"))
    with pytest.raises(MoseError, match="blob_store: holds no packs"):
        open_store(str(tmp_path))


def test_the_fingerprint_changes_when_the_store_grows(tmp_path: Path) -> None:
    fill(tmp_path, made(5))
    before = BlobStore(tmp_path).fingerprint()
    assert BlobStore(tmp_path).fingerprint() == before
    fill(tmp_path, made(1, 9))
    assert BlobStore(tmp_path).fingerprint() != before


def test_a_store_on_an_object_store_is_read(tmp_path: Path) -> None:
    fill(tmp_path, made(30), pack_bytes=1000)
    remote = storage_path("memory://blob-store-test")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            (remote / path.relative_to(tmp_path).as_posix()).write_bytes(path.read_bytes())
    store = BlobStore(remote)
    assert all(store.get(sha1(body).hex()) == (BODY, body) for body in made(30))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(min_size=20, max_size=20), max_size=40), st.lists(st.binary(min_size=20, max_size=20), max_size=10))
def test_the_index_finds_what_a_dictionary_finds(ids: list[bytes], others: list[bytes]) -> None:
    check_index(ids, others)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(min_size=2, max_size=2), max_size=40), st.lists(st.binary(min_size=2, max_size=2), max_size=10))
def test_ids_that_share_their_first_bytes_are_told_apart(ids: list[bytes], others: list[bytes]) -> None:
    check_index([bytes(18) + tail for tail in ids], [bytes(18) + tail for tail in others])


def check_index(ids: list[bytes], others: list[bytes]) -> None:
    records = [Record(blob, 0, GZIP, offset, 0, offset) for offset, blob in enumerate(ids)]
    index = build_index(records)
    last = {record.blob: record for record in records}
    assert np.all(index.keys_R[:-1] <= index.keys_R[1:])
    found = index.find(as_ids([*ids, *others]))
    for blob, place in zip([*ids, *others], found.tolist(), strict=True):
        assert (index.record(place) if place >= 0 else None) == last.get(blob)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 300), st.integers(0, 40))
def test_gunzip_takes_whole_files_up_to_the_limit(body: bytes, limit: int, cut: int) -> None:
    stored = gzip.compress(body, mtime=0)
    assert gunzip(stored, 300) == body
    bounded = gunzip(stored, limit)
    assert bounded is not None and (bounded == body if len(body) <= limit else len(bounded) == limit + 1)
    if cut:
        assert gunzip(stored[:-cut], 300) is None


def test_memory_does_not_grow_with_the_bodies(tmp_path: Path) -> None:
    noise = np.random.Generator(np.random.Philox(key=1)).bytes(1 << 20)
    with BlobWriter(tmp_path, 0, pack_bytes=1 << 26) as writer:
        for i in range(200):
            writer.add(sha1(b"%d" % i), BODY, RAW, len(noise), noise)
    script = (
        "import hashlib, re, sys; from pathlib import Path; from data_prep.sources.blobs.store import open_store\n"
        "def peak(): return int(re.search('VmHWM:\\\\s+(\\\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "store = open_store(sys.argv[1]); store.get('0' * 40)\n"
        "before = peak()\n"
        "assert all(len(store.get(hashlib.sha1(b'%d' % i).hexdigest())[1]) == 1 << 20 for i in range(200))\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20 * 1024


def test_ids_are_forty_hexadecimal_digits() -> None:
    assert parse_id("00" * 20) == bytes(20)
    assert [parse_id(text) for text in ("0" * 39, "0" * 42, "x" * 40, "/" * 40)] == [None] * 4

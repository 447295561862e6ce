"""A data set whose folder, tokenizer and inputs are on an object store: the same bytes as on a disk."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from data_prep.execution.finish import finish
from data_prep.execution.pack import pack_dataset
from data_prep.execution.status import status_of
from data_prep.pipeline.config import PackConfig
from data_prep.sources.registry import SourcesConfig
from mose.errors import MoseError
from mose.files.storage import storage_path
from tests.data_prep.repositories import checksums, make_config


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an empty bucket on a server that speaks S3 over HTTP."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    values = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**values, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
        monkeypatch.setenv(name, value)
    # A file system opened by another test would go on asking that test's server.
    S3FileSystem.clear_instance_cache()
    boto3.client("s3").create_bucket(Bucket="bucket")
    yield "s3://bucket"
    server.stop()


def remote_checksums(url: str) -> dict[str, str]:
    """SHA-256 of every object below a URL by name."""
    root = storage_path(url)
    files = [path for path in root.rglob("*") if path.is_file() and path.name != "config.yaml"]
    return {str(path)[len(str(root)) + 1 :]: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def as_parquet(config: PackConfig, folder: Path) -> Path:
    """The config's repositories as one parquet file in The Stack v2 schema."""
    rows = []
    for repository in sorted((folder / "repositories").iterdir()):
        files = [
            {
                "blob_id": hashlib.sha1(path.read_bytes()).hexdigest(),
                "path": f"/{path.name}",
                "language": "Python",
                "detected_licenses": ["MIT"],
                "license_type": "permissive",
                "src_encoding": "UTF-8",
                "is_vendor": False,
                "is_generated": False,
                "length_bytes": path.stat().st_size,
                "content": path.read_text(),
            }
            for path in sorted(repository.iterdir())
        ]
        rows.append({"repo_name": f"owner/{repository.name}", "files": files})
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return folder / "rows.parquet"


def check_end_to_end(tmp_path: Path, url: str) -> None:
    config = make_config(tmp_path, 40)
    rows = as_parquet(config, tmp_path)
    local = replace(config, sources=SourcesConfig(stack_v2=(str(rows),)))
    pack_dataset(local)
    for path in (tmp_path / "tokenizer").iterdir():
        (storage_path(url) / "tokenizer" / path.name).write_bytes(path.read_bytes())
    (storage_path(url) / "input" / "rows.parquet").write_bytes(rows.read_bytes())
    sources = SourcesConfig(stack_v2=(f"{url}/input/*.parquet",))
    config = replace(config, output=f"{url}/dataset", tokenizer=f"{url}/tokenizer", sources=sources)
    dataset = storage_path(config.output)
    for task in (2, 0):
        pack_dataset(config, task)
    assert (status_of(dataset).done, status_of(dataset).missing) == (2, (1,))
    with pytest.raises(MoseError, match=r"1 of 3 have not finished; run them first: --array=1"):
        finish(dataset)
    with pytest.raises(MoseError, match=r"config.yaml: num_tasks: is 3 in this data set, 4 was asked for"):
        pack_dataset(replace(config, num_tasks=4))
    pack_dataset(config, 1)
    finish(dataset, checksums=True)
    found, expected = remote_checksums(config.output), checksums(tmp_path / "dataset")
    # The inputs' fingerprints name where they lie; so do the markers and the manifest, which carry them.
    carriers = {name for name in expected if name.startswith("tasks/") or name == "manifest.json"}
    assert {name: found[name] for name in expected if name not in carriers} == {
        name: expected[name] for name in expected if name not in carriers
    }
    assert set(found) == set(expected)


def test_in_memory(tmp_path: Path) -> None:
    check_end_to_end(tmp_path, f"memory://data-{os.getpid()}")


def test_on_s3(tmp_path: Path, bucket: str) -> None:
    check_end_to_end(tmp_path, bucket)

"""Local paths and URLs are written alike; what is written to an object store appears whole or not at all."""

from pathlib import Path

import pytest

from mose.files.atomic_file import atomic_write, file_sha256, write_json, write_text
from mose.files.storage import is_local, storage_path


def test_local_paths_stay_pathlib_paths(tmp_path: Path) -> None:
    assert storage_path("data/x") == Path("data/x") and is_local(storage_path("data/x"))
    assert storage_path(f"file://{tmp_path}/x") == tmp_path / "x"
    assert not is_local(storage_path("memory://bucket/x"))


def test_a_url_has_the_methods_of_a_path() -> None:
    folder = storage_path("memory://storage-test/set")
    write_text(folder / "a.txt", "hello")
    write_json(folder / "b.json", {"x": 1})
    assert (folder / "a.txt").read_text() == "hello"
    assert sorted(path.name for path in folder.glob("*")) == ["a.txt", "b.json"]
    assert file_sha256(folder / "a.txt").startswith("2cf24dba")


def test_nothing_appears_where_writing_failed() -> None:
    path = storage_path("memory://storage-test/never")
    with pytest.raises(OSError, match="disk"), atomic_write(path) as file:
        file.write(b"half")
        raise OSError("disk full")
    assert not path.exists()

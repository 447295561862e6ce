"""Paths from files: those that stay inside are returned unchanged, all others refused in one printable line."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mose.errors import MoseError
from mose.files.safe_path import path_inside, relative_path
from mose.files.storage import storage_path

# Parts that leave a folder, or that one system or another reads differently, among harmless ones.
PARTS = st.sampled_from(
    ["a", "b.tar", "..", ".", "", "...", "..a", "~", "C:", "s3:", "a\\b", "..\\x", "\0", "\n", "\u202e", "é", "x" * 60]
)
TEXTS = st.one_of(st.lists(PARTS, max_size=6).map("/".join), st.text(max_size=30))


@given(TEXTS)
def test_a_path_stays_inside_or_is_refused(text: str) -> None:
    try:
        accepted = relative_path(text, "manifest.json: path")
    except MoseError as error:
        assert str(error).startswith("manifest.json: path: ")
        assert str(error).isprintable()
        return
    assert accepted == text
    # The path is in normal form already, so that nothing can be hidden in it.
    assert os.path.normpath(accepted) == accepted
    assert os.path.normpath(f"/folder/{accepted}").startswith("/folder/")
    assert "\\" not in accepted
    assert ":" not in accepted.partition("/")[0]


@given(st.lists(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True), min_size=1, max_size=5).map("/".join))
def test_ordinary_paths_are_accepted(text: str) -> None:
    assert relative_path(text, "where") == text


@pytest.mark.parametrize(
    "value", [None, 1, ["train/a.tar"], b"a", "", "x" * 5000, "/etc/passwd", "../a", "a/../../b", "a//b", "a/"]
)
def test_what_is_no_relative_path_is_refused(value: object) -> None:
    with pytest.raises(MoseError, match=r"^m: .*expected a relative path without '\.\.'"):
        relative_path(value, "m")


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_not(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside / "train", outside):
        folder.mkdir(parents=True)
        (folder / "a.tar").write_bytes(b"")
    (inside / "link.tar").symlink_to("train/a.tar")
    (inside / "out.tar").symlink_to(outside / "a.tar")
    (inside / "folder").symlink_to("../outside")
    (inside / "loop").symlink_to("loop")
    (tmp_path / "alias").symlink_to(inside)
    for folder in (inside, tmp_path / "alias"):
        for name in ("train/a.tar", "link.tar", "not/there/yet"):
            assert path_inside(folder, name, "m") == folder / name
    for name in ("out.tar", "folder/a.tar", "folder/new"):
        with pytest.raises(MoseError, match=r"^m: .* is a link to .*outside.*, expected a path inside"):
            path_inside(inside, name, "m")
    with pytest.raises(MoseError, match=r"^m: .*loop"):
        path_inside(inside, "loop", "m")


def test_a_snapshot_of_the_hugging_face_cache_may_link_to_its_own_blobs_only(tmp_path: Path) -> None:
    for repository in ("models--a", "models--b"):
        (tmp_path / repository / "blobs").mkdir(parents=True)
        (tmp_path / repository / "blobs" / "1234").write_bytes(b"")
    snapshot = tmp_path / "models--a" / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/1234")
    (snapshot / "other.safetensors").symlink_to("../../../models--b/blobs/1234")
    assert path_inside(snapshot, "model.safetensors", "m").is_file()
    with pytest.raises(MoseError, match="is a link to"):
        path_inside(snapshot, "other.safetensors", "m")


def test_paths_on_an_object_store_are_checked_as_text() -> None:
    folder = storage_path("memory://bucket/data")
    assert str(path_inside(folder, "train/a.tar", "m")).endswith("bucket/data/train/a.tar")
    with pytest.raises(MoseError, match="expected a relative path"):
        path_inside(folder, "../other/a.tar", "m")

"""The manifest: written and read back equal, counted, and refused with one line when it is not one."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from mose.dataset.manifest import MANIFEST_NAME, Manifest, ShardEntry, read_manifest, write_manifest
from mose.errors import MoseError

ENTRIES = tuple(
    ShardEntry(f"train/shard-{i:06d}.tar", 10 + i, 100 + i, 512, "a" * 64, "i", "b" * 64, "l", "c" * 64) for i in range(2)
)
MANIFEST = Manifest("t" * 16, "c" * 16, 49_152, 2048, {"train": ENTRIES, "held_out": ()}, {"fill": 0.97})


def test_it_comes_back_equal_and_with_equal_bytes(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    first = (tmp_path / MANIFEST_NAME).read_bytes()
    assert read_manifest(tmp_path) == MANIFEST
    write_manifest(tmp_path, read_manifest(tmp_path))
    assert (tmp_path / MANIFEST_NAME).read_bytes() == first


def test_counts_and_layout() -> None:
    assert (MANIFEST.rows("train"), MANIFEST.tokens("train")) == (21, 201)
    assert (MANIFEST.rows("held_out"), MANIFEST.rows("test")) == (0, 0)
    assert MANIFEST.layout().dtype == np.uint16
    assert MANIFEST.layout().sequence_length == 2048
    assert MANIFEST.shards("train") == ENTRIES


@pytest.mark.parametrize("split", ["held_out", "test"])
def test_a_split_without_rows_is_named(split: str) -> None:
    with pytest.raises(MoseError, match=rf"split '{split}' has no rows; expected one of \['held_out', 'train'\]"):
        MANIFEST.shards(split)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "not a readable JSON file"),
        ("\xff", "not a readable JSON file"),
        ("[]", "schema_version is None, expected 2"),
        ('{"schema_version": 9}', "schema_version is 9, expected 2"),
        ('{"schema_version": 2}', "not a manifest of this version"),
        ('{"schema_version": 2, "splits": {}}', "not a manifest of this version"),
        ('{"schema_version": 2, "splits": {"train": [{"rows": 1}]}}', "not a manifest of this version"),
    ],
)
def test_what_is_not_a_manifest_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(MoseError, match=expected) as raised:
        read_manifest(tmp_path)
    assert str(tmp_path / MANIFEST_NAME) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_manifest_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(MoseError, match="no such file; expected a data set that `mose-data pack` has finished"):
        read_manifest(tmp_path)


def test_an_unknown_field_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    values = json.loads((tmp_path / MANIFEST_NAME).read_text())
    (tmp_path / MANIFEST_NAME).write_text(json.dumps({**values, "colour": "red"}))
    with pytest.raises(MoseError, match="colour"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("value", ["../A/train/x.tar", "/etc/x", "a/../../x", ".", "a\\..\\x", "s3://bucket/x", "a\nb", 7, None])
@pytest.mark.parametrize("name", ["path", "index_path", "lineage_path"])
def test_a_path_out_of_the_data_set_is_refused(tmp_path: Path, name: str, value: object) -> None:
    write_manifest(tmp_path, MANIFEST)
    values = json.loads((tmp_path / MANIFEST_NAME).read_text("utf-8"))
    values["splits"]["train"][1][name] = value
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(values), "utf-8")
    with pytest.raises(MoseError, match=rf"json: .*splits\.train\[1\]\.{name}: .*expected (a relative path|text)") as raised:
        read_manifest(tmp_path)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(("name", "value"), [("rows", -1), ("rows", 1.5), ("tokens", "7"), ("num_bytes", True), ("sha256", None)])
def test_a_count_of_another_type_is_refused(tmp_path: Path, name: str, value: object) -> None:
    write_manifest(tmp_path, MANIFEST)
    values = json.loads((tmp_path / MANIFEST_NAME).read_text("utf-8"))
    values["splits"]["train"][0][name] = value
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(values), "utf-8")
    with pytest.raises(MoseError, match=rf"splits\.train\[0\]\.{name}: {value!r}, expected"):
        read_manifest(tmp_path)


def test_a_link_out_of_the_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train").symlink_to("../other")
    with pytest.raises(MoseError, match=r"path of a shard: .*train/shard-000000\.tar is a link to .*other"):
        ENTRIES[0].shard_in(tmp_path / "set")


def changed(manifest: Manifest, **values: object) -> Manifest:
    """The manifest with other values in its second shard."""
    first, second = manifest.splits["train"]
    return dataclasses.replace(manifest, splits={"train": (first, dataclasses.replace(second, **values)), "held_out": ()})  # type: ignore[arg-type]


def test_the_content_root_changes_with_every_digest_and_order_and_with_nothing_else() -> None:
    root = MANIFEST.content_root
    assert len(root) == 64
    assert dataclasses.replace(MANIFEST, statistics={}, config_fingerprint="x").content_root == root
    others = [changed(MANIFEST, **{name: "d" * 64}).content_root for name in ("sha256", "index_sha256", "lineage_sha256", "path")]
    others += [changed(MANIFEST, rows=7).content_root]
    others += [dataclasses.replace(MANIFEST, splits={"train": ENTRIES[::-1]}).content_root]
    others += [dataclasses.replace(MANIFEST, splits={"train": ENTRIES[:1], "held_out": ENTRIES[1:]}).content_root]
    others += [dataclasses.replace(MANIFEST, splits={"train": ENTRIES[:1]}).content_root]
    assert len({root, *others}) == 1 + len(others)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_the_content_root_is_that_of_a_merkle_tree(count: int) -> None:
    entries = tuple(dataclasses.replace(ENTRIES[0], path=f"train/{i}") for i in range(count))

    def root_of(part: tuple[ShardEntry, ...]) -> bytes:
        if len(part) == 1:
            leaf = json.dumps(["train", dataclasses.asdict(part[0])], sort_keys=True)
            return hashlib.sha256(b"\0" + leaf.encode()).digest()
        # The largest power of two below the number of leaves goes to the left, as in RFC 6962.
        cut = 1 << (len(part) - 1).bit_length() - 1
        return hashlib.sha256(b"\1" + root_of(part[:cut]) + root_of(part[cut:])).digest()

    assert dataclasses.replace(MANIFEST, splits={"train": entries}).content_root == root_of(entries).hex()


def test_a_manifest_whose_shards_were_edited_is_refused(tmp_path: Path) -> None:
    whole = dataclasses.replace(MANIFEST, generations=("0" * 64, MANIFEST.content_root))
    write_manifest(tmp_path, whole)
    assert read_manifest(tmp_path) == whole
    text = (tmp_path / MANIFEST_NAME).read_text("utf-8")
    (tmp_path / MANIFEST_NAME).write_text(text.replace("a" * 64, "d" * 64, 1), "utf-8")
    with pytest.raises(MoseError, match=r"manifest\.json: generations: the last is .*, its shards give .*; expected the file as"):
        read_manifest(tmp_path)


def test_an_older_manifest_has_one_generation(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    values = json.loads((tmp_path / MANIFEST_NAME).read_text("utf-8"))
    del values["generations"]
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(values), "utf-8")
    assert read_manifest(tmp_path).content_generations == (MANIFEST.content_root,)

"""Covers the registry of packing modes: the strings on disk, what follows from each, and manifests of every age."""

import dataclasses
import json
from pathlib import Path

import pytest

from mose.dataset.manifest import read_manifest
from mose.dataset.packing_modes import ICC, NSP, PackingMode
from mose.errors import MoseError
from tests.datasets import make_dataset


def test_modes_are_the_strings_that_configs_and_manifests_hold() -> None:
    assert json.dumps(list(PackingMode)) == '["dense", "faithful", "nsp"]'
    assert [mode.name for mode in PackingMode] == list(PackingMode)


def test_what_follows_from_a_mode() -> None:
    assert {mode: (mode.task, mode.alternates) for mode in PackingMode} == {
        "dense": (ICC, True),
        "faithful": (ICC, False),
        "nsp": (NSP, True),
    }


def test_a_manifest_names_its_mode(tmp_path: Path) -> None:
    manifest = read_manifest(make_dataset(tmp_path))
    assert dataclasses.replace(manifest, statistics={}).packing_mode is PackingMode.dense
    assert dataclasses.replace(manifest, statistics={"mode": "nsp"}).packing_mode is PackingMode.nsp
    with pytest.raises(MoseError, match=r"statistics.mode: 'sparse', expected one of dense, faithful, nsp"):
        _ = dataclasses.replace(manifest, statistics={"mode": "sparse"}).packing_mode

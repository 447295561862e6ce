"""A data set packed by an earlier version is completed, checked, changed and read after its config has grown a field.

The fixture was packed on 2026-11-21's code: tasks 0 and 1 of 3, with relative paths, its repositories, and the SHA-256 of every
file of the whole data set as that code made it.
"""

import dataclasses
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.execution import inputs as inputs_module
from data_prep.execution.finish import finish
from data_prep.execution.inputs import inputs_path, read_config_of
from data_prep.execution.pack import pack_dataset
from data_prep.filters.config import FiltersConfig
from data_prep.pipeline.config import FIRST_FIELDS, FREE_FIELDS, PackConfig, content_fields
from data_prep.sources.registry import SourcesConfig
from data_prep.tools.removal.command import remove
from data_prep.tools.removal.removal_list import RemovalList
from data_prep.tools.verify import verify
from mose.errors import MoseError
from mose.files.atomic_file import file_sha256
from pretrain.storage.local_rows import LocalRows

FIXTURE = Path(__file__).parents[1] / "fixtures" / "dataset_2026_11_21.tar.gz"
DATASET = Path("dataset")


@dataclasses.dataclass(frozen=True)
class GrownFilters(FiltersConfig):
    """The filters of a later version."""

    max_tokens: int = 0
    """A field that the fixture's code did not know."""


@dataclasses.dataclass(frozen=True)
class Balance:
    """A section of a later version."""

    share: float = 0.25


@dataclasses.dataclass(frozen=True)
class GrownConfig(PackConfig):
    """The config of a later version: a field, a field of a section, and a section."""

    filters: GrownFilters = dataclasses.field(default_factory=GrownFilters)
    balance: Balance = dataclasses.field(default_factory=Balance)
    languages: tuple[str, ...] = ()


@pytest.fixture
def expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """SHA-256 by name; the working directory is where the fixture's relative paths begin, and the code is of a later version."""
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inputs_module, "PackConfig", GrownConfig)
    sums: dict[str, str] = json.loads(Path("sha256.json").read_text("utf-8"))
    return sums


def grown(**changes: Any) -> PackConfig:
    return dataclasses.replace(read_config_of(DATASET), **changes)


def test_a_data_set_of_an_earlier_version_is_used_after_its_config_has_grown(expected: dict[str, str]) -> None:
    pack_dataset(grown())
    made = {name: file_sha256(DATASET / name) for name in expected if name.endswith((".tar", ".npy", ".model", "inputs.json"))}
    assert made == {name: expected[name] for name in made}
    finish(DATASET, checksums=True)
    assert verify(DATASET).problems == []
    rows = LocalRows(DATASET, "train")
    assert rows.tokens(np.arange(len(rows))).shape == (len(rows), 128)
    rows.close()


def test_it_keeps_the_ways_of_its_version_and_a_newer_default_is_refused(expected: dict[str, str]) -> None:
    there = read_config_of(DATASET)
    assert there.sources.detection == "suffix"
    newer = dataclasses.replace(there, sources=dataclasses.replace(there.sources, detection="linguist"))
    with pytest.raises(MoseError, match=r"sources\.detection: is 'suffix' in this data set, 'linguist' was asked for"):
        pack_dataset(newer)


def test_files_are_removed_from_it(expected: dict[str, str]) -> None:
    pack_dataset(grown())
    removed = remove(DATASET, RemovalList((), ("repository-03",)))
    assert removed is not None and removed.rows > 0
    assert verify(DATASET).problems == []


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("filters.max_tokens", {"filters": GrownFilters(max_tokens=5, secrets="keep", personal_data="keep")}),
        ("balance.share", {"balance": Balance(0.5)}),
        ("languages", {"languages": ("Go",)}),
        ("seed", {"seed": 1}),
    ],
)
def test_a_changed_field_is_refused_and_nothing_is_written(expected: dict[str, str], name: str, changes: dict[str, Any]) -> None:
    before = {path: path.read_bytes() for path in sorted(DATASET.rglob("*")) if path.is_file()}
    with pytest.raises(MoseError, match=rf"config\.yaml: {name}: is .* in this data set"):
        pack_dataset(grown(**changes))
    assert {path: path.read_bytes() for path in sorted(DATASET.rglob("*")) if path.is_file()} == before


def test_inputs_that_another_version_counted_otherwise_are_refused_and_nothing_is_written(expected: dict[str, str]) -> None:
    path = inputs_path(DATASET)
    path.write_text(path.read_text("utf-8").replace('"fields": "8d', '"fields": "00'), "utf-8")
    before = path.read_bytes()
    with pytest.raises(MoseError, match=r"inputs\.json: fields: is 00"):
        pack_dataset(grown())
    assert path.read_bytes() == before


def test_every_first_field_is_still_there() -> None:
    """Removing or renaming one would change the fingerprint of every data set."""

    def names(values: dict[str, Any], prefix: str = "") -> set[str]:
        inner = [names(v, f"{prefix}{k}.") if isinstance(v, dict) else {f"{prefix}{k}"} for k, v in values.items()]
        return set().union(*inner)

    # As earlier versions packed; what a newer default changes counts beside these.
    filters = FiltersConfig(secrets="keep", personal_data="keep")
    config = PackConfig("data", "tokenizer", sources=SourcesConfig(detection="suffix", detect_licences=False), filters=filters)
    assert names(content_fields(config)) == FIRST_FIELDS
    assert not FIRST_FIELDS & set(FREE_FIELDS)

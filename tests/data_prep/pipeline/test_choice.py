"""What goes in by choice: languages and their weights, a token budget, copies across repositories; none depends on the tasks."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep.execution.pack import pack_dataset
from data_prep.filters.config import FiltersConfig
from data_prep.pipeline import duplicates as module
from data_prep.pipeline.config import PackConfig
from data_prep.pipeline.duplicates import Duplicates, keeper_key, write_duplicates
from data_prep.sources.detection.choice import copies_of
from data_prep.sources.repositories import split_of
from data_prep.tools.verify import verify
from mose.dataset.manifest import MANIFEST_NAME
from mose.errors import MoseError
from tests.data_prep.repositories import make_config


def packed(config: PackConfig, output: Path, **changes: Any) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Statistics, and (repository, path) of the files of train in order."""
    pack_dataset(dataclasses.replace(config, output=str(output), **changes))
    assert verify(output).problems == []
    tables = [pq.read_table(path, columns=["repository", "path"]) for path in sorted((output / "train").glob("lineage-*"))]
    files = {(row["repository"], row["path"]) for table in tables for row in table.to_pylist()}
    return json.loads((output / MANIFEST_NAME).read_text())["statistics"], sorted(files)


def test_a_table_of_duplicates_is_exact_and_independent_of_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAITING", 7)
    generator = np.random.default_rng(3)
    files = [(f"r{generator.integers(9)}", f"{int(generator.integers(60)) * 2**58:016x}{0:024x}") for _ in range(300)]
    for name, order in (("a", files), ("b", files[::-1])):
        write_duplicates(tmp_path / name, order, seed=1)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    table = Duplicates.read(tmp_path / "a", 1)
    holders: dict[str, set[str]] = {}
    for repository, blob in files:
        holders.setdefault(blob, set()).add(repository)
    assert len(table) == sum(len(names) > 1 for names in holders.values()) > 20
    for blob, names in holders.items():
        keeper = min(names, key=lambda name: keeper_key(name, 1))
        assert {name for name in names if not table.is_copy(name, blob)} == {keeper}
    assert not table.is_copy("r1", "-" + "f" * 39) and not table.is_copy("r1", "no id")
    (tmp_path / "a").write_bytes(b"no table")
    with pytest.raises(MoseError, match="not a readable table of duplicates"):
        Duplicates.read(tmp_path / "a", 1)


def test_one_of_several_repositories_keeps_a_file_whatever_the_number_of_tasks(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    folder = tmp_path / "repositories"
    trained = [path for path in sorted(folder.iterdir()) if split_of(path.name, config.seed, config.held_out_fraction) == "train"]
    name = next(f"copy-{n}" for n in range(99) if split_of(f"copy-{n}", config.seed, config.held_out_fraction) == "train")
    shutil.copytree(trained[0], folder / name)
    (folder / name / "own.py").write_text("def own():\n    return 'only here'\n" * 20, "utf-8")
    found = [packed(config, tmp_path / str(tasks), num_tasks=tasks, duplicates="drop") for tasks in (1, 3)]
    assert found[0][1] == found[1][1]
    twins = (name, trained[0].name)
    assert len({repository for repository, path in found[0][1] if repository in twins and path != "/own.py"}) == 1
    dropped = found[0][0]["filters"]["reasons"]["duplicate_across_repositories"]["files"]
    counted, all_files = packed(config, tmp_path / "count", duplicates="count")
    assert counted["duplicates_in_train"] == dropped > 0 and len(all_files) == len(found[0][1]) + dropped


def test_weights_repeat_and_leave_out_by_a_hash() -> None:
    for weight in (0.0, 0.3, 1.0, 2.5):
        copies = [copies_of("Python", f"/{n}.py", {"python": weight}, 0) for n in range(2000)]
        assert abs(np.mean(copies) - weight) < 0.04 and set(copies) <= {int(weight), int(weight) + 1}
        assert copies == [copies_of("Python", f"/{n}.py", {"python": weight}, 0) for n in range(2000)]
    assert copies_of("Go", "/a.go", {"python": 0.0}, 0) == 1


def test_languages_and_weights_of_a_data_set(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    before, files = packed(config, tmp_path / "all")
    half, fewer = packed(config, tmp_path / "half", filters=FiltersConfig(language_weights={"Python": 0.5}))
    assert set(fewer) < set(files) and half["filters"]["reasons"]["language_weight"]["files"] > 0
    double, same = packed(config, tmp_path / "double", filters=FiltersConfig(language_weights={"Python": 2}))
    assert same == files and double["splits"]["train"]["text_tokens"] > 1.9 * before["splits"]["train"]["text_tokens"] * 0.98
    assert double["filters"]["repeated"]["Python"]["files"] == len(files)
    assert double["splits"]["held_out"]["text_tokens"] == before["splits"]["held_out"]["text_tokens"]
    with pytest.raises(MoseError, match="language"):
        packed(config, tmp_path / "none", filters=FiltersConfig(exclude_languages=("python",)))


def test_a_token_budget(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    before, _ = packed(config, tmp_path / "all", num_tasks=1)
    total = before["splits"]["train"]["text_tokens"]
    few, _ = packed(config, tmp_path / "few", num_tasks=1, max_train_tokens=total // 2)
    assert total // 2 <= few["splits"]["train"]["text_tokens"] < 0.7 * total
    assert few["splits"]["held_out"]["text_tokens"] == before["splits"]["held_out"]["text_tokens"]
    assert few["filters"]["reasons"]["over_token_budget"]["files"] > 0


def test_tasks_share_a_token_budget_equally_and_in_the_same_way_each_time(tmp_path: Path) -> None:
    config = make_config(tmp_path, repositories=36)
    total = packed(config, tmp_path / "all", num_tasks=2)[0]["splits"]["train"]["text_tokens"]
    few, files = packed(config, tmp_path / "few", num_tasks=2, max_train_tokens=total // 3)
    assert total // 3 <= few["splits"]["train"]["text_tokens"] < 0.6 * total
    assert packed(config, tmp_path / "again", num_tasks=2, num_workers=2, max_train_tokens=total // 3)[1] == files


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"include_languages": ("Pyton",)}, r"include_languages: 'Pyton' is no language .* \(did you mean Python\?\)"),
        ({"exclude_languages": ("Quenya",)}, "exclude_languages: 'Quenya' is no language"),
        ({"language_weights": {"c++": -1}}, r"language_weights: c\+\+: is -1, expected 0 to 100"),
    ],
)
def test_names_and_weights_are_checked_before_anything_is_read(values: dict[str, Any], message: str) -> None:
    with pytest.raises(MoseError, match=message):
        FiltersConfig(**values)

"""Listing and reading over all kinds of sources: order, names, suffixes, limits, and what is refused."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from data_prep.sources.registry import SourcesConfig, list_repositories, read_repository, source_fingerprint, state_of
from mose.errors import MoseError
from tests.data_prep.stack_rows import stack_file, write_repositories


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def paths(config: SourcesConfig, index: int = 0) -> list[str]:
    return [file.path for file in read_repository(list_repositories(config)[index], config) if not file.problem]


def test_repositories_come_sorted_by_name_from_every_kind(tmp_path: Path) -> None:
    write(tmp_path / "many", {"zeta/a.py": b"1", "beta/a.py": b"2", "loose.txt": b"3", ".hidden/a.py": b"4"})
    write(tmp_path / "one" / "gamma", {"a.py": b"5"})
    config = SourcesConfig(directories=(str(tmp_path / "many"),), repositories=(str(tmp_path / "one" / "gamma"),))
    assert [ref.name for ref in list_repositories(config)] == ["beta", "gamma", "zeta"]


def test_a_changed_file_of_the_same_size_a_new_commit_and_other_rows_are_seen(tmp_path: Path) -> None:
    folder = write(tmp_path / "folder", {"a.py": b"x = 1\n", "newest.py": b"y = 1\n"})
    checkout = write(tmp_path / "checkout", {"a.py": b"x = 1\n"})
    rows = write_repositories(tmp_path / "rows.parquet", [("a/b", [stack_file("/a.py", "x = 1\n")])], with_content=True)

    def commit() -> None:
        for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@a", "commit", "-qm", "a"]):
            subprocess.run(["git", "-C", str(checkout), *words], check=True)

    def states() -> tuple[str, str, str]:
        config = SourcesConfig(repositories=(str(folder),), git_checkouts=(str(checkout),))
        by_name = {ref.name: state_of(ref, config) for ref in list_repositories(config)}
        return by_name["folder"], by_name["checkout"], source_fingerprint(SourcesConfig(stack_v2=(str(rows),)))

    commit()
    for name, when in (("a.py", 1), ("newest.py", 2_000_000_000)):
        os.utime(folder / name, (when, when))
    before = states()
    assert states() == before
    (folder / "a.py").write_bytes(b"x = 2\n")
    assert states()[0] != before[0] and states()[1:] == before[1:]
    (checkout / "a.py").write_bytes(b"x = 2\n")
    # What is not committed is not packed.
    assert states()[1] == before[1]
    commit()
    assert states()[1] != before[1] and states()[2] == before[2]
    write_repositories(rows, [("a/b", [stack_file("/a.py", "x = 2\n")])], with_content=True)
    assert states()[2] != before[2]


def test_repositories_of_one_name_are_numbered_and_both_read(tmp_path: Path) -> None:
    write(tmp_path / "a" / "core", {"a.py": b"first"})
    write(tmp_path / "b" / "core", {"a.py": b"second"})
    config = SourcesConfig(repositories=(str(tmp_path / "b" / "core"), str(tmp_path / "a" / "core")))
    refs = list_repositories(config)
    assert [ref.name for ref in refs] == ["core", "core#2"]
    read = [(file.repository, file.content) for ref in refs for file in read_repository(ref, config)]
    assert read == [("core", b"first"), ("core#2", b"second")]


def test_a_repository_given_twice_is_listed_once(tmp_path: Path) -> None:
    folder = str(write(tmp_path / "core", {"a.py": b"1"}))
    assert len(list_repositories(SourcesConfig(repositories=(folder, folder)))) == 1


def test_max_repositories_takes_the_first_by_name(tmp_path: Path) -> None:
    write(tmp_path, {"c/x.py": b"", "a/x.py": b"", "b/x.py": b""})
    config = SourcesConfig(directories=(str(tmp_path),), max_repositories=2)
    assert [ref.name for ref in list_repositories(config)] == ["a", "b"]


def test_suffixes_choose_the_files(tmp_path: Path) -> None:
    write(tmp_path / "r", {"a.py": b"1", "b.c": b"2", "sub/c.pyi": b"3", "py": b"4"})
    config = SourcesConfig(repositories=(str(tmp_path / "r"),), include_suffixes=(".py", ".pyi"))
    assert paths(config) == ["/a.py", "/sub/c.pyi"]


def test_the_byte_limit_stops_in_path_order_and_passes_over_a_larger_file(tmp_path: Path) -> None:
    write(tmp_path / "r", {"a.py": b"x" * 100, "b.py": b"x" * 30, "c.py": b"x" * 30, "d.py": b"x"})
    config = SourcesConfig(repositories=(str(tmp_path / "r"),), max_repository_bytes=50)
    assert paths(config) == ["/b.py"]
    ((ref),) = list_repositories(config)
    over = [(file.path, file.problem, file.num_bytes) for file in read_repository(ref, config) if file.problem]
    assert over == [(f"/{name}.py", "over_max_repository_bytes", size) for name, size in (("a", 100), ("c", 30), ("d", 1))]


def test_no_repositories_at_all_is_refused(tmp_path: Path) -> None:
    for config in (SourcesConfig(), SourcesConfig(directories=(str(tmp_path),))):
        with pytest.raises(MoseError, match="no repositories at all"):
            list_repositories(config)


@pytest.mark.parametrize("kind", ["directories", "repositories", "git_checkouts", "stack_v2"])
def test_a_path_that_does_not_exist_is_named(tmp_path: Path, kind: str) -> None:
    gone = str(tmp_path / "gone")
    with pytest.raises(MoseError, match="gone"):
        list_repositories(SourcesConfig(**{kind: (gone,)}))  # type: ignore[arg-type]


def test_values_that_make_no_sense_are_refused() -> None:
    with pytest.raises(MoseError, match="include_suffixes"):
        SourcesConfig(include_suffixes=("py",))
    with pytest.raises(MoseError, match="max_repositories"):
        SourcesConfig(max_repositories=-1)
    with pytest.raises(MoseError, match="max_repository_bytes"):
        SourcesConfig(max_repository_bytes=-1)


def test_a_notebook_without_its_outputs_has_the_size_that_it_has_in_the_source(tmp_path: Path) -> None:
    cell = {"cell_type": "code", "source": ["x = 1\n"], "outputs": [{"data": {"image/png": "A" * 5000}}]}
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "plot.ipynb").write_text(json.dumps({"cells": [cell]}), "utf-8")
    config = SourcesConfig(repositories=(str(tmp_path / "r"),))
    (file,) = read_repository(list_repositories(config)[0], config)
    assert len(file.content) < 1000 and file.num_bytes == (tmp_path / "r" / "plot.ipynb").stat().st_size

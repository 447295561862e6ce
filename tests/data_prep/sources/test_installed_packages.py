"""Distributions of a Python as repositories: a made-up one on the path, and the licences that metadata tell."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.sources import installed_packages
from data_prep.sources.repositories import RepositoryRef
from mose.errors import MoseError

METADATA = "Metadata-Version: 2.1\nName: Tiny_Package\nVersion: 1.0\nLicense-Expression: MIT\n"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    info = tmp_path / "tiny_package-1.0.dist-info"
    info.mkdir()
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "b.py").write_bytes(b"b = 1\n")
    (tmp_path / "tiny" / "a.py").write_bytes(b"a = 1\n")
    (tmp_path / "tiny" / "fast.so").write_bytes(b"\x7fELF")
    (info / "METADATA").write_text(METADATA, "utf-8")
    listed = [
        "tiny/b.py",
        "tiny/a.py",
        "tiny/fast.so",
        "tiny/gone.py",
        "../../bin/tiny.py",
        "tiny_package-1.0.dist-info/notes.txt",
    ]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in listed), "utf-8")
    (info / "notes.txt").write_bytes(b"notes")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def test_a_distribution_is_a_repository_of_its_text_files(site: Path) -> None:
    (ref,) = [ref for ref in installed_packages.list_all() if ref.name == "pypi/tiny-package"]
    files = list(installed_packages.read(ref, lambda path: True))
    assert [(file.path, file.content) for file in files] == [("/tiny/a.py", b"a = 1\n"), ("/tiny/b.py", b"b = 1\n")]
    assert {(file.licences, file.licence_type) for file in files} == {(("MIT",), "permissive")}


def test_this_python_has_the_packages_that_run_the_test() -> None:
    names = [ref.name for ref in installed_packages.list_all()]
    assert "pypi/pytest" in names
    assert len(names) == len(set(names))


def test_a_distribution_that_is_gone_is_named() -> None:
    with pytest.raises(MoseError, match="no-such-distribution"):
        list(installed_packages.read(RepositoryRef("pypi/x", "installed_package", "no-such-distribution"), lambda path: True))


def metadata(**fields: list[str]) -> Callable[[str], list[str] | None]:
    return lambda name: fields.get(name.replace("-", "_"))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"License_Expression": ["Apache-2.0 OR BSD-2-Clause"]}, (("Apache-2.0 OR BSD-2-Clause",), "permissive")),
        ({"Classifier": ["License :: OSI Approved :: MIT License", "Topic :: X"]}, (("MIT License",), "permissive")),
        ({"License": ["BSD 3-Clause License\nCopyright (c) ..."]}, (("BSD 3-Clause License",), "permissive")),
        ({"License": ["GNU GPL v3 (MIT parts)"]}, (("GNU GPL v3 (MIT parts)",), "unknown")),
        ({"License": ["summit licence"]}, (("summit licence",), "unknown")),
        ({}, ((), "unknown")),
    ],
)
def test_licences_of_metadata(fields: dict[str, list[str]], expected: tuple[tuple[str, ...], str]) -> None:
    assert installed_packages.licences_of(metadata(**fields)) == expected

"""Licences of folders and git checkouts: which file counts for which files, what it is, and what opt-out lists may name."""

import subprocess
from pathlib import Path

import pytest

from data_prep.filters.config import FiltersConfig
from data_prep.filters.filters import FilterCounts, filter_repository
from data_prep.sources.detection.licences import FolderLicences, is_licence_file, licence_of_text, type_of_expression
from data_prep.sources.registry import SourcesConfig, list_repositories, read_repository

MIT = """MIT License

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation files,
to deal in the Software without restriction.
"""
GPL = "                    GNU GENERAL PUBLIC LICENSE\n                       Version 3, 29 June 2007\n\n Copyright (C) 2007\n"


@pytest.mark.parametrize("path", ["LICENSE", "a/COPYING.LESSER", "LICENCE.md", "MIT-LICENSE.txt", "UNLICENSE", "package.json"])
def test_files_that_state_licences(path: str) -> None:
    assert is_licence_file(path)


@pytest.mark.parametrize("path", ["licenses.py", "license_check.go", "a.json", "docs/licensing.rst"])
def test_files_that_do_not(path: str) -> None:
    assert not is_licence_file(path)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (MIT, "MIT"),
        (GPL, "GPL-3.0-only"),
        ("Mozilla Public License Version 2.0\n", "MPL-2.0"),
        ("Apache License\n   Version 2.0, January 2004\n", "Apache-2.0"),
        ("GNU AFFERO GENERAL PUBLIC LICENSE\nVersion 3\n", "AGPL-3.0-only"),
        ("All rights reserved.\n", ""),
    ],
)
def test_texts(text: str, name: str) -> None:
    assert licence_of_text(text) == name


@pytest.mark.parametrize(
    ("expression", "kind"),
    [
        ("MIT", "permissive"),
        ("(MIT OR GPL-2.0-only)", "permissive"),
        ("MIT AND LGPL-2.1-or-later", "copyleft"),
        ("GPL-2.0-only WITH Classpath-exception-2.0", "copyleft"),
        ("MIT/Apache-2.0", "permissive"),
        ("Proprietary", "unknown"),
        ("Apache-2.0 AND Proprietary", "unknown"),
    ],
)
def test_types(expression: str, kind: str) -> None:
    assert type_of_expression(expression) == kind


def test_the_nearest_statement_counts() -> None:
    licences = FolderLicences()
    assert licences.of_file("a.py", b"") == ((), "no_license")
    licences.add("package.json", b'{\n  "license": "ISC"\n}')
    assert licences.of_file("src/a.js", b"") == (("ISC",), "permissive")
    licences.add("lib/COPYING", GPL.encode())
    licences.add("lib/x/LICENSE", b"Ask me.")
    licences.add("own/LICENSES/MIT.LICENSE", MIT.encode())
    assert licences.of_file("lib/a.c", b"") == (("GPL-3.0-only",), "copyleft")
    assert licences.of_file("lib/a.c", b"// SPDX-License-Identifier: MIT\n") == (("MIT",), "permissive")
    assert licences.of_file("lib/x/a.c", b"") == ((), "unknown")
    assert licences.of_file("own/a/b.c", b"") == (("MIT",), "permissive")


def kept_of(config: SourcesConfig, filters: FiltersConfig) -> tuple[dict[str, str], FilterCounts]:
    counts = FilterCounts()
    (ref,) = list_repositories(config)
    texts = filter_repository(read_repository(ref, config), filters, counts)
    return {text.source.path: text.source.licence_type for text in texts}, counts


def test_licence_types_mean_something_for_a_folder(tmp_path: Path) -> None:
    (tmp_path / "gpl").mkdir()
    (tmp_path / "LICENSE").write_text(MIT, "utf-8")
    (tmp_path / "gpl" / "COPYING").write_text(GPL, "utf-8")
    (tmp_path / "a.py").write_text("x = 1\n", "utf-8")
    (tmp_path / "gpl" / "b.py").write_text("y = 1\n", "utf-8")
    kept, counts = kept_of(SourcesConfig(repositories=(f"owner/name={tmp_path}",), include_suffixes=(".py",)), FiltersConfig())
    assert kept == {"/a.py": "permissive"} and counts.reasons["licence"].files == 1
    config = SourcesConfig(repositories=(str(tmp_path),), include_suffixes=(".py",), detect_licences=False)
    assert kept_of(config, FiltersConfig())[0] == {"/a.py": "unknown", "/gpl/b.py": "unknown"}


@pytest.mark.parametrize(
    "url", ["https://example.org/Ada/Engine.git", "git@example.org:Ada/Engine.git", "ssh://git@example.org:22/ada/engine"]
)
def test_opt_out_names_the_remote_of_a_checkout(tmp_path: Path, url: str) -> None:
    work, opt_out = tmp_path / "clone", tmp_path / "out.txt"
    work.mkdir()
    (work / "a.py").write_text("x = 1\n", "utf-8")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["remote", "add", "origin", url], ["add", "."], [*identity, "commit", "-qm", "x"]):
        subprocess.run(["git", *words], cwd=work, check=True)
    opt_out.write_text("ada/engine\n", "utf-8")
    config = SourcesConfig(git_checkouts=(f"mine={work}",))
    assert [ref.name for ref in list_repositories(config)] == ["mine"]
    assert kept_of(config, FiltersConfig())[0] == {"/a.py": "no_license"}
    assert kept_of(config, FiltersConfig(opt_out=(str(opt_out),)))[0] == {}

"""The interpreters that open exported folders: the tests' own, and for `make soak` one of an environment without this project."""

import os
import sys

import pytest

CLEAN_PYTHON = "MOSE_CLEAN_PYTHON"


@pytest.fixture(scope="module", params=["own", pytest.param("clean", marks=pytest.mark.soak)])
def folder_python(request: pytest.FixtureRequest) -> str:
    """A Python that opens the folder; the variable MOSE_CLEAN_PYTHON names that of a clean environment."""
    if request.param == "own":
        return sys.executable
    if CLEAN_PYTHON not in os.environ:
        pytest.skip(f"{CLEAN_PYTHON} names no Python of an environment without this project (docs/exported_folder.md)")
    return os.environ[CLEAN_PYTHON]

"""Every benchmark can be imported: most are run by hand, so a name that has moved would be noticed late."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [path for path in sorted((ROOT / "benchmarks").rglob("*.py")) if path.name not in ("__main__.py", "__init__.py")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_benchmark_can_be_imported(path: Path) -> None:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    assert importlib.import_module(name).__doc__

"""Every recipe of docs/extending.md is applied to a copy of the sources, and the command below it is run there."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COPIED = ("mose", "data_prep", "pretrain", "finetune", "cluster", "configs", "tests")
SECTIONS = (
    "A filter of files",
    "A packing mode",
    "A kind of repository source",
    "An evaluation task",
    "A set of exits",
    "A term of the loss",
)
# One file, and one file that holds the registry.
MOST_FILES = 2
MOST_REGISTRY_LINES = 2


@dataclass(frozen=True)
class Recipe:
    """One section of the document."""

    title: str
    diff: str
    command: str
    """Runs as `python -c`; it ends with 0 only where the change is in effect, and not before."""


def recipes() -> dict[str, Recipe]:
    text = (ROOT / "docs" / "extending.md").read_text("utf-8")
    found = {}
    for section in re.split(r"^## ", text, flags=re.M)[1:]:
        title = section.splitlines()[0].strip()
        diffs = re.findall(r"^```diff\n(.*?)^```", section, flags=re.M | re.S)
        commands = re.findall(r"^```python\n(.*?)^```", section, flags=re.M | re.S)
        assert len(diffs) == 1 and len(commands) == 1, f"docs/extending.md: {title}: expected one diff and one python block"
        found[title] = Recipe(title, diffs[0], commands[0])
    return found


def run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in COPIED:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_every_section_is_a_recipe() -> None:
    assert tuple(recipes()) == SECTIONS


@pytest.mark.parametrize("title", SECTIONS)
def test_recipe(title: str, copy: Path) -> None:
    recipe = recipes()[title]
    before = run(copy, recipe.command)
    assert before.returncode != 0, "the command passes without the change"
    applied = subprocess.run(
        ["git", "apply", "--unidiff-zero", "--recount", "-"],
        cwd=copy,
        input=recipe.diff,
        capture_output=True,
        text=True,
        check=False,
    )
    assert applied.returncode == 0, applied.stderr
    after = run(copy, recipe.command)
    assert after.returncode == 0, after.stderr


@pytest.mark.parametrize("title", SECTIONS)
def test_recipe_is_one_file_and_one_line(title: str) -> None:
    """At most two files; the one that is not mostly new gets a registry line, and an import where it needs one."""
    parts = re.split(r"^\+\+\+ ", recipes()[title].diff, flags=re.M)[1:]
    added = sorted(sum(line.startswith("+") for line in part.splitlines()[1:]) for part in parts)
    assert 1 <= len(parts) <= MOST_FILES
    assert len(parts) == 1 or added[0] <= MOST_REGISTRY_LINES

"""The documents against the tree: every file they name exists, every command and option they show is one that there is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
FOLDERS = "mose|data_prep|pretrain|finetune|cluster|configs|tests|benchmarks|docs"
NAMED_FILE = re.compile(rf"(?<![\w/])((?:{FOLDERS})/[\w/.-]+\.(?:py|md|yaml|sh))\b")
COMMAND = re.compile(r"\bmose-(data|pretrain|finetune|cluster) ([a-z][a-z-]+)")
PACKAGES = {"data": "data_prep", "pretrain": "pretrain", "finetune": "finetune", "cluster": "cluster"}


def read(document: str) -> str:
    return (ROOT / document).read_text("utf-8")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_a_document_names_exists(document: str) -> None:
    assert [name for name in sorted(set(NAMED_FILE.findall(read(document)))) if not (ROOT / name).exists()] == []


def test_every_command_the_documents_show_exists() -> None:
    shown = {match for document in DOCUMENTS for match in COMMAND.findall(read(document))}
    assert len(shown) > 10
    code = "import importlib, sys; print(*importlib.import_module(sys.argv[1] + '.cli').commands())"
    for program, package in PACKAGES.items():
        result = subprocess.run([sys.executable, "-c", code, package], cwd=ROOT, capture_output=True, text=True, check=True)
        known = set(result.stdout.splitlines()[-1].split())
        assert {word for name, word in shown if name == program} <= known


def test_every_target_the_documents_show_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    shown = {word for document in DOCUMENTS for word in re.findall(r"\bmake ([a-z]+)\b(?= *#|\n|`)", read(document))}
    assert {"setup", "test", "quickstart"} <= shown <= targets


def test_documents_name_no_machine() -> None:
    for document in DOCUMENTS:
        assert re.findall(r"(?<![\w.])/(?:work|home|root|tmp)/", read(document)) == []

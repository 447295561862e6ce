"""The documents against the tree: every file they name exists, every command and option they show is one that there is."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
FOLDERS = "mose|data_prep|pretrain|finetune|cluster|configs|tests|benchmarks|docs"
NAMED_FILE = re.compile(rf"(?<![\w/])((?:{FOLDERS})/[\w/.-]+\.(?:py|md|yaml|sh))\b")
NAMED_CODE = re.compile(r"`((?:mose|data_prep|pretrain|finetune|cluster)(?:\.\w+)+)(?:\(\))?`")
NAMED_PATH = re.compile(rf"`((?:{FOLDERS})/[\w/.-]*)`")
ARCHITECTURE = "docs/architecture.md"
COMMAND = re.compile(r"\bmose-(data|pretrain|finetune|cluster) ([a-z][a-z-]+)")
PACKAGES = {"data": "data_prep", "pretrain": "pretrain", "finetune": "finetune", "cluster": "cluster"}


def read(document: str) -> str:
    return (ROOT / document).read_text("utf-8")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_a_document_names_exists(document: str) -> None:
    assert [name for name in sorted(set(NAMED_FILE.findall(read(document)))) if not (ROOT / name).exists()] == []


def test_every_test_of_a_habit_exists() -> None:
    lines = [line for line in read("docs/exported_folder.md").splitlines() if line.startswith("| ")]
    cells = [cell for line in lines for cell in re.findall(r"`(tests/[\w/]+\.py)`: `(test_\w+)`", line)]
    assert len(cells) > 15
    assert [name for path, name in cells if f"def {name}(" not in read(path)] == []


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


def definitions(body: list[ast.stmt]) -> dict[str, list[ast.stmt]]:
    """Names that a module or class defines, each with the statements inside it."""
    found: dict[str, list[ast.stmt]] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node.body if isinstance(node, ast.ClassDef) else []
        elif isinstance(node, ast.AnnAssign):
            found[ast.unparse(node.target)] = []
        elif isinstance(node, ast.Assign):
            found |= {ast.unparse(target): [] for target in node.targets}
    return found


def is_defined(name: str) -> bool:
    """Whether `package.module.name` or `package.module.Class.name` is in the sources."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:length]).with_suffix(".py")
        if path.is_file():
            body = ast.parse(path.read_text("utf-8")).body
            for part in parts[length:]:
                inside = definitions(body)
                if part not in inside:
                    return False
                body = inside[part]
            return True
    return ROOT.joinpath(*parts).is_dir()


def test_every_function_and_path_of_the_architecture_exists() -> None:
    text = read(ARCHITECTURE)
    names, paths = set(NAMED_CODE.findall(text)), set(NAMED_PATH.findall(text))
    assert len(names) > 50 and len(paths) > 40
    assert sorted(name for name in names if not is_defined(name)) == []
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []


def test_the_architecture_names_every_room() -> None:
    text = read(ARCHITECTURE)
    rooms = {
        path.parent.relative_to(ROOT).as_posix()
        for package in PACKAGES.values()
        for path in (ROOT / package).glob("*/__init__.py")
    }
    assert [room for room in sorted(rooms) if f"`{room}/`" not in text] == []


@pytest.mark.parametrize(
    "name", ["mose.no_such_module.f", "mose.seeding.no_such_function", "pretrain.parallel.engine.Engine.no_such"]
)
def test_a_name_that_is_gone_is_seen(name: str) -> None:
    assert not is_defined(name)


def test_the_picture_is_what_its_script_draws() -> None:
    script = ROOT / "docs" / "images" / "data_way.py"
    drawn = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
    assert read("docs/images/data_way.svg") == drawn
    assert "images/data_way.svg" in read(ARCHITECTURE)

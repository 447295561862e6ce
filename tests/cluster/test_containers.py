"""The container files: what a linter of Dockerfiles asks, the same steps in both, and sources that exist."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE, DEFINITION = ROOT / "containers/Dockerfile", ROOT / "containers/mose.def"


def instructions() -> list[tuple[str, str]]:
    """Name and words of every instruction, continued lines joined."""
    text = re.sub(r" \\\n\s*", " ", DOCKERFILE.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def section(name: str) -> list[str]:
    body = DEFINITION.read_text().partition(f"%{name}\n")[2].partition("\n%")[0]
    return [line.strip() for line in body.splitlines() if line.strip()]


def test_the_dockerfile_has_the_habits_that_linters_ask_for() -> None:
    found = instructions()
    assert found[0][0] == "FROM" and re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+-\w+", found[0][1])
    assert {name for name, _ in found} <= {"FROM", "RUN", "WORKDIR", "COPY", "ARG", "ENV", "USER", "CMD"}
    for name, words in found:
        if name == "RUN" and "apt-get install" in words:
            assert "apt-get update &&" in words and "--no-install-recommends" in words and "rm -rf /var/lib/apt/lists/*" in words
        if name == "RUN" and "pip install" in words:
            assert "--no-cache-dir" in words
        assert "sudo" not in words and "latest" not in words
    assert [words for name, words in found if name == "USER"] == ["mose"]
    assert found[-1] == ("CMD", '["mose-cluster", "doctor"]')


def test_what_is_copied_exists() -> None:
    copied = [word for name, words in instructions() if name == "COPY" for word in words.split()[:-1]]
    assert copied and all((ROOT / word).exists() for word in copied)
    files = [line.split()[0] for line in section("files")]
    assert sorted(files) == sorted(copied)


def test_both_install_the_same() -> None:
    steps = [words for name, words in instructions() if name == "RUN"]
    pip = [line for line in section("post") if line.startswith("pip install")]
    assert pip == [words for words in steps if words.startswith("pip install")]
    assert next(line for line in section("post") if "apt-get install" in line) in steps[0]
    assert f"From: {instructions()[0][1]}" in DEFINITION.read_text()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck on this machine: apt-get install shellcheck")
def test_their_shell_passes_shellcheck(tmp_path: Path) -> None:
    (tmp_path / "post.sh").write_text("#!/bin/sh\n" + "\n".join(section("post")) + "\n")
    runs = [words for name, words in instructions() if name == "RUN"]
    (tmp_path / "runs.sh").write_text("#!/bin/sh\nFLASH_ATTN=0\n" + "\n".join(runs) + "\n")
    command = ["shellcheck", "--norc", "--exclude=SC2164", str(tmp_path / "post.sh"), str(tmp_path / "runs.sh")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


def test_the_cuda_set_extends_the_tested_one() -> None:
    text = (ROOT / "constraints-cuda.txt").read_text()
    pins = [line for line in text.splitlines() if line and not line.startswith(("#", "-c"))]
    assert "-c constraints.txt" in text.splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\d.]+", pin) for pin in pins) and any(pin.startswith("nvidia-nccl") for pin in pins)
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()

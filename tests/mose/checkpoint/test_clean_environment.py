"""Covers what transformers users do with the classes, on the source files of an exported folder, without our packages."""

import shutil
import subprocess
from pathlib import Path

import pytest

from mose.checkpoint.converted_checkpoint import MODEL_SOURCES, random_like, write_checkpoint
from mose.model.configuration_mose import ModularStarEncoderConfig
from tests.commands import environment
from tests.datasets import make_tokenizer

HABITS = Path(__file__).parents[1] / "model" / "test_model_habits.py"


@pytest.mark.soak
def test_the_folders_source_files_pass_the_tests_of_the_classes(tmp_path: Path, folder_python: str) -> None:
    """The files become a package `mose.model`, so that the tests of our own classes run on them unchanged."""
    shape = {"vocab_size": 420, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "matryoshka_layers": [1, 2]}
    make_tokenizer(tmp_path / "tokenizer", 420)
    write_checkpoint(tmp_path / "folder", random_like(ModularStarEncoderConfig(**shape), 1), tmp_path / "tokenizer", {})
    package = tmp_path / "code" / "mose" / "model"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    for name in MODEL_SOURCES:
        shutil.copyfile(tmp_path / "folder" / name, package / name)
    shutil.copyfile(HABITS, tmp_path / "code" / HABITS.name)
    done = subprocess.run(
        [folder_python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path / 'code'}", HABITS.name],
        cwd=tmp_path / "code",
        env=environment(HF_HOME=str(tmp_path / "hub"), HF_HUB_OFFLINE="1", PYTHONPATH=str(tmp_path / "code")),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout

"""The command as a user types it: what it prints, its exit codes, and one line for each kind of bad input."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.cli import commands, main
from data_prep.execution.lease import Lease
from data_prep.execution.pack import pack_dataset
from mose.command import Command, run_command
from mose.config import save_config
from tests.data_prep.repositories import checksums, make_config
from tests.datasets import make_tokenizer


def mose_data(*words: object) -> subprocess.CompletedProcess[str]:
    """Run the real command in its own process."""
    command = [sys.executable, "-m", "data_prep.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})


def here(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Run the command in this process, which is faster; exit code and standard error."""
    code = run_command("mose-data", "", commands(), [str(word) for word in words])
    return code, capsys.readouterr().err


def pack_words(folder: Path, *more: object) -> list[object]:
    """`pack` on the folder's repositories, with `more` options."""
    config = make_config(folder)
    save_config(config, folder / "pack.yaml")
    return ["pack", "--config", folder / "pack.yaml", *more]


def test_from_repositories_to_a_verified_data_set(tmp_path: Path) -> None:
    packed = mose_data(*pack_words(tmp_path))
    assert packed.returncode == 0, packed.stderr
    assert "packed dense" in packed.stdout
    dataset = tmp_path / "dataset"
    verified = mose_data("verify", dataset)
    assert (verified.returncode, verified.stdout[:4], verified.stderr) == (0, "ok: ", "")
    shown = mose_data("inspect", dataset, "--split", "held_out", "--row", 3)
    assert shown.returncode == 0
    assert shown.stdout.count("<sep>") >= 1
    (dataset / "train" / "shard-000000.tar").unlink()
    verified = mose_data("verify", dataset)
    assert verified.returncode == 2
    path = dataset / "train" / "shard-000000.tar"
    assert verified.stderr == f"mose-data: error: {path}: no such shard, but the manifest lists it\n"


def test_every_command_explains_its_fields() -> None:
    for name in ("pack", "inspect", "train-tokenizer", "pairs"):
        shown = mose_data(name, "--help")
        assert shown.returncode == 0
    shown = mose_data("pack", "--help").stdout
    assert "Split files into chunks of at most this many tokens, at line ends" in " ".join(shown.split())
    assert "--task" in shown


def test_tasks_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = pack_words(tmp_path)
    assert here(capsys, *words, "--task", 1)[0] == 0
    code, error = here(capsys, "finish", tmp_path / "dataset")
    assert code == 2
    assert error == f"mose-data: error: {tmp_path / 'dataset'}: tasks: 2 of 3 have not finished; run them first: --array=0,2\n"
    for task in (0, 2):
        assert here(capsys, *words, "--task", task)[0] == 0
    assert here(capsys, "finish", tmp_path / "dataset")[0] == 0
    assert here(capsys, "verify", tmp_path / "dataset")[0] == 0


def test_one_element_of_an_array_from_the_command_line(tmp_path: Path) -> None:
    words = pack_words(tmp_path, "--num-tasks", 2)
    done = mose_data(*words, "--task", 0)
    assert done.returncode == 0
    assert done.stdout == f"task 0 of 2 is done; `mose-data finish {tmp_path}/dataset` when all are\n"
    shown = mose_data("status", tmp_path / "dataset", "--missing")
    assert (shown.returncode, shown.stdout) == (1, "1\n")
    with Lease(tmp_path / "dataset", 1):
        refused = mose_data(*words, "--task", 1)
    assert refused.returncode == 2
    assert refused.stderr.startswith("mose-data: error: task 1: process ")
    assert refused.stderr.count("\n") == 1
    other = mose_data(*words[:-1], 3, "--task", 1)
    assert other.returncode == 2
    assert "config.yaml: num_tasks: is 2 in this data set, 3 was asked for" in other.stderr


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--packing.piece_size=3"], "unknown key 'packing.piece_size'; expected one of: packing.piece_tokens"),
        (["--packing.sequence_length=long"], "packing.sequence_length"),
        (["--packing.sequence_length=8"], "packing.sequence_length: is 8, expected 16 to"),
        (["--packing.mode=sparse"], "packing.mode"),
        (["--num_tasks=0"], "num_tasks: is 0, expected 1 to"),
        (["--num_workers=0"], "num_workers: is 0, expected 1 or more"),
        (["--held_out_fraction=1"], "held_out_fraction: is 1"),
        (["--task=3"], "task: is 3, expected 0 to 2"),
        (["--tokenizer=nowhere"], "nowhere: no such tokenizer file"),
        (["--sources.directories=[]"], "sources: no repositories at all; expected directories, "),
        (["--sources.directories=[nowhere]"], "nowhere"),
        (["--sources.stack_v2=[nowhere.parquet]"], "nowhere.parquet: "),
    ],
)
def test_bad_options_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], expected: str
) -> None:
    code, error = here(capsys, *pack_words(tmp_path, *options))
    assert code == 2
    assert error.startswith("mose-data: error: ")
    assert error.count("\n") == 1
    assert expected in error
    assert not (tmp_path / "dataset").exists()


def test_bad_inputs_in_real_processes_leave_nothing_half_written(tmp_path: Path) -> None:
    words = pack_words(tmp_path)
    (tmp_path / "bad.model").write_bytes(b"not a model")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 cut off")
    pq.write_table(pa.table({"repo_name": ["a"]}), tmp_path / "columns.parquet")
    (tmp_path / "empty").mkdir()
    for option, expected in (
        (f"--tokenizer={tmp_path}/bad.model", "bad.model: not a sentencepiece model"),
        (f"--sources.stack_v2=[{tmp_path}/bad.parquet]", "bad.parquet: not a complete parquet file"),
        (f"--sources.stack_v2=[{tmp_path}/columns.parquet]", "columns.parquet: files: no such column"),
        (f"--sources.directories=[{tmp_path}/empty]", "no repositories at all"),
    ):
        result = mose_data(*words, option)
        assert result.returncode == 2
        assert expected in result.stderr
        assert result.stderr.count("\n") == 1
        assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "empty 1"), (b"a\0b", "binary 1"), (b"caf\xe9 caf\xe9\n", "undecodable 1")]
)
def test_only_unusable_files_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, reason: str
) -> None:
    words = pack_words(tmp_path)
    (tmp_path / "lone" / "repository").mkdir(parents=True)
    (tmp_path / "lone" / "repository" / "file.py").write_bytes(content)
    # Linguist's detection would decode the third as Latin-1.
    code, error = here(capsys, *words, f"--sources.directories=[{tmp_path}/lone]", "--sources.detection=suffix")
    assert code == 2
    assert error.count("\n") == 1
    assert f"none of 1 repositories gave a row; expected usable files, dropped were: {reason}" in error
    assert not (tmp_path / "dataset").exists()


def test_an_unreadable_directory_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = pack_words(tmp_path, "--max_bad_repositories=0")
    locked = tmp_path / "repositories" / "repository-05"
    scandir = os.scandir

    def refuse(path: object = ".") -> object:
        if str(path).startswith(str(locked)):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", refuse)
    code, error = here(capsys, *words)
    assert code == 2
    assert str(locked) in error
    assert error.count("\n") == 1
    assert [path.name for path in (tmp_path / "dataset").rglob("*partial")] == []
    assert not (tmp_path / "dataset" / "manifest.json").exists()


def test_a_shard_that_does_not_match_its_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack_dataset(make_config(tmp_path))
    shard = tmp_path / "dataset" / "train" / "shard-000000.tar"
    content = bytearray(shard.read_bytes())
    content[4000] ^= 255
    shard.write_bytes(content)
    code, error = here(capsys, "verify", tmp_path / "dataset")
    assert code == 2
    assert error.startswith(f"mose-data: error: {shard}: SHA-256 is ")
    assert error.count("\n") == 1


def test_a_tokenizer_that_does_not_match_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack_dataset(make_config(tmp_path))
    sums = checksums(tmp_path / "dataset")
    make_tokenizer(tmp_path / "other", 620)
    code, error = here(capsys, *pack_words(tmp_path, f"--tokenizer={tmp_path}/other"))
    assert code == 2
    assert "inputs.json: tokenizer: is " in error
    assert checksums(tmp_path / "dataset") == sums


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = mose_data("stats", tmp_path, "--debug")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


@pytest.mark.parametrize("step", ["add_arguments", "run"])
def test_ctrl_c_while_a_command_is_imported_or_runs_says_how_to_go_on(
    step: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    command = Command("Check.", *((interrupted, print) if step == "add_arguments" else (lambda _: None, interrupted)))
    monkeypatch.setattr(importlib.import_module("data_prep.tools.verify"), "COMMAND", command)
    monkeypatch.setattr("sys.argv", ["mose-data", "verify"])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "mose-data: interrupted; the same command goes on from what is finished\n"


@pytest.mark.parametrize("module", ["jsonargparse", "mose.command", "mose.config"])
def test_ctrl_c_while_the_command_is_imported_is_one_line(module: str) -> None:
    # A module that Ctrl-C reaches while it is imported, at whatever moment that is on this machine.
    program = (
        "import builtins; real = builtins.__import__\n"
        "def imported(name, *more, **named):\n"
        f"    if name == {module!r}: raise KeyboardInterrupt\n"
        "    return real(name, *more, **named)\n"
        "builtins.__import__ = imported\n"
        "from data_prep.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program, "status", "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr == "mose-data: interrupted; the same command goes on from what is finished\n"

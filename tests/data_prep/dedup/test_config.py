"""Covers the options of `mose-data dedup`: one line for each that cannot be, and inputs that cannot be read."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.cli import commands
from data_prep.dedup.config import DedupConfig
from mose.command import run_command


def dedup(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Exit code and standard error of the command."""
    code = run_command("mose-data", "", commands(), ["dedup", *map(str, words)])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--threshold=0"], "threshold: is 0.0, expected above 0 and at most 1"),
        (["--bands=33"], "bands: 33 bands of 8 rows need 264 places, expected at most num_permutations, 256"),
        (["--method=simhash"], "method"),
        (["--keep=last"], "keep"),
        (["--columns=[]"], "columns: is empty, expected text columns of inputs"),
        (["--columns=[a,a]"], "columns: ['a', 'a'] names one twice"),
        (["--inputs=[]"], "inputs: expected either inputs (parquet files) or sources (repositories), not both and not none"),
        (["--sources.directories=[x]"], "inputs: expected either inputs (parquet files) or sources"),
        (["--output=s3://bucket/x"], "output: is 's3://bucket/x', expected a local folder"),
        (["--memory_bytes=1000"], "memory_bytes: is 1000, expected 268435456 (256 MiB) or more"),
        (["--columns=[c]"], "in.parquet: columns: no column c; expected some of: a, n"),
        (["--columns=[n]"], "in.parquet: columns: n is of type int64, expected text"),
        (["--inputs=[nowhere.parquet]"], "nowhere.parquet: no such file; expected parquet files with text columns"),
        (["--evaluation.files=[nowhere.jsonl]"], "nowhere.jsonl: evaluation.files: cannot be read: No such file"),
        (["--phase=sign"], "phase"),
        (["--phase=bands", "--task=9"], "task: is 9, expected 0 to 7 in the phase bands"),
        (["--similarity=.7"], "unknown key 'similarity'; expected one of: "),
    ],
)
def test_bad_options_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], expected: str
) -> None:
    pq.write_table(pa.table({"a": ["x"], "n": [1]}), tmp_path / "in.parquet")
    words = [f"--inputs=[{tmp_path}/in.parquet]", "--columns=[a]", f"--output={tmp_path}/out", *options]
    code, error = dedup(capsys, *words)
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith("mose-data: error: ")
    assert expected in error
    assert not (tmp_path / "out").exists()


def test_damaged_and_unlike_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(pa.table({"a": ["x"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": ["x"], "b": [1]}), tmp_path / "2.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "1.parquet").read_bytes()[:-10])
    words = ["--columns=[a]", f"--output={tmp_path}/out"]
    code, error = dedup(capsys, f"--inputs=[{tmp_path}/cut.parquet]", *words)
    assert (code, error.count("\n")) == (2, 1)
    assert "cut.parquet: cannot be read: " in error and error.endswith("expected parquet files with text columns\n")
    code, error = dedup(capsys, f"--inputs=[{tmp_path}/1.parquet,{tmp_path}/2.parquet]", *words)
    assert error.endswith(
        "2.parquet: its columns differ from those of " + f"{tmp_path}/1.parquet; expected equal names and types\n"
    )


def test_the_report_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(pa.table({"a": ["the same text", "the  same text", "another one", ""]}), tmp_path / "in.parquet")
    words = [f"--inputs=[{tmp_path}/in.parquet]", "--columns=[a]", f"--output={tmp_path}/out"]
    assert run_command("mose-data", "", commands(), ["dedup", *words]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{tmp_path}/out: 3 of 4 rows kept, 1 (25.0%) removed\n1 groups: 1 kept, 1 exact_duplicate\n"
    assert shown.err == "1 empty texts match nothing\n"
    assert run_command("mose-data", "", commands(), ["dedup", *words, "--phase", "cut", "--task", "0"]) == 0
    assert capsys.readouterr().out == "task 0 of cut is done\n"


def test_the_defaults_are_those_of_the_paper() -> None:
    values: dict[str, Any] = vars(DedupConfig("out", ("in",)))
    assert (values["threshold"], values["num_permutations"], values["bands"], values["rows_per_band"]) == (0.7, 256, 32, 8)

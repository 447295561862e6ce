"""The list of what was dropped: what is written, when it appears, and how `mose-data dropped` shows it."""

import io
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from data_prep.filters import dropped_log as module
from data_prep.filters.dropped_log import DROPPED_SCHEMA, DroppedLog, dropped_path
from data_prep.pipeline.config import PackConfig
from data_prep.sources.registry import SourcesConfig
from data_prep.tools import dropped
from data_prep.tools.dropped import COMMAND, print_dropped, read_dropped
from data_prep.tools.dropped_sample import sample_page
from mose.command import run_command
from mose.config import save_config
from mose.errors import MoseError
from mose.files.storage import storage_path

LINES = [("o/r", f"/{i}.py", f"{i:040x}", "licence" if i % 3 else "binary", i, f"detail {i}") for i in range(10)]


def write_log(dataset: Path, task: int, lines: list[tuple[str, str, str, str, int, str]]) -> None:
    with DroppedLog(dataset, task) as log:
        for line in lines:
            log.add(*line)


def test_lines_come_back_in_task_order_and_by_reason(tmp_path: Path) -> None:
    write_log(tmp_path, 1, LINES[5:])
    write_log(tmp_path, 0, LINES[:5])
    assert list(read_dropped(tmp_path)) == LINES
    assert list(read_dropped(tmp_path, "binary")) == [line for line in LINES if line[3] == "binary"]


def test_a_task_that_dropped_nothing_leaves_an_empty_list(tmp_path: Path) -> None:
    write_log(tmp_path, 3, [])
    table = pq.read_table(tmp_path / dropped_path(3))
    assert (table.num_rows, table.schema) == (0, DROPPED_SCHEMA)
    assert list(read_dropped(tmp_path)) == []


def test_waiting_lines_are_bounded_and_the_bytes_depend_on_the_lines_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GROUP_LINES", 4)
    with DroppedLog(tmp_path, 0) as log:
        for line in LINES:
            log.add(*line)
            assert len(log._waiting) < 4
    assert log.lines == len(LINES)
    assert pq.ParquetFile(tmp_path / dropped_path(0)).metadata.num_row_groups == 3
    write_log(tmp_path, 1, LINES)
    assert (tmp_path / dropped_path(0)).read_bytes() == (tmp_path / dropped_path(1)).read_bytes()
    assert list(read_dropped(tmp_path)) == LINES + LINES


def test_nothing_appears_before_close_and_nothing_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP_LINES", 2)
    with DroppedLog(tmp_path, 0) as log:
        for line in LINES:
            log.add(*line)
        assert not (tmp_path / dropped_path(0)).exists()
        log.close()
        assert (tmp_path / dropped_path(0)).exists()
    with pytest.raises(RuntimeError), DroppedLog(tmp_path, 1) as log:
        for line in LINES:
            log.add(*line)
        raise RuntimeError("disk full")
    assert [path.name for path in (tmp_path / "dropped").iterdir()] == ["dropped-000000.parquet"]


def test_a_data_set_may_lie_behind_a_url() -> None:
    dataset = storage_path("memory://dropped-test/dataset")
    write_log(dataset, 0, LINES)
    assert list(read_dropped(dataset)) == LINES


def test_long_details_are_cut(tmp_path: Path) -> None:
    write_log(tmp_path, 0, [("o/r", "/a", "0", "contaminated", 1, "x" * 10_000)])
    assert next(read_dropped(tmp_path))[5] == "x" * 400


def test_a_pipe_gets_all_lines_tab_separated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_log(tmp_path, 0, [*LINES * 10, ("o/r", "/tab\there\nline", "0", "empty", 0, "")])
    print_dropped(tmp_path, "", 0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("\t") == DROPPED_SCHEMA.names
    assert lines[1].split("\t") == [str(value) for value in LINES[0]]
    assert lines[101].split("\t") == ["o/r", "/tab\\there\\nline", "0", "empty", "0", ""]
    assert len(lines) == 102
    print_dropped(tmp_path, "licence", 2)
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_terminal_gets_a_table_of_some_lines_and_how_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_log(tmp_path, 0, [("o/r", "/[bold]/a.py", "0" * 40, "licence", 12345, "GPL-3.0-only"), *LINES * 10])
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, highlight=False)
    monkeypatch.setattr(dropped, "make_console", lambda **_: console)
    print_dropped(tmp_path, "", 0)
    text = screen.getvalue()
    assert all(word in text for word in ("/[bold]/a.py", "licence", "12,345", "GPL-3.0-only"))
    assert "50 of 101 lines; --limit N shows more" in text


def test_wrong_folders_reasons_and_files_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(MoseError, match="has no dropped/dropped-.*expected a data set"):
        list(read_dropped(tmp_path))
    write_log(tmp_path, 0, LINES)
    with pytest.raises(MoseError, match="reason: nothing was dropped as 'license'; expected one of: binary, licence"):
        list(read_dropped(tmp_path, "license"))
    whole = (tmp_path / dropped_path(0)).read_bytes()
    (tmp_path / dropped_path(0)).write_bytes(whole[:-20])
    with pytest.raises(MoseError, match="dropped-000000.parquet: not a readable list"):
        list(read_dropped(tmp_path))
    pq.write_table(pa.table({"path": ["a"]}), tmp_path / dropped_path(0))
    with pytest.raises(MoseError, match="dropped-000000.parquet: has other columns than repository, path"):
        list(read_dropped(tmp_path))


def test_the_command_lists_and_refuses_a_negative_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_log(tmp_path, 0, LINES)
    commands = {"dropped": COMMAND}
    assert run_command("mose-data", "", commands, ["dropped", str(tmp_path), "--reason", "binary", "--limit", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert run_command("mose-data", "", commands, ["dropped", str(tmp_path), "--limit", "-1"]) == 2
    assert "limit: is -1, expected 0 or more" in capsys.readouterr().err


def test_a_sample_is_the_same_whatever_the_order_of_the_lines(tmp_path: Path) -> None:
    config = PackConfig(str(tmp_path), "tokenizer", sources=SourcesConfig(repositories=(str(tmp_path / "gone"),)))
    save_config(config, tmp_path / "config.yaml")
    lines = [(f"repository-{number % 7}", f"/{number}.py", "", "licence", number, "") for number in range(200)]
    pages = [sample_page(tmp_path, order, 5) for order in (lines, lines[::-1])]
    assert pages[0] == pages[1]
    # Neither the first nor the last lines: a filter often drops many files of one repository in a row.
    numbers = sorted(int(name) for name in re.findall(r"`/(\d+)\.py`", pages[0]))
    assert len(numbers) == 5 and numbers[-1] - numbers[0] > 50


def test_a_sample_shows_the_first_lines_of_random_dropped_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, dataset = tmp_path / "project", tmp_path / "data"
    folder.mkdir()
    (folder / "uv.lock").write_text("version = 1\n`code`\x1b[2J\n", "utf-8")
    config = PackConfig(str(dataset), "tokenizer", sources=SourcesConfig(repositories=(str(folder),)))
    save_config(config, dataset / "config.yaml")
    dropped = [("project", "/uv.lock", "", "generated", 22, ""), ("gone", "/x.py", "", "licence", 3, "copyleft")]
    write_log(dataset, 0, [*dropped, ("project", "/kept.py", "", "replaced", 0, "email 1")])
    pages = []
    for _ in range(2):
        assert run_command("mose-data", "", {"dropped": COMMAND}, ["dropped", str(dataset), "--sample", "5"]) == 0
        pages.append(capsys.readouterr().out)
    assert pages[0] == pages[1]
    assert "`project` `/uv.lock`, 22 bytes" in pages[0] and "version = 1\n'code'\\x1b[2J" in pages[0]
    assert "licence (copyleft)" in pages[0] and "not readable any more" in pages[0]
    assert pages[0].startswith("# 2 files") and "/kept.py" not in pages[0]
    replaced = ["dropped", str(dataset), "--sample", "5", "--reason", "replaced"]
    assert run_command("mose-data", "", {"dropped": COMMAND}, replaced) == 0
    assert "`project` `/kept.py`" in capsys.readouterr().out

"""The journal: what is appended is there again, torn lines are cut off, other configs and damaged lines are refused."""

import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from data_prep.synthconl.translation.journal import Entry, Journal, SeedState, read_entries, read_header
from mose.errors import MoseError
from tests.durability import DiskRecord

IDENTITY = {"model": "m", "seed": "0"}


def entry(identity: str, number: int = 1, outcome: str = "ok") -> Entry:
    return Entry(identity, "Go", number, outcome, "func f() {}" if outcome == "ok" else "", "", 10, 20, 0.5, "http://x/v1", "m")


def filled(path: Path) -> Path:
    with Journal(path, IDENTITY) as journal:
        journal.append([entry("a"), entry("b", 1, "prose")])
        journal.append([entry("b", 2)])
    return path


def test_what_was_appended_is_there_again(tmp_path: Path) -> None:
    path = filled(tmp_path / "journal.jsonl")
    with Journal(path, IDENTITY) as journal:
        assert journal.states == {"a": SeedState(1, "ok"), "b": SeedState(2, "ok")}
        assert (journal.prompt_tokens, journal.completion_tokens) == (30, 60)
        journal.append([entry("c", 3, "empty")])
        assert journal.is_final("a", 3)
        assert journal.is_final("c", 3)
        assert not journal.is_final("c", 4)
        assert not journal.is_final("d", 3)
    assert [found.id for _, found in read_entries(path)] == ["a", "b", "b", "c"]


@pytest.mark.parametrize("torn", [b'{"id": "c", "tar', b'{"id"', b"\0\0\0\0"])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = filled(tmp_path / "journal.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert len(list(read_entries(path))) == 3
    with Journal(path, IDENTITY):
        assert path.read_bytes() == whole


def test_every_cut_of_the_last_line_gives_the_lines_before(tmp_path: Path) -> None:
    whole = filled(tmp_path / "journal.jsonl").read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    path = tmp_path / "cut.jsonl"
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        with Journal(path, IDENTITY) as journal:
            assert journal.states == {"a": SeedState(1, "ok"), "b": SeedState(1, "prose")}


def test_a_journal_of_another_config_is_refused_by_field(tmp_path: Path) -> None:
    path = filled(tmp_path / "journal.jsonl")
    with (
        pytest.raises(MoseError, match=r"journal.jsonl: model: begun with 'm', now 'n'; expected the same"),
        Journal(path, {**IDENTITY, "model": "n"}),
    ):
        pass
    assert len(list(read_entries(path))) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a journal"),
        (b"[]\n", "not a journal"),
        (b'{"kind": "x", "config": {}}\n', "kind: 'x'"),
        (b"\xff\n", "not a journal"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(content)
    with pytest.raises(MoseError, match=message):
        read_header(path)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = filled(tmp_path / "journal.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b'{"id": 3}\n' + lines[1])
    with pytest.raises(MoseError, match="line 2: not an answer"), Journal(path, IDENTITY):
        pass


@pytest.mark.parametrize("written", [0, 1, 100])
def test_a_full_disk_names_the_journal_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int) -> None:
    path = filled(tmp_path / "journal.jsonl")
    whole = path.read_bytes()

    class Full(io.FileIO):
        left = written

        def write(self, content: Any) -> int:
            if not self.left:
                raise OSError(errno.ENOSPC, "No space left on device")
            number = super().write(bytes(content)[: self.left]) or 0
            self.left -= number
            return number

    with Journal(path, IDENTITY) as journal:
        journal._file.close()
        journal._file = Full(path, "r+b")
        journal._file.seek(len(whole))
        with pytest.raises(OSError, match="No space left") as failure:
            journal.append([entry("c"), entry("d")])
        assert failure.value.filename == str(path)
    assert path.read_bytes() == whole


def test_answers_are_on_the_disk_when_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = DiskRecord(monkeypatch)
    path = tmp_path / "journal.jsonl"
    with Journal(path, IDENTITY) as journal:
        journal.append([entry("a")])
        assert list(record.lost(path)) == []
    assert record.faults == []


def test_a_line_is_json_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path, IDENTITY) as journal:
        journal.append([Entry("a", "Go", 1, "ok", "x\n\u2028\x00", "", 1, 1, 0.1, "s", "m")])
    assert path.read_bytes().count(b"\n") == 2
    assert json.loads(path.read_text("utf-8").split("\n")[1])["code"] == "x\n\u2028\x00"
    assert [found.code for _, found in read_entries(path)] == ["x\n\u2028\x00"]
    assert os.listdir(tmp_path) == ["journal.jsonl"]  # noqa: PTH208

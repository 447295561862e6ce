"""The journal of a translation: one line of JSON per answer, on the disk before the next request is sent for its place.

The first line holds the config. A process may be killed anywhere: a torn last line is cut off when the journal is opened again.
"""

import dataclasses
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from data_prep.synthconl.translation.answer import OK
from mose.errors import MoseError
from mose.files.atomic_file import named_errors, sync_folder, write_text
from mose.files.json_file import parse_json
from mose.files.records import from_plain

_KIND = "translations of `mose-data translate`, version 1"
PATTERN = "journal-*.jsonl"


@dataclass(frozen=True)
class Entry:
    """One answer of the server."""

    id: str
    """Of the seed."""
    target: str
    number: int
    """Which answer to this seed it is, from 1."""
    outcome: str
    """`ok`, or the reason of the rejection."""
    code: str
    """The translated code; empty where the answer is rejected."""
    rejected: str
    """The start of a rejected answer."""
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    """From the first request to the answer."""
    server: str
    model: str
    """As the server names it."""


@dataclass(frozen=True)
class SeedState:
    """How far one seed is."""

    answers: int
    outcome: str
    """Of the last answer."""


@dataclass(frozen=True)
class Header:
    """The first line of a journal."""

    kind: str
    config: dict[str, str]


class Journal:
    """An open journal: what it holds, and a place to append. Use as a `with` block, under a lock."""

    def __init__(self, path: Path, identity: Mapping[str, str]):
        """Nothing is opened before the block begins."""
        self._path, self._identity = path, dict(identity)
        self.states: dict[str, SeedState] = {}
        self.prompt_tokens = self.completion_tokens = 0

    def __enter__(self) -> "Journal":
        """Open or begin the journal; a torn last line is cut off.

        Raises:
            MoseError: it is of another config, or a line before the last is damaged.
            OSError: it cannot be read or written.
        """
        if not self._path.is_file():
            header = json.dumps(dataclasses.asdict(Header(_KIND, self._identity)))
            write_text(self._path, header + "\n")
        _, config = read_header(self._path)
        for name, value in self._identity.items():
            if config.get(name) != value:
                found = config.get(name, "nothing")
                raise MoseError(
                    f"{self._path}: {name}: begun with {found!r}, now {value!r}; expected the same, or another output"
                )
        end = 0
        for end, entry in read_entries(self._path):  # noqa: B007
            self.states[entry.id] = SeedState(entry.number, entry.outcome)
            self.prompt_tokens += entry.prompt_tokens
            self.completion_tokens += entry.completion_tokens
        self._end = end or read_header(self._path)[0]
        self._file = io.FileIO(self._path, "r+b")
        self._file.truncate(self._end)
        self._file.seek(self._end)
        sync_folder(self._path.parent)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def append(self, entries: list[Entry]) -> None:
        """Append lines and flush them to the disk; a failure leaves what was there before.

        Raises:
            OSError: the disk is full; the line names the journal.
        """
        lines = "".join(json.dumps(dataclasses.asdict(entry)) + "\n" for entry in entries).encode()
        with named_errors(self._path):
            try:
                rest = memoryview(lines)
                # A raw file may write less than it was given: nearly full disks do.
                while rest:
                    rest = rest[self._file.write(rest) :]
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(self._end)
                self._file.seek(self._end)
                raise
        self._end += len(lines)
        for entry in entries:
            self.states[entry.id] = SeedState(entry.number, entry.outcome)

    def is_final(self, identity: str, tries: int) -> bool:
        """Whether a seed needs no further answer."""
        state = self.states.get(identity)
        return state is not None and (state.outcome == OK or state.answers >= tries)


def read_header(path: Path) -> tuple[int, dict[str, str]]:
    """The bytes of the first line, and the config in it.

    Raises:
        MoseError: the file is no journal.
    """
    with path.open("rb") as file:
        line = file.readline(1 << 20)
    try:
        header = from_plain(Header, parse_json(line))
    except ValueError as error:
        raise MoseError(f"{path}: not a journal: {error}; expected one of `mose-data translate`") from None
    if header.kind != _KIND:
        raise MoseError(f"{path}: kind: {header.kind!r}, expected {_KIND!r}")
    return len(line), header.config


def read_entries(path: Path) -> Iterator[tuple[int, Entry]]:
    """The answers of a journal, each with the offset of its line's end; a torn last line is left out.

    Raises:
        MoseError: another line is damaged.
    """
    with path.open("rb") as file:
        end, number = len(file.readline()), 1
        while (line := file.readline()).endswith(b"\n"):
            end, number = end + len(line), number + 1
            yield end, parse_entry(line, f"{path}: line {number}")


def parse_entry(line: bytes, place: str) -> Entry:
    """One line of a journal.

    Raises:
        MoseError: it is damaged.
    """
    try:
        return from_plain(Entry, parse_json(line))
    except ValueError as error:
        raise MoseError(f"{place}: not an answer: {error}; expected one of `mose-data translate`") from None

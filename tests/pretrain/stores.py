"""A file system for tests of reading at a distance: slow, failing, cutting and damaging reads as told, and counting them."""

import threading
import time
import uuid
from pathlib import Path
from typing import Any

from fsspec.implementations.memory import MemoryFileSystem

from mose.files.storage import storage_path


class Faults:
    """What goes wrong with reads whose path holds one of the given words, until each has happened so many times."""

    def __init__(self) -> None:
        self.reads: list[tuple[str, int, int]] = []
        self.delay_seconds = 0.0
        self.error: tuple[str, int] = ("", 0)
        self.cut: tuple[str, int] = ("", 0)
        self.damage: tuple[str, int] = ("", 0)
        self._lock = threading.Lock()

    def _due(self, kind: str, path: str) -> bool:
        with self._lock:
            word, left = getattr(self, kind)
            if not word or word not in path or left == 0:
                return False
            setattr(self, kind, (word, left - 1))
            return True

    def apply(self, path: str, start: int, data: bytes) -> bytes:
        """Count one read and let happen to it what is due."""
        with self._lock:
            self.reads.append((path.rpartition("/")[2], start, len(data)))
        time.sleep(self.delay_seconds)
        if self._due("error", path):
            raise TimeoutError("no answer")
        if self._due("cut", path):
            return data[: len(data) // 2]
        if self._due("damage", path):
            return data[:700] + bytes([data[700] ^ 1]) + data[701:]
        return data


def upload_folder(folder: Path) -> Path:
    """A copy of a folder in memory, as the path of a URL of its own."""
    target = storage_path(f"memory://{uuid.uuid4().hex}/dataset")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            (target / path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())
    return target


def install_faults(monkeypatch: Any) -> Faults:
    """Let every ranged read of the memory file system go through `Faults`."""
    faults = Faults()
    plain = MemoryFileSystem.cat_file

    def cat_file(store: Any, path: str, start: int | None = None, end: int | None = None, **more: Any) -> bytes:
        data = plain(store, path, start=start, end=end, **more)
        return data if start is None else faults.apply(path, start, data)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    return faults

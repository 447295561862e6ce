"""A record of fsync and rename in the order in which a writer calls them, and what a power cut would lose.

The model is the strictest that a file system may follow: a file's bytes are on the disk as they were at its last fsync, and a
folder's entries as they were at the folder's last fsync. A rename is safe if the bytes were on the disk before it.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


class DiskRecord:
    """What is on the disk for certain, by inode, and the faults found so far."""

    def __init__(self, patch: pytest.MonkeyPatch, ignored: Callable[[Path], bool] = lambda path: False):
        """From now on, calls of this process are recorded; `ignored` names files that need not outlive a power cut."""
        self._bytes: dict[int, str] = {}
        self._entries: dict[int, dict[str, int]] = {}
        self._ignored = ignored
        self.calls: list[tuple[str, str]] = []
        self.faults: list[str] = []
        fsync, rename, replace = os.fsync, os.rename, os.replace

        def recorded_fsync(descriptor: Any) -> None:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            path = Path(f"/proc/self/fd/{number}").readlink()
            self.calls.append(("fsync", path.name))
            fsync(descriptor)
            self._flushed(path)

        def recorded(name: str, original: Callable[..., None]) -> Callable[..., None]:
            def call(source: Any, target: Any, **more: Any) -> None:
                self.calls.append((name, Path(target).name))
                self.faults += [f"{name} to {Path(target).name}: {fault}" for fault in self.lost(Path(source))]
                original(source, target, **more)

            return call

        patch.setattr(os, "fsync", recorded_fsync)
        patch.setattr(os, "rename", recorded("rename", rename))
        patch.setattr(os, "replace", recorded("replace", replace))

    def _flushed(self, path: Path) -> None:
        inode = path.stat().st_ino
        if path.is_dir():
            self._entries[inode] = _entries(path)
        else:
            self._bytes[inode] = _digest(path)

    def lost(self, root: Path) -> Iterator[str]:
        """What a power cut at this moment would lose of `root`, a file or a folder, one sentence for each."""
        if self._ignored(root):
            return
        if root.is_file():
            if self._bytes.get(root.stat().st_ino) != _digest(root):
                yield f"{root.name} is not on the disk"
            return
        known, now = self._entries.get(root.stat().st_ino, {}), _entries(root)
        for name, inode in now.items():
            if known.get(name) != inode and not self._ignored(root / name):
                yield f"the entry {name} of {root.name} is not on the disk"
        for name in now:
            yield from self.lost(root / name)


def _entries(folder: Path) -> dict[str, int]:
    return {path.name: path.lstat().st_ino for path in sorted(folder.iterdir())}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

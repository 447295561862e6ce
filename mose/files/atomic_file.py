"""Files and folders that appear complete or not at all: temporary name, fsync, rename.

fsync comes before the rename: otherwise a power cut can leave the new name with no content. The folder is synced after it, since
the rename itself is an entry of the folder.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mose.files.storage import is_local, upload

TEMPORARY_MARK = ".partial"
_BUFFER_BYTES = 1 << 16


def temporary_path(path: Path) -> Path:
    """The temporary name of `path` until it is complete; in the same folder, since only there a rename is atomic.

    It holds host name and process number, so that machines that share the folder never share a name.
    """
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}{TEMPORARY_MARK}")


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Let an OSError of the block name `path`: of a full disk, the system's own message says nothing else."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


class _NamedFile(io.FileIO):
    """A file whose write errors name the final path; the system's own say only that the disk is full."""

    def __init__(self, path: Path, temporary: Path):
        super().__init__(temporary, "wb")
        self._path = path

    def write(self, content: Any) -> int:
        try:
            return super().write(content) or 0
        except OSError as error:
            error.filename = str(self._path)
            raise


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open `path` for writing; the new file replaces an old one only when the block ends without an error.

    A path on an object store is written to a local temporary file (in TMPDIR) and uploaded whole.

    Raises:
        OSError: the disk is full (the line names `path`) or not writable; the old file is left as it was.
    """
    if not is_local(path):
        with tempfile.NamedTemporaryFile() as local:
            yield local
            local.flush()
            upload(Path(local.name), path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        with io.BufferedWriter(_NamedFile(path, temporary), _BUFFER_BYTES) as file:
            yield file
            file.flush()
            with named_errors(path):
                os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically, so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends without an error.

    Raises:
        FileExistsError: `path` is already there; a finished folder is never overwritten.
    """
    if path.exists():
        raise FileExistsError(f"{path}: already exists")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        publish_folder(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def publish_folder(temporary: Path, path: Path) -> None:
    """fsync every file below `temporary`, then rename it to `path`."""
    for folder, _, names in os.walk(temporary):
        for name in names:
            sync_file(Path(folder) / name)
        sync_folder(Path(folder))
    temporary.rename(path)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Flush one file's bytes to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with named_errors(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power cut."""
    sync_file(path)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal text."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

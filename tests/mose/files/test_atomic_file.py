"""Atomic files and folders: whole or not at all, and nothing temporary stays after an error."""

import errno
import hashlib
import io
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mose.files.atomic_file import (
    TEMPORARY_MARK,
    _NamedFile,
    atomic_folder,
    atomic_write,
    file_sha256,
    named_errors,
    temporary_path,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_only_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    with atomic_write(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert names(path.parent) == ["file"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_killed_writer_leaves_only_a_file_that_is_marked_temporary(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from mose.files.atomic_file import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path / "file")], check=False)
    assert process.returncode == -signal.SIGKILL
    (left,) = names(tmp_path)
    assert left.startswith(".file.")
    assert left.endswith(TEMPORARY_MARK)


def test_a_temporary_name_stays_in_the_folder(tmp_path: Path) -> None:
    path = temporary_path(tmp_path / "file")
    assert path.parent == tmp_path
    assert path.name == f".file.{socket.gethostname()}-{os.getpid()}{TEMPORARY_MARK}"


def test_equal_values_give_equal_json_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"x": 1, "y": [2, 3]})
    write_json(tmp_path / "b", {"y": [2, 3], "x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_folder_appears_with_all_its_files(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_text("x")
        assert not (tmp_path / "folder").exists()
    assert (tmp_path / "folder" / "inner" / "file").read_text() == "x"
    assert names(tmp_path) == ["folder"]


def test_a_folder_is_not_left_half_written_and_never_overwritten(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "file").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == []
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileExistsError), atomic_folder(tmp_path / "folder"):
        pass


def test_the_checksum_is_sha256(tmp_path: Path) -> None:
    content = os.urandom((1 << 20) + 17)
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_full_disk_names_the_file_that_was_being_written(tmp_path: Path) -> None:
    """/dev/full fails every write as a full disk does; other files that are open at the time are not blamed."""
    with pytest.raises(OSError, match=r"No space left on device: '.*shard\.tar'"), atomic_write(tmp_path / "other"):
        file = io.BufferedWriter(_NamedFile(tmp_path / "shard.tar", Path("/dev/full")))
        file.write(b"x" * 100_000)
    assert list(tmp_path.iterdir()) == []


def test_an_error_without_a_file_gets_one_and_one_with_a_file_keeps_it(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left on device: 'run/tensorboard'"), named_errors(Path("run/tensorboard")):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space left on device: 'shard'"), named_errors(Path("run/tensorboard")):
        raise OSError(errno.ENOSPC, "No space left on device", "shard")

"""One process at a time in a folder: a lock that falls with the process, however it ends."""

import fcntl
from pathlib import Path
from typing import IO

from mose.errors import MoseError


def lock_folder(folder: Path, advice: str) -> IO[bytes]:
    """Hold the lock of a local folder for as long as the returned file is open; makes the folder.

    Raises:
        MoseError: another process holds it; `advice` says what to do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise MoseError(f"{folder}: another process works in this folder; {advice}") from None
    return file

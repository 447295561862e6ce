"""A lock that admits one process per folder; the kernel releases it when the process ends, even by a kill."""

import fcntl
from pathlib import Path
from typing import IO

from mose.errors import MoseError


def lock_folder(folder: Path, advice: str) -> IO[bytes]:
    """Lock a local folder, made if needed, until the returned file is closed.

    Raises:
        MoseError: another process holds the lock; the message ends with `advice`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise MoseError(f"{folder}: another process works in this folder; {advice}") from None
    return file

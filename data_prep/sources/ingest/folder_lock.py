"""A lock that admits one process per folder, on file systems that many machines share."""

from pathlib import Path

from mose.files.lock import Holder, Lock, lock_file


def lock_folder(folder: Path, expected: str) -> Lock[Holder]:
    """A lock on a folder, made if needed, for a `with` block; see `mose.files.lock`.

    Entering it raises MoseError if another process holds the lock; the message names that process and ends with `expected`.
    """
    return lock_file(folder / "lock", f"{folder}: another process works in this folder", expected)

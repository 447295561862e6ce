"""Paths in a config, local or on an object store, behind one interface."""

from pathlib import Path
from typing import Any, cast

_SCHEME = "://"
_LOCAL_SCHEMES = ("file://", "local://")


def storage_path(text: str) -> Path:
    """A local path as `pathlib.Path`; any fsspec URL (`s3://bucket/folder`, `memory://x`) as an object with the same methods.

    Credentials and endpoints come from the store's own environment variables, e.g. AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL.
    """
    for scheme in _LOCAL_SCHEMES:
        if text.startswith(scheme):
            return Path(text.removeprefix(scheme))
    if _SCHEME not in text:
        return Path(text)
    # Imported late, so that commands without URLs run without the libraries of object stores.
    from upath import UPath

    return cast(Path, UPath(text))


def is_local(path: Path) -> bool:
    """Whether `path` is on a file system of this machine, so that it can be mapped into memory, renamed and flushed."""
    return isinstance(path, Path)


def upload(local: Path, remote: Path) -> None:
    """Copy a local file to a remote path; on an object store it appears complete or not at all."""
    store = cast(Any, remote)
    store.fs.put_file(str(local), store.path)

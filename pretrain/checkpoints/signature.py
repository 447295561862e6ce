"""Signs manifests with a key that only this user has, so that a checkpoint from somebody else is never unpickled by mistake.

The key is made at the first save, in the user's state directory: `$XDG_STATE_HOME/mose/checkpoint.key`, by default
`~/.local/state/mose/checkpoint.key`. A manifest holds the SHA-256 of every file, so its signature covers the whole checkpoint.
"""

import contextlib
import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path
from typing import Any

from mose.errors import MoseError

SIGNATURE = "signature"
KEY_NAME = "checkpoint.key"
_KEY_BYTES = 32


def key_path() -> Path:
    """The file of this user's key; each user has one for all runs."""
    state = os.environ.get("XDG_STATE_HOME") or str(Path("~").expanduser() / ".local" / "state")
    return Path(state) / "mose" / KEY_NAME


def sign(manifest: dict[str, Any]) -> str:
    """The signature of a manifest without its own signature and fingerprint; makes the key if the user has none.

    Raises:
        OSError: the key cannot be read or written.
        MoseError: see `_read_key`.
    """
    path = key_path()
    with contextlib.suppress(FileExistsError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Created under its final name only when it is whole: two runs may save their first checkpoints at the same time.
        temporary = path.with_name(f".{KEY_NAME}.{secrets.token_hex(8)}")
        if not path.exists():
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.write(descriptor, secrets.token_bytes(_KEY_BYTES))
                os.fsync(descriptor)
                os.link(temporary, path)
            finally:
                os.close(descriptor)
                temporary.unlink()
    return _signature(manifest, _read_key(path))


def is_signed_by_user(manifest: dict[str, Any]) -> bool:
    """Whether this user's key made the signature in a manifest; false where there is no key or no signature.

    Raises:
        OSError: the key cannot be read.
        MoseError: see `_read_key`.
    """
    path, found = key_path(), manifest.get(SIGNATURE)
    if not isinstance(found, str) or not path.exists():
        return False
    return hmac.compare_digest(found.encode(), _signature(manifest, _read_key(path)).encode())


def _read_key(path: Path) -> bytes:
    """Raises `MoseError` if others may read or replace the key, or if it is not a whole one."""
    status = path.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise MoseError(f"{path}: owner {status.st_uid}, mode {status.st_mode & 0o777:03o}; expected this user's, with mode 600")
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise MoseError(f"{path}: {len(key)} bytes, expected {_KEY_BYTES}; remove it, and the next save makes a new one")
    return key


def _signature(manifest: dict[str, Any], key: bytes) -> str:
    signed = {name: value for name, value in manifest.items() if name not in (SIGNATURE, "fingerprint")}
    # The same canonical text as the fingerprint's: a manifest that was written and read again gives the same signature.
    return hmac.new(key, json.dumps(signed, sort_keys=True).encode(), hashlib.sha256).hexdigest()

"""Paths that a file names (manifest, marker, index, lineage, tokenizer, weight map): checked to stay inside that file's folder.

Whoever wrote such a file chose the path. Joined unchecked, `../other/train/shard.tar` or a link would let a data set from
elsewhere read, or through `mose-data remove` rewrite, files that it does not own.
"""

from pathlib import Path

from mose.errors import MoseError
from mose.files.storage import is_local

_MOST_CHARACTERS = 4096
_EXPECTED = "expected a relative path without '..'"


def relative_path(text: object, where: str) -> str:
    """`text` unchanged, if it is a relative path in normal form that no folder can be left by, on any system.

    `where` is the file and field that hold it; the message begins with it.

    Raises:
        MoseError: `text` is not a string, empty, absolute, or has an empty, `.` or `..` part, a backslash, a colon in its first
            part (drive or URL) or a control character.
    """
    if not isinstance(text, str):
        raise MoseError(f"{where}: is of type {type(text).__name__}, {_EXPECTED}")
    if not 0 < len(text) <= _MOST_CHARACTERS:
        raise MoseError(f"{where}: has {len(text)} characters, {_EXPECTED} of 1 to {_MOST_CHARACTERS} characters")
    parts = text.split("/")
    is_plain = "\\" not in text and ":" not in parts[0] and text.isprintable()
    if not is_plain or any(part in ("", ".", "..") for part in parts):
        # `!a` also escapes bidirectional and control characters, which must not reach a terminal.
        raise MoseError(f"{where}: {text[:200]!a}, {_EXPECTED}")
    return text


def path_inside(folder: Path, text: object, where: str) -> Path:
    """`folder / text`, if that is a relative path (see `relative_path`) and no symbolic link on it leads out of `folder`.

    `folder` itself may be a link. The target need not exist. Object stores have no links. In a snapshot of the Hugging Face
    cache, which consists of links, they may lead to the `blobs` of the same repository.

    Raises:
        MoseError: the path, or what a link on it points to, lies outside of `folder`.
    """
    path = folder / relative_path(text, where)
    if is_local(folder):
        try:
            target, roots = path.resolve(), [folder.resolve()]
        except (OSError, RuntimeError) as error:
            raise MoseError(f"{where}: {path}: cannot be followed: {error}; expected a path inside {folder}") from None
        if roots[0].parent.name == "snapshots":
            roots.append(roots[0].parents[1] / "blobs")
        if not any(target.is_relative_to(root) for root in roots):
            raise MoseError(f"{where}: {path} is a link to {target}, expected a path inside {folder}")
    return path

"""Reads lists of repositories and blobs, one entry per line: the one reader for opt-out lists, removals and look-ups."""

import difflib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mose.errors import MoseError

_COMMENT = re.compile(r"(^|\s)#.*")
# github.com/owner/name, git@host:owner/name and owner/name.git match no repository, so that an opt-out would be without effect.
_ADDRESS = re.compile(r"^[\w-]+(?:\.[\w-]+)+/[^/]+/|^[\w.-]+@[\w.-]+:|/[^/]+\.git/?$")
# Of CSV, JSON and shell, and of paths.
_PUNCTUATION = re.compile(r"[,'\"]|^/|/$")
# A name with blanks, or one that begins with #, stands in double quotes.
_QUOTED = re.compile(r'\s*"([^"]+)"\s*(#.*)?')
_HEXADECIMAL = re.compile(r"[0-9a-fA-F]+")
_BLOB_ID_DIGITS = 40
# An entry of at least this many hexadecimal digits is a mistyped or other hash (MD5, git SHA-256), not a repository name.
_HASH_DIGITS = 32
# A second repository of one name is listed as NAME#2; an entry NAME includes it, an entry NAME#2 means it alone.
_NUMBER = re.compile(r"#\d+$")
_WILDCARDS = re.compile(r"[*?]")
_NEAR_MATCHES = 3
# Comparing a name with this many others takes about a second.
_MOST_COMPARED = 20_000


@dataclass(frozen=True)
class Entry:
    """One entry of a list, and the line it stands on, from 1."""

    line: int
    text: str
    is_quoted: bool = False
    """Quoted text is a name, whatever characters it holds."""


def read_entries(path: Path) -> list[Entry]:
    """The entries of a list in file order: UTF-8 text with or without byte-order mark, one entry per line.

    Blank lines count for nothing, and so does `#` with what follows at the start of a line or after white space: `NAME#2` is a
    name. A name with blanks stands in double quotes.

    Raises:
        MoseError: the file cannot be read or is not UTF-8; the message names file and line.
    """
    expected = "expected a list of repository names or blob ids, one per line"
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise MoseError(f"{path}: cannot be read: {error.strerror or error}; {expected}") from None
    except UnicodeDecodeError as error:
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise MoseError(f"{path}: not a readable text file: it is UTF-16, expected UTF-8") from None
        number = content.count(b"\n", 0, error.start) + 1
        raise MoseError(
            f"{path}: line {number}: is not UTF-8; expected a repository name or a blob id of {_BLOB_ID_DIGITS} digits"
        ) from None
    entries = []
    for number, line in enumerate(text.split("\n"), start=1):
        if quoted := _QUOTED.fullmatch(line.strip()):
            entries.append(Entry(number, quoted[1], is_quoted=True))
        elif entry := _COMMENT.sub("", line).strip():
            entries.append(Entry(number, entry))
    return entries


def check_entry(path: str, entry: Entry) -> None:
    """Check that an entry is a repository name or a blob id.

    Raises:
        MoseError: it is neither; the message names file and line.
    """
    text, wrong = entry.text, ""
    if entry.is_quoted:
        return
    if "://" in text or _ADDRESS.search(text):
        wrong = "is a URL or an address, not owner/name"
    elif not text.isprintable() and not any(character.isspace() for character in text):
        wrong = "holds characters that cannot be seen"
    elif _PUNCTUATION.search(text):
        wrong = "holds punctuation of another format (a name with such characters stands in double quotes)"
    elif any(character.isspace() for character in text):
        wrong = "holds more than one word (a name with blanks stands in double quotes)"
    elif _HEXADECIMAL.fullmatch(text) and len(text) >= _HASH_DIGITS and not is_blob_id(text):
        wrong = f"is a hash of {len(text)} digits"
    if wrong:
        raise MoseError(
            f"{path}: line {entry.line}: {text!r:.80} {wrong}; "
            f"expected a repository name or a blob id of {_BLOB_ID_DIGITS} digits"
        )


def is_blob_id(text: str) -> bool:
    """Whether a text is the SHA-1 of a blob."""
    return len(text) == _BLOB_ID_DIGITS and _HEXADECIMAL.fullmatch(text) is not None


def name_key(name: str) -> str:
    """What two spellings of one repository name share: code hosts ignore case, and macOS decomposes accents."""
    return unicodedata.normalize("NFC", name.casefold())


@dataclass(frozen=True)
class NameList:
    """Names of repositories to match: exact ones in any case, and patterns with `*` and `?`; about 150 bytes per entry."""

    keys: frozenset[str] = frozenset()
    patterns: tuple[re.Pattern[str], ...] = field(default=(), compare=False)

    @staticmethod
    def of(names: Iterable[str]) -> "NameList":
        """The list of these names and patterns."""
        keys = frozenset(map(name_key, names))
        return NameList(keys, tuple(_pattern(key) for key in sorted(keys) if _WILDCARDS.search(key)))

    def __contains__(self, name: str) -> bool:
        if not self.keys:
            return False
        key = name_key(name)
        base = _NUMBER.sub("", key)
        return key in self.keys or base in self.keys or any(p.fullmatch(key) or p.fullmatch(base) for p in self.patterns)


def _pattern(key: str) -> re.Pattern[str]:
    parts = {"*": ".*", "?": "."}
    return re.compile("".join(parts.get(character, re.escape(character)) for character in key), re.DOTALL)


def unmatched(entries: Iterable[str], names: Iterable[str]) -> list[str]:
    """The entries that match none of `names`, in their order."""
    keys = {name_key(name) for name in names}
    keys |= {_NUMBER.sub("", key) for key in keys}
    return [
        entry
        for entry in entries
        if name_key(entry) not in keys and not (_WILDCARDS.search(entry) and any(map(_pattern(name_key(entry)).fullmatch, keys)))
    ]


def near_matches(entry: str, names: Iterable[str]) -> list[str]:
    """Up to three of `names` that resemble an entry, the most similar first."""
    own = {name_key(name): name for name in names}
    key = name_key(entry)
    last = key.rpartition("/")[2]
    # Of very many names only those that share the project's name or the beginning are compared.
    compared = list(own) if len(own) <= _MOST_COMPARED else [name for name in own if last in name or name[:3] == key[:3]]
    found = difflib.get_close_matches(key, compared[:_MOST_COMPARED], n=_NEAR_MATCHES, cutoff=0.6)
    # NAME for NAME#2, and a project for one of the same name, are nearer than any spelling.
    first = [base for base in (_NUMBER.sub("", key), last) if base in own]
    return [own[name] for name in dict.fromkeys([*first, *found])][:_NEAR_MATCHES]

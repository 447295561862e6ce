"""Reads `linguist.json`, the published rules of GitHub Linguist, which `refresh.py` wrote."""

import functools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SPACES = r" \t\n\r\f\v"
RULES = Path(__file__).with_name("linguist.json")


@dataclass(frozen=True)
class PathRules:
    """Patterns of paths, each with a text that its matches hold: searching a text costs a hundredth of a pattern."""

    patterns: tuple[tuple[str, re.Pattern[str]], ...]

    def match(self, path: str) -> bool:
        """Whether a pattern matches a path without leading `/`."""
        # RE2 sees bytes, where `\w` and `\s` are ASCII; a line feed may follow what `$` matches here.
        if not (path.isascii() and path.isprintable()):
            return any(literal in path and pattern.search(path) for literal, pattern in self.patterns)
        together, others = self._by_engine
        if together is not None and together.search(path.encode("ascii")):
            return True
        return any(literal in path and pattern.search(path) for literal, pattern in others)

    @functools.cached_property
    def _by_engine(self) -> tuple[Any, tuple[tuple[str, re.Pattern[str]], ...]]:
        """One pattern of RE2 for all that RE2 takes, because it does not grow slower with their number, and the others."""
        taken = [pattern.pattern for _, pattern in self.patterns if linear_pattern([pattern.pattern]) is not None]
        together = linear_pattern(taken) if taken else None
        left = self.patterns if together is None else [entry for entry in self.patterns if entry[1].pattern not in set(taken)]
        return together, tuple(left)


@dataclass(frozen=True)
class Rules:
    """Linguist's rules, indexed for look-ups. Languages stand in the order of `languages.yml`."""

    version: str
    by_extension: dict[str, list[str]]
    by_filename: dict[str, list[str]]
    by_interpreter: dict[str, list[str]]
    by_alias: dict[str, str]
    """In lower case."""
    primary: dict[str, str]
    """The first extension of a language."""
    types: dict[str, str]
    """`programming`, `data`, `markup` or `prose`."""
    heuristics: dict[str, list[dict[str, Any]]]
    """The rules that choose among the languages of an extension."""
    generic: frozenset[str]
    """Extensions that say too little to name a language without its heuristics."""
    popular: frozenset[str]
    vendored: PathRules
    documentation: PathRules


@functools.cache
def load_rules() -> Rules:
    """The rules; read once per process, in about 15 ms."""
    plain = json.loads(RULES.read_text("utf-8"))
    languages: dict[str, dict[str, Any]] = plain["languages"]
    indexes: dict[str, dict[str, list[str]]] = {"extensions": {}, "filenames": {}, "interpreters": {}}
    for name, facts in languages.items():
        for field, index in indexes.items():
            for value in facts.get(field, ()):
                index.setdefault(value.lower() if field == "extensions" else value, []).append(name)
    return Rules(
        version=plain["version"],
        by_extension=indexes["extensions"],
        by_filename=indexes["filenames"],
        by_interpreter=indexes["interpreters"],
        by_alias={
            alias.lower(): name
            for name, facts in languages.items()
            for alias in (*facts.get("aliases", ()), re.sub(r"\s", "-", name), name)
        },
        primary={name: facts["extensions"][0] for name, facts in languages.items() if facts.get("extensions")},
        types={name: facts["type"] for name, facts in languages.items()},
        heuristics={extension: block["rules"] for block in plain["heuristics"] for extension in block["extensions"]},
        generic=frozenset(plain["generic"]),
        popular=frozenset(plain["popular"]),
        vendored=_path_rules(plain["vendored"]),
        documentation=_path_rules(plain["documentation"]),
    )


@functools.cache
def bytes_pattern(text: str) -> re.Pattern[bytes]:
    """A pattern of contents, compiled when a file first needs it; there are some hundreds."""
    return re.compile(text.encode("utf-8"), re.MULTILINE)


@functools.cache
def contents_pattern(texts: tuple[str, ...]) -> Any:
    """What searches contents for any of some patterns: RE2 in one pass, or Python's `re` where a pattern looks around.

    RE2 takes a tenth of the time, because it neither backtracks nor tries one alternative after the other.
    """
    joined = linear_pattern(texts, "(?m)")
    return joined if joined is not None else _Any([bytes_pattern(text) for text in texts])


class _Any:
    """Several patterns with the `search` of one."""

    def __init__(self, patterns: Sequence[re.Pattern[bytes]]):
        self._patterns = patterns

    def search(self, content: bytes) -> re.Match[bytes] | None:
        """The first match of the first pattern that has one."""
        return next((match for pattern in self._patterns if (match := pattern.search(content))), None)


def linear_pattern(texts: Iterable[str], flags: str = "") -> Any:
    """One pattern of RE2 that matches bytes where one of these patterns of Python's `re` does; None where RE2 lacks a part."""
    # Imported late: only packing needs it.
    import re2

    options = re2.Options()
    options.encoding, options.log_errors, options.never_capture = re2.Options.Encoding.LATIN1, False, True
    translated = [_with_vertical_tabs(text) for text in texts]
    if not all(translated):
        return None
    try:
        return re2.compile((flags + "|".join(f"(?:{text})" for text in translated)).encode("utf-8"), options)
    except re2.error:
        return None


def _with_vertical_tabs(text: str) -> str:
    """The same pattern for RE2, whose `\\s` lacks the vertical tab; empty where that cannot be written, or is read otherwise."""
    parts, inside = [], False
    # `{,n}` and classes such as [:alpha:] mean other things in the two.
    if "{," in text or "[:" in text:
        return ""
    for part in re.findall(r"\\.|[^\\]", text, re.DOTALL):
        if part == r"\S" and inside:
            return ""
        parts.append({r"\s": _SPACES if inside else f"[{_SPACES}]", r"\S": f"[^{_SPACES}]"}.get(part, part))
        inside = (inside and part != "]") or part == "["
    return "".join(parts)


def _path_rules(entries: list[list[str]]) -> PathRules:
    return PathRules(tuple((literal, re.compile(pattern)) for literal, pattern in entries))

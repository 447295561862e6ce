"""Reads `linguist.json`, the published rules of GitHub Linguist, which `refresh.py` wrote."""

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RULES = Path(__file__).with_name("linguist.json")


@dataclass(frozen=True)
class PathRules:
    """Patterns of paths, each with a text that its matches hold: searching a text costs a hundredth of a pattern."""

    patterns: tuple[tuple[str, re.Pattern[str]], ...]

    def match(self, path: str) -> bool:
        """Whether a pattern matches a path without leading `/`."""
        return any(literal in path and pattern.search(path) for literal, pattern in self.patterns)


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


def _path_rules(entries: list[list[str]]) -> PathRules:
    return PathRules(tuple((literal, re.compile(pattern)) for literal, pattern in entries))

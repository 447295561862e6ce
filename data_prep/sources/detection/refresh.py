"""Writes `linguist.json`, the published rules of GitHub Linguist, from a checkout of it.

    python -m data_prep.sources.detection.refresh LINGUIST

Linguist (MIT, see `linguist.LICENSE`) keeps its rules as YAML with Ruby regular expressions. They are translated here once,
because parsing 10,000 lines of YAML takes seconds, and each worker process would pay for it.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from data_prep.sources.detection.rules import RULES
from mose.files.atomic_file import write_text

LANGUAGE_FIELDS = ("type", "extensions", "filenames", "interpreters", "aliases")
# Texts that a path must hold for a pattern of these rules to match; the first 3 characters or more of a run without operators.
_LITERAL = re.compile(r"(?:[A-Za-z0-9_~/-]|\\[./_-])+")


def python_pattern(ruby: str) -> str:
    """A Ruby regular expression in Python's syntax, for MULTILINE: in Ruby, `(?m)` is what DOTALL is here."""
    text = ruby.replace(r"\h", "[0-9a-fA-F]").replace(r"\z", r"\Z").replace("[[:alpha:]]", "[A-Za-z]").replace("(?<", "(?P<")
    text = text.replace("(?P<=", "(?<=").replace("(?P<!", "(?<!")
    # Possessive quantifiers need Python 3.11; greedy ones match the same, only slower where they fail.
    text = re.sub(r"(?<!\\)([*+?}])\+", r"\1", text)
    text = text.replace("(?-m)", "").replace(r"[\s&&[^\r\n]]", r"[ \t\f\v]").replace("[[", r"[\[")
    # A flag in the middle holds for the rest; Python wants a group around that.
    flag = re.search(r"\(\?([imx]+)\)", text)
    if flag:
        text = f"{text[: flag.start()]}(?{flag[1].replace('m', 's')}:{text[flag.end() :]})"
    # A call of a group, which Python lacks, is the group itself.
    while call := re.search(r"\\g<(\w+)>", text):
        text = text.replace(call[0], "(?:" + _group(text, f"(?P<{call[1]}>") + ")")
    return text


def _group(text: str, opening: str) -> str:
    """The inside of the group that begins with `opening`."""
    start = end = text.index(opening) + len(opening)
    depth = 1
    while depth:
        skipped = text[end] == "\\"
        depth += 0 if skipped else {"(": 1, ")": -1}.get(text[end], 0)
        end += 2 if skipped else 1
    return text[start : end - 1]


def literal_of(pattern: str) -> str:
    """The longest text that each match of a pattern of paths holds; empty if there is none that is certain."""
    if "|" in re.sub(r"\([^()]*\)", "", re.sub(r"\[[^\]]*\]", "", pattern)):
        return ""
    # Groups and classes are optional or alternatives; a quantifier makes the character before it optional.
    plain = re.sub(r"\[[^\]]*\][*+?]?", "\0", pattern)
    while "(" in plain.replace(r"\(", ""):
        shorter = re.sub(r"\((?:[^()\\]|\\.)*\)(?:[*+?]|\{\d+\})?", "\0", plain)
        if shorter == plain:
            return ""
        plain = shorter
    plain = re.sub(r"(?:[^\\]|\\.)[*?]", "\0", plain)
    runs = [run.replace("\\", "") for run in _LITERAL.findall(re.sub(r"\\[dwsS][*+?]?", "\0", plain))]
    return max(runs, key=len, default="")


def _checks(rule: dict[str, Any], named: dict[str, Any]) -> list[list[Any]]:
    """`[must match, patterns]` of a heuristic rule: all checks have to hold, and a check holds if one of its patterns matches."""
    if "and" in rule:
        return [check for part in rule["and"] for check in _checks(part, named)]
    for key, must_match in (("pattern", True), ("negative_pattern", False), ("named_pattern", True)):
        if key in rule:
            value = named[rule[key]] if key == "named_pattern" else rule[key]
            return [[must_match, list(map(python_pattern, value if isinstance(value, list) else [value]))]]
    return []


def linguist_rules(folder: Path) -> dict[str, Any]:
    """The rules of a checkout as plain values."""

    def load(name: str) -> Any:
        return yaml.safe_load((folder / "lib" / "linguist" / f"{name}.yml").read_text("utf-8"))

    heuristics = load("heuristics")
    named = heuristics["named_patterns"]
    return {
        "version": (folder / "lib" / "linguist" / "VERSION").read_text("utf-8").strip(),
        "languages": {
            name: {field: facts[field] for field in LANGUAGE_FIELDS if field in facts}
            for name, facts in load("languages").items()
        },
        "heuristics": [
            {
                "extensions": [suffix.lower() for suffix in block["extensions"]],
                "rules": [
                    {
                        "languages": rule["language"] if isinstance(rule["language"], list) else [rule["language"]],
                        "checks": _checks(rule, named),
                    }
                    for rule in block["rules"]
                ],
            }
            for block in heuristics["disambiguations"]
        ],
        "vendored": [[literal_of(pattern), python_pattern(pattern)] for pattern in load("vendor")],
        "documentation": [[literal_of(pattern), python_pattern(pattern)] for pattern in load("documentation")],
        "generic": load("generic")["extensions"],
        "popular": load("popular"),
    }


if __name__ == "__main__":
    write_text(RULES, json.dumps(linguist_rules(Path(sys.argv[1])), indent=0, ensure_ascii=False) + "\n")

"""The language of a file by GitHub Linguist's strategies, from the surest (a modeline) to the least sure (its content).

Linguist's last strategy, a Bayesian classifier trained on its samples, is left out: it would need megabytes of token counts for
the few files whose extension and heuristics leave several languages. There the popular language, or the one whose first extension
it is, is taken.
"""

import functools
import re

from data_prep.sources.detection.rules import Rules, contents_pattern, load_rules

UNKNOWN_LANGUAGE = "Unknown"
# Linguist looks at so many bytes of a file, and at so many lines at its beginning and end.
_HEURISTIC_BYTES = 50 * 1024
_MODELINE_LINES = 5
_LINES_BYTES = 4096

# What is usually meant where the extension is all there is; Linguist's classifier mostly says the same.
_USUAL = {".cfg": "INI", ".spec": "RPM Spec"}

# Shorter forms of the modelines that editors accept; what they name has to be an alias of a language.
_EMACS_MODE = re.compile(
    rb"-\*-(?:[ \t]*(?=[^:;\s]+[ \t]*-\*-)|(?:.*?[ \t;]|(?<=-\*-))[ \t]*mode[ \t]*:[ \t]*)([^:;\s]+?)(?=[ \t;]|-\*-)", re.I
)
_VIM_MODE = re.compile(
    rb"(?:(?:^|[ \t])(?:vi|Vi(?=m))(?:m[<=>]?[0-9]+|m)?|[ \t]ex)(?=:(?=[ \t]*set?[ \t][^\r\n:]+:)|:(?![ \t]*set?[ \t]))"
    rb"[^\r\n]*?[ \t:](?:filetype|ft|syntax)[ \t]*=(\w+)(?=$|\s|:)",
    re.M,
)
_MANUAL_PAGE = re.compile(r"\.(?:[1-9](?![0-9])[a-z_0-9]*|0p|n|man|mdoc)(?:\.in)?$", re.I)
_SHEBANG = re.compile(rb"#!\s*(\S+)([^\n]*)")
_ENV_OPTIONS = re.compile(rb"\s*(?:(?:-[i0uCSv]*|--\S+|\S+=\S+)\s+)*(\S+)")
_EXEC = re.compile(rb"exec (\w+)[\s\"']+\$0[\s\"']+\$@")


def language_of(path: str, content: bytes) -> str:
    """The name of the language in Linguist's spelling; `Unknown` where no rule knows it."""
    rules = load_rules()
    name = path.rpartition("/")[2]
    found: list[str] = []
    for candidates in (
        _by_modeline(content, rules),
        rules.by_filename.get(name, []),
        _by_shebang(content, rules),
        _by_extension(name, rules),
    ):
        found = _narrowed(found, candidates)
        if len(found) == 1:
            return found[0]
    if not found and b"xml version=" in b"\n".join(content[:_LINES_BYTES].split(b"\n", 2)[:2]):
        return "XML"
    if not found and _MANUAL_PAGE.search(name):
        found = ["Roff Manpage", "Roff"]
    chosen = _by_heuristics(name, content[:_HEURISTIC_BYTES], rules)
    if len(chosen) == 1:
        return chosen[0]
    return _likeliest(chosen or found, name, rules)


def _narrowed(found: list[str], candidates: list[str]) -> list[str]:
    """What two strategies agree on; the other one alone where they share nothing or one is silent."""
    if not found or not candidates:
        return found or candidates
    return [name for name in found if name in candidates] or found


def _by_modeline(content: bytes, rules: Rules) -> list[str]:
    first = _first_lines(content)
    lines = first + b"\n" + _last_lines(content)
    # One of these stands in every modeline; the patterns cost ten times as much, and so would a loop over the texts.
    if not (b"-*-" in lines or b"vi:" in lines or b"vim" in lines or b"Vim" in lines or b"ex:" in lines):
        return []
    if b"UseVimball" in first:
        return []
    for pattern in (_EMACS_MODE, _VIM_MODE):
        if mode := pattern.search(lines):
            name = rules.by_alias.get(mode[1].decode("latin-1").lower())
            return [name] if name else []
    return []


def _first_lines(content: bytes) -> bytes:
    end, limit = -1, min(len(content), _LINES_BYTES)
    for _ in range(_MODELINE_LINES):
        end = content.find(b"\n", end + 1, limit)
        if end < 0:
            return content[:limit]
    return content[:end]


def _last_lines(content: bytes) -> bytes:
    start, limit = len(content), max(0, len(content) - _LINES_BYTES)
    for _ in range(_MODELINE_LINES):
        start = content.rfind(b"\n", limit, start)
        if start < 0:
            return content[limit:]
    return content[start + 1 :]


def _by_shebang(content: bytes, rules: Rules) -> list[str]:
    line = _SHEBANG.match(content[:_LINES_BYTES]) if content.startswith(b"#!") else None
    if line is None:
        return []
    script = line[1].rpartition(b"/")[2]
    if script == b"env":
        options = _ENV_OPTIONS.match(line[2])
        script = options[1] if options else b""
    script = re.sub(rb"\.\d+$", b"", script.rpartition(b"/")[2])
    if script == b"sh" and (other := _EXEC.search(b"\n".join(content[:_LINES_BYTES].split(b"\n", 5)[:5]))):
        script = other[1]
    return rules.by_interpreter.get(script.decode("latin-1"), [])


def _by_extension(name: str, rules: Rules) -> list[str]:
    if any(extension in rules.generic for extension in _extensions(name)[-1:]):
        return []
    return next((rules.by_extension[part] for part in _extensions(name) if part in rules.by_extension), [])


def _extensions(name: str) -> list[str]:
    """`.tar.gz` and `.gz` of `a.tar.gz`."""
    _, dot, rest = name.lower().partition(".")
    return _parts_of(rest) if dot else []


@functools.lru_cache(maxsize=1 << 12)
def _parts_of(rest: str) -> list[str]:
    # Cached, because a repository has few endings.
    parts = rest.split(".")
    return ["." + ".".join(parts[place:]) for place in range(len(parts))]


def _by_heuristics(name: str, content: bytes, rules: Rules) -> list[str]:
    for extension in _extensions(name):
        for rule in rules.heuristics.get(extension, ()):
            if all(bool(contents_pattern(tuple(texts)).search(content)) == must for must, texts in rule["checks"]):
                languages: list[str] = rule["languages"]
                return languages
        if extension in rules.heuristics:
            return []
    return []


def _likeliest(candidates: list[str], name: str, rules: Rules) -> str:
    extensions = _extensions(name)
    usual = {_USUAL.get(extension) for extension in extensions}

    def rank(language: str) -> tuple[bool, bool, bool]:
        return language not in usual, language not in rules.popular, rules.primary.get(language) not in extensions

    return min(candidates, key=rank, default=UNKNOWN_LANGUAGE)

"""Reads YAML that anybody may have written, and checks config files before a parser expands them.

A file of a few hundred bytes may stand for billions of values (each alias repeats its anchor, and anchors may hold aliases), and
libraries expand it without a limit.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from mose.errors import MoseError

LARGEST_BYTES = 1_000_000
MOST_VALUES = 50_000
DEEPEST = 50
MOST_DIGITS = 1000
_DIGITS = re.compile(r"[-+0-9_:.]+")
_BEGIN = (yaml.MappingStartEvent, yaml.SequenceStartEvent)
_END = (yaml.MappingEndEvent, yaml.SequenceEndEvent)
# The parser of libyaml is 10 times as fast; it is missing where PyYAML was built without it.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_yaml(path: Path) -> str:
    """The text of a YAML file that is safe to parse: bounded in bytes, depth, and values after its aliases are expanded.

    Raises:
        MoseError: it is not, or it is not UTF-8 or not YAML.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(LARGEST_BYTES + 1)
    if len(content) > LARGEST_BYTES:
        raise MoseError(f"{path}: more than {LARGEST_BYTES:,} bytes, expected a config of at most that")
    try:
        text = content.decode("utf-8")
        _check_size(path, text)
    except UnicodeDecodeError as error:
        raise MoseError(f"{path}: byte {error.start} is not UTF-8") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise MoseError(f"{path}: not readable YAML: {' '.join(str(error).split())}") from None
    return text


def read_yaml(path: Path) -> Any:
    """The value of a YAML file; errors as in `check_yaml`."""
    text = check_yaml(path)
    try:
        return yaml.load(text, Loader=_LOADER)
    # Tags of plain types fail with whatever Python raises, such as a 13th month in a timestamp.
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, KeyError, OverflowError, AttributeError) as error:
        raise MoseError(f"{path}: not readable YAML: {' '.join(str(error).split())}") from None


def _check_size(path: Path, text: str) -> None:
    """Count values over the events of the parser, which expands nothing; an alias counts as much as its anchor holds."""
    sizes: dict[str, int] = {}
    # Of each open collection: its anchor and the number of values before it.
    opened: list[tuple[str | None, int]] = []
    total = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in opened):
                raise MoseError(f"{path}: alias *{event.anchor} is inside its own anchor")
            total += sizes.get(str(event.anchor), 1)
        elif isinstance(event, _BEGIN):
            opened.append((event.anchor, total))
            total += 1
        elif isinstance(event, _END):
            anchor, before = opened.pop()
            if anchor is not None:
                sizes[anchor] = total - before
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if len(event.value) > MOST_DIGITS and _DIGITS.fullmatch(event.value):
                raise MoseError(f"{path}: a number of {len(event.value):,} digits, expected at most {MOST_DIGITS:,}")
        if total > MOST_VALUES or len(opened) > DEEPEST:
            limit = f"{MOST_VALUES:,} values" if total > MOST_VALUES else f"{DEEPEST} levels"
            raise MoseError(f"{path}: more than {limit}, aliases expanded; expected a config of at most that")

"""Reads JSON that anybody may have written: every fault is a ValueError, and no input recurses, hangs or fills the memory.

Files of JSON lines are read here, too; their faults are a MoseError that names the line.
"""

import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mose.errors import MoseError

JSON_LINES = (".jsonl", ".jsonl.gz")
# A manifest of 30,000 shards has 20 MB, a tokenizer of 50,000 tokens 4 MB.
LARGEST_BYTES = 100_000_000
DEEPEST = 100
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(content: bytes, half_pairs: bool = False) -> Any:
    """The value of a JSON text in UTF-8; with `half_pairs`, its strings may hold half of a surrogate pair, as texts of others do.

    Raises:
        ValueError: it is not UTF-8 or not JSON, is too long or nested too deeply, or holds NaN, an infinite number or half of a
            surrogate pair, none of which JSON can represent. The message is one line.
    """
    if len(content) > LARGEST_BYTES:
        raise ValueError(f"{len(content):,} bytes, expected at most {LARGEST_BYTES:,}")
    try:
        value = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError(f"nested more than {DEEPEST} deep") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except ValueError as error:
        # Python's own message on a number of 5,000 digits names a setting of the interpreter.
        raise ValueError("a number of too many digits" if "digits" in str(error) else str(error)) from None
    _check(value)
    # Half a pair can be neither printed nor used as a file's name. JSON without such an escape needs no second pass.
    if not half_pairs and _SURROGATE.search(content):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("half of a surrogate pair in a string") from None
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _check(value: Any) -> None:
    """Check depth and numbers level by level: a recursive walk would itself run out of stack."""
    level = [value]
    for _ in range(DEEPEST):
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                deeper += item.values()
            elif isinstance(item, list):
                deeper += item
            elif isinstance(item, float) and not math.isfinite(item):
                raise ValueError("a number is too large for a float")
        if not deeper:
            return
        level = deeper
    raise ValueError(f"nested more than {DEEPEST} deep")


def json_lines(path: Path, fields: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line of a file of JSON lines (.gz: compressed), with the words that name it in an error; a missing field is None.

    Raises:
        MoseError: the file cannot be read, or a line is not a JSON object; the message names `fields`.
    """
    opened = gzip.open if path.name.endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}: line {number}"
                yield where, dict.fromkeys(fields) | _object(line, where, fields)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise MoseError(f"{path}: not a readable file of JSON lines: {error}") from None


def _object(line: str, where: str, fields: Sequence[str]) -> dict[str, Any]:
    try:
        row = parse_json(line.encode("utf-8"), half_pairs=True)
    except ValueError as error:
        raise MoseError(f"{where}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise MoseError(f"{where}: not a JSON object, expected one with {', '.join(fields)}")
    return row

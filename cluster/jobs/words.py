"""Text for bash: any name on one line, without an effect on the shell or on the terminal that shows the script."""

import os
import re
import shlex
from collections.abc import Iterable, Sequence


def quoted(word: str) -> str:
    """`word` for bash, on one line and without control characters, which would act on the terminal that shows the script."""
    if not re.search(r"[^ -~]", word):
        return shlex.quote(word)
    # Octal, because \xHH would take further hexadecimal digits of the text in some shells; bytes do not depend on the locale.
    plain = {ord("'"): "\\'", ord("\\"): "\\\\"}
    safe = [plain.get(byte, chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}") for byte in os.fsencode(word)]
    return f"$'{''.join(safe)}'"


def joined(words: Iterable[str]) -> str:
    """Words of a command line, each quoted."""
    return " ".join(map(quoted, words))


def lines_of(words: Sequence[str], indent: str = "    ", width: int = 100) -> str:
    """A long command line over several lines, as a person would write it; an option keeps its value beside it."""
    lines, line = [], ""
    for word in map(quoted, words):
        joins_option = line.rpartition(" ")[2].startswith("--") and not word.startswith("-")
        if line and len(line) + len(word) > width and not joins_option:
            lines.append(line)
            line = ""
        line = f"{line} {word}" if line else word
    return f" \\\n{indent}".join([*lines, line])

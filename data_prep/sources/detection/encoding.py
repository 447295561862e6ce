"""The encoding of a text, the line ends of old Macintoshes, and notebooks without the outputs of their cells."""

import codecs
import json
import re

UTF8 = "UTF-8"
# The longest first: the mark of UTF-32 little-endian begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What source code is written in outside UTF-8, as far as charset-normalizer tells them apart. Fewer candidates are surer guesses.
_CANDIDATES = ["gb18030", "big5", "cp932", "euc_jp", "cp949", "koi8_r", "cp1251", "cp1250", "cp1252"]
_SAMPLE_BYTES = 1 << 14
_WIDE_BYTES = 1 << 10
_CONTROLS = bytes(set(range(32)) - {8, 9, 10, 11, 12, 13, 27})
_HIGH_BYTES = re.compile(rb"[\x80-\xff]+")
_WESTERN_RUN = 1.2
_LFS = b"version https://git-lfs.github.com/spec/v1\n"
_LONGEST_POINTER = 1024


def encoding_of(content: bytes) -> str:
    """The name of an encoding in which `content` is text, as Python knows it; `UTF-8` also for what seems to be no text."""
    for mark, name in _MARKS:
        if content.startswith(mark):
            return name
    if content.isascii():
        return _wide(content) if b"\0" in content[:_WIDE_BYTES] else UTF8
    try:
        content.decode("utf-8")
        return UTF8
    except UnicodeDecodeError:
        pass
    head = content[:_WIDE_BYTES]
    if b"\0" in content or len(head) - len(head.translate(None, _CONTROLS)) > 0.02 * len(head):
        return _wide(content) if b"\0" in head else UTF8
    return _guessed(content)


def _wide(content: bytes) -> str:
    """UTF-16 without a byte-order mark: each ASCII character has a zero byte, always at the same side, and there is some code."""
    head = content[:_WIDE_BYTES]
    even, odd = head[::2].count(0), head[1::2].count(0)
    name = "utf-16-le" if odd > even else "utf-16-be"
    if min(even, odd) or max(even, odd) < 0.1 * len(head) or not _decodes(content, name):
        return UTF8
    return UTF8 if any(ord(char) < 32 and char not in "\t\n\r\f" for char in content[:_WIDE_BYTES].decode(name)) else name


def _guessed(content: bytes) -> str:
    runs = _HIGH_BYTES.findall(content)
    # Letters of western Europe stand alone among ASCII; other scripts have words, and East Asian encodings pairs of bytes.
    if sum(map(len, runs)) <= _WESTERN_RUN * len(runs):
        return "cp1252" if _decodes(content, "cp1252") else "latin-1"
    # Imported late: only the few files outside UTF-8 need it, and it costs every command's start.
    from charset_normalizer import from_bytes

    # Lines outside ASCII say most; the sample ends at a line end so that no character is cut.
    lines = [line for line in content.splitlines(keepends=True) if not line.isascii()]
    sample = b"".join(lines)[:_SAMPLE_BYTES]
    sample = sample[: sample.rfind(b"\n") + 1] or sample
    for match in from_bytes(sample, cp_isolation=_CANDIDATES, enable_fallback=False):
        if _decodes(content, match.encoding):
            return match.encoding
    # Every byte is a character of Latin-1, so this holds for a text of which nothing surer is known.
    return "latin-1" if _decodes(content, "latin-1") and not any(0x80 <= byte < 0xA0 for byte in sample) else UTF8


def _decodes(content: bytes, encoding: str) -> bool:
    try:
        content.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        return False
    return True


def with_line_feeds(content: bytes, encoding: str) -> bytes:
    """A text whose lines end with carriage returns alone, with line feeds instead; any other text as it is.

    The number of bytes stays, so lineage counts the same. In UTF-16 these are not single bytes, and no file has been seen.
    """
    if b"\r" not in content or b"\n" in content or encoding.lower().startswith("utf-16"):
        return content
    return content.replace(b"\r", b"\n")


def without_outputs(notebook: bytes) -> bytes:
    """A Jupyter notebook without outputs and execution counts; unchanged if it is no such JSON.

    Outputs are images in base64 and tables of numbers, often a hundred times the code.
    """
    try:
        plain = json.loads(notebook)
        cells = plain["cells"] if "cells" in plain else [cell for sheet in plain["worksheets"] for cell in sheet["cells"]]
        for cell in cells:
            if "outputs" in cell:
                cell["outputs"] = []
            cell.pop("attachments", None)
            for counter in ("execution_count", "prompt_number"):
                if counter in cell:
                    cell[counter] = None
        return json.dumps(plain, indent=1, ensure_ascii=False).encode("utf-8")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return notebook


def is_lfs_pointer(content: bytes) -> bool:
    """Whether this is the text that Git LFS puts in the place of a large file."""
    return len(content) < _LONGEST_POINTER and content.startswith(_LFS)

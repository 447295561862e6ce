"""Which files become training text: small named filters, each drop counted under the filter's name."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import translate
from typing import Any

import numpy as np

from data_prep.filters.dropped_log import DroppedLog
from data_prep.filters.opt_out import load_opt_out
from data_prep.sources.repositories import READ_LIMIT_BYTES, SourceFile, TextFile, is_utf8
from mose.config import require

KEPT = "kept"
UNDECODABLE = "undecodable"
DUPLICATE = "duplicate_in_repository"

# Bytes that text does not hold: control characters but \b \t \n \v \f \r and escape (terminal colours).
_CONTROL = bytes(set(range(32)) - {8, 9, 10, 11, 12, 13, 27})
_MAX_CONTROL_SHARE = 0.02
# Control characters are counted in the first bytes only, as git and grep do; a NUL byte is looked for everywhere.
_CONTROL_BYTES = 1 << 10
_ALPHANUMERIC = bytes(byte >= 128 or chr(byte).isalnum() for byte in range(256))
# UTF-16 and UTF-32 hold NUL bytes in ordinary text.
_WIDE_ENCODINGS = ("utf-16", "utf16", "utf_16", "utf-32", "utf32", "utf_32")


@dataclass(frozen=True)
class FiltersConfig:
    """What a file must be to become training text. The default limits drop few bytes: only what is clearly not source code."""

    licence_types: tuple[str, ...] = ("permissive", "no_license", "unknown")
    """Licence types that are kept. The Stack v2's training set holds permissive and no_license; folders, git checkouts and
    most packages name no licence: they are unknown."""
    allowed_licences: tuple[str, ...] = ()
    """SPDX ids, or patterns such as BSD-*, of detected licences that are kept; empty means any. A file is dropped when one of
    its licences is not listed; a file that names no licence is decided by licence_types."""
    denied_licences: tuple[str, ...] = ()
    """SPDX ids or patterns, e.g. [GPL-*, AGPL-*]: a file is dropped when one of its detected licences is listed."""
    opt_out: tuple[str, ...] = ()
    """Text files (paths or URLs) with one repository name or 40-digit blob id per line, # for comments: all files of such a
    repository, and such blobs in any repository, are dropped."""
    max_bytes: int = 1 << 20
    """Drop files larger than this."""
    max_line_length: int = 100_000
    """Drop files with a line of more characters than this: data or minified code."""
    max_mean_line_length: int = 1_000
    """Drop files whose lines have more characters than this on average. The Stack v2 takes 100, but for data and markup."""
    min_alphanumeric_share: float = 0.25
    """Drop files in which fewer bytes than this are letters, digits or outside ASCII."""
    drop_vendored: bool = True
    """Drop copies of other projects (vendor, third_party, node_modules, ...)."""
    drop_generated: bool = True
    """Drop files that say a program wrote them."""
    drop_duplicates: bool = True
    """Drop a file whose bytes another file of the same repository has; the first by path stays."""

    def __post_init__(self) -> None:
        require(bool(self.licence_types), "licence_types: is empty, expected at least one of permissive, no_license, unknown")
        for name in ("allowed_licences", "denied_licences", "opt_out"):
            require(all(map(str.strip, getattr(self, name))), f"{name}: holds an empty text, expected none")
        require(
            0 < self.max_bytes <= READ_LIMIT_BYTES, f"max_bytes: is {self.max_bytes}, expected 1 to {READ_LIMIT_BYTES} (64 MiB)"
        )
        for name in ("max_line_length", "max_mean_line_length"):
            require(getattr(self, name) > 0, f"{name}: is {getattr(self, name)}, expected 1 or more")
        require(
            0 <= self.min_alphanumeric_share <= 1,
            f"min_alphanumeric_share: is {self.min_alphanumeric_share}, expected a share from 0 to 1",
        )


def is_opted_out(file: SourceFile, config: FiltersConfig) -> bool:
    """Its repository or its blob id stands in a list of `opt_out`."""
    return bool(config.opt_out) and bool(load_opt_out(config.opt_out).reason(file.repository, file.blob_id))


def is_empty(file: SourceFile, config: FiltersConfig) -> bool:
    """No bytes, or nothing but white space."""
    return not file.content or file.content.isspace()


def is_vendored(file: SourceFile, config: FiltersConfig) -> bool:
    """A copy of another project."""
    return config.drop_vendored and file.is_vendored


def is_generated(file: SourceFile, config: FiltersConfig) -> bool:
    """Written by a program."""
    return config.drop_generated and file.is_generated


def has_other_licence_type(file: SourceFile, config: FiltersConfig) -> bool:
    """A licence type that the config does not list."""
    return file.licence_type not in config.licence_types


def has_unwanted_licence(file: SourceFile, config: FiltersConfig) -> bool:
    """A detected licence that is denied, or that is not allowed."""
    return bool(_unwanted_licences(file.licences, config.allowed_licences, config.denied_licences))


def is_too_large(file: SourceFile, config: FiltersConfig) -> bool:
    """More bytes than `max_bytes`."""
    return len(file.content) > config.max_bytes


def is_binary(file: SourceFile, config: FiltersConfig) -> bool:
    """A NUL byte, or more than 2 % control characters in the first 1 KiB; encodings with NUL bytes are left to the decoder."""
    if file.encoding.lower().startswith(_WIDE_ENCODINGS):
        return False
    head = file.content[:_CONTROL_BYTES]
    controls = len(head) - len(head.translate(None, delete=_CONTROL))
    return controls > _MAX_CONTROL_SHARE * len(head) or b"\0" in file.content


def has_long_line(file: TextFile, config: FiltersConfig) -> bool:
    """A line of more characters than `max_line_length`."""
    text, limit = file.text, config.max_line_length
    start = 0
    while len(text) - start > limit:
        # From one line's start to the last line end within reach: all lines between are short enough.
        start = text.rfind("\n", start, start + limit + 1) + 1
        if start == 0:
            return True
    return False


def has_long_lines(file: TextFile, config: FiltersConfig) -> bool:
    """More than `max_mean_line_length` characters per line on average."""
    text, limit = file.text, config.max_mean_line_length
    # The first sixteenth of ordinary code has line ends enough for the whole.
    if (text.count("\n", 0, len(text) // 16) + 1) * limit >= len(text):
        return False
    return (text.count("\n") + 1) * limit < len(text)


def has_few_alphanumerics(file: TextFile, config: FiltersConfig) -> bool:
    """Too small a share of the UTF-8 bytes is a letter, a digit or outside ASCII (other scripts are letters here)."""
    utf8 = file.utf8
    wanted = config.min_alphanumeric_share * len(utf8)
    # The first half of ordinary code has enough for the whole.
    return _num_alphanumerics(utf8[: len(utf8) // 2]) < wanted and _num_alphanumerics(utf8) < wanted


def opt_out_detail(file: SourceFile, config: FiltersConfig) -> str:
    """Whether the repository or the blob is on a list."""
    return load_opt_out(config.opt_out).reason(file.repository, file.blob_id)


def licence_detail(file: SourceFile, config: FiltersConfig) -> str:
    """The licences that are denied, or that are not allowed."""
    return " ".join(_unwanted_licences(file.licences, config.allowed_licences, config.denied_licences))


def _no_detail(file: SourceFile, config: FiltersConfig) -> str:
    return ""


@dataclass(frozen=True)
class BytesFilter:
    """A filter that needs only the bytes of a file and what its source says of it."""

    reason: str
    """The name under which drops are counted, logged and shown."""
    drops: Callable[[SourceFile, FiltersConfig], bool]
    config_fields: tuple[str, ...] = ()
    """The fields of `FiltersConfig` that the filter reads."""
    detail: Callable[[SourceFile, FiltersConfig], str] = _no_detail
    """What the log of dropped files shows beside the reason."""


@dataclass(frozen=True)
class TextFilter:
    """A filter that needs the decoded text of a file."""

    reason: str
    drops: Callable[[TextFile, FiltersConfig], bool]
    config_fields: tuple[str, ...] = ()


# The registry: counts, the log of dropped files, `stats` and `--help` follow from it. A file is dropped by the first filter that
# matches. Bytes filters run before the text is decoded, because decoding costs more than all of them.
FILTERS: tuple[BytesFilter | TextFilter, ...] = (
    BytesFilter("opt_out", is_opted_out, ("opt_out",), opt_out_detail),
    BytesFilter("empty", is_empty),
    BytesFilter("vendored", is_vendored, ("drop_vendored",)),
    BytesFilter("generated", is_generated, ("drop_generated",)),
    BytesFilter("licence", has_other_licence_type, ("licence_types",), lambda file, _: file.licence_type),
    BytesFilter("licence_name", has_unwanted_licence, ("allowed_licences", "denied_licences"), licence_detail),
    BytesFilter("too_large", is_too_large, ("max_bytes",)),
    BytesFilter("binary", is_binary),
    TextFilter("long_line", has_long_line, ("max_line_length",)),
    TextFilter("long_mean_line", has_long_lines, ("max_mean_line_length",)),
    TextFilter("low_alphanumeric", has_few_alphanumerics, ("min_alphanumeric_share",)),
)
BYTES_FILTERS = tuple(entry for entry in FILTERS if isinstance(entry, BytesFilter))
TEXT_FILTERS = tuple(entry for entry in FILTERS if isinstance(entry, TextFilter))
# Decoding and the search for duplicates are steps of `filter_repository`: one makes the text, the other keeps state.
REASONS = (*(entry.reason for entry in BYTES_FILTERS), UNDECODABLE, *(entry.reason for entry in TEXT_FILTERS), DUPLICATE)
_DETAILS = {entry.reason: entry.detail for entry in BYTES_FILTERS} | {UNDECODABLE: lambda file, _: file.encoding}


@dataclass
class Tally:
    """Files and their bytes."""

    files: int = 0
    bytes: int = 0

    def add(self, num_bytes: int, num_files: int = 1) -> None:
        """Count `num_files` files of `num_bytes` bytes together."""
        self.files += num_files
        self.bytes += num_bytes


@dataclass
class FilterCounts:
    """What the filters did, over any number of repositories: files and bytes by outcome, language and licence."""

    reasons: dict[str, Tally] = field(default_factory=lambda: {name: Tally() for name in (KEPT, *REASONS)})
    """`kept`, every drop reason, and the `SourceFile.problem` of each file that its source could not read."""
    eligible: Tally = field(default_factory=Tally)
    """UTF-8, not vendored, not generated, permissive: what a code model should see."""
    eligible_kept: Tally = field(default_factory=Tally)
    """Those of the eligible that passed."""
    languages: dict[str, Tally] = field(default_factory=dict)
    """Kept files by language."""
    licences: dict[str, Tally] = field(default_factory=dict)
    """Kept files by licence; several joined with ` AND `; the licence type where there is none."""
    contaminated: dict[str, Tally] = field(default_factory=dict)
    """Dropped pieces (not files) of kept files and their bytes, by the evaluation file that they overlap."""

    def count(self, file: SourceFile, outcome: str) -> None:
        """Count one file under `kept` or its drop reason, which may be one that no filter has."""
        size = len(file.content)
        _tally(self.reasons, outcome).add(size)
        if is_eligible(file):
            self.eligible.add(size)
            if outcome == KEPT:
                self.eligible_kept.add(size)
        if outcome == KEPT:
            _tally(self.languages, file.language).add(size)
            licences = file.licences
            _tally(self.licences, " AND ".join(sorted(licences)) if licences else file.licence_type).add(size)

    def count_contaminated(self, evaluation_file: str, num_bytes: int) -> None:
        """Count one piece that was dropped because it overlaps `evaluation_file`."""
        _tally(self.contaminated, evaluation_file).add(num_bytes)

    def to_plain(self) -> dict[str, Any]:
        """The counts as nested dictionaries, for JSON; `eligible_bytes_kept_share` is None where nothing was eligible."""
        plain = dataclasses.asdict(self)
        share = self.eligible_kept.bytes / self.eligible.bytes if self.eligible.bytes else None
        return {**plain, "eligible_bytes_kept_share": share}

    @staticmethod
    def merge(plains: Iterable[dict[str, Any]]) -> "FilterCounts":
        """The sum of what several `to_plain` returned."""
        total = FilterCounts()
        for plain in plains:
            total.eligible.add(plain["eligible"]["bytes"], plain["eligible"]["files"])
            total.eligible_kept.add(plain["eligible_kept"]["bytes"], plain["eligible_kept"]["files"])
            for name in ("reasons", "languages", "licences", "contaminated"):
                for key, tally in plain[name].items():
                    _tally(getattr(total, name), key).add(tally["bytes"], tally["files"])
        return total


def is_eligible(file: SourceFile) -> bool:
    """UTF-8, not vendored, not generated, permissively licensed."""
    return (
        file.encoding.upper() == "UTF-8" and not file.is_vendored and not file.is_generated and file.licence_type == "permissive"
    )


def filter_repository(
    files: Iterable[SourceFile], config: FiltersConfig, counts: FilterCounts, dropped: DroppedLog | None = None
) -> Iterator[TextFile]:
    """The files of one repository that pass every filter, decoded.

    Each file is counted once in `counts`, and written into `dropped` if it does not pass.

    Raises:
        MoseError: a file of `config.opt_out` cannot be read.
    """
    seen: set[str] = set()
    for file in files:
        reason, text = _judge(file, config)
        if text is not None and config.drop_duplicates and file.blob_id in seen:
            reason, text = DUPLICATE, None
        counts.count(file, reason)
        if text is not None:
            seen.add(file.blob_id)
            yield text
        elif dropped is not None:
            detail = _DETAILS.get(reason, _no_detail)(file, config)
            dropped.add(file.repository, file.path, file.blob_id, reason, len(file.content), detail)


def decode(content: bytes, encoding: str) -> str | None:
    """The text, strictly decoded (a byte-order mark stays text); None when the bytes or the encoding's name are wrong."""
    try:
        text = content.decode(encoding)
        if not text.isascii() and not is_utf8(encoding):
            # A few encodings (UTF-7, unicode-escape) make lone surrogates, which no UTF-8 file or tokenizer can hold.
            text.encode("utf-8")
    except (LookupError, ValueError):
        return None
    return text


def _judge(file: SourceFile, config: FiltersConfig) -> tuple[str, TextFile | None]:
    if file.problem:
        return file.problem, None
    for bytes_filter in BYTES_FILTERS:
        if bytes_filter.drops(file, config):
            return bytes_filter.reason, None
    text = decode(file.content, file.encoding)
    if text is None:
        return UNDECODABLE, None
    text_file = TextFile(file, text)
    for text_filter in TEXT_FILTERS:
        if text_filter.drops(text_file, config):
            return text_filter.reason, None
    return KEPT, text_file


# A repository's files mostly have the same licences.
@functools.lru_cache(maxsize=1 << 12)
def _unwanted_licences(licences: tuple[str, ...], allowed: tuple[str, ...], denied: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in licences if _is_listed(name, denied) or (allowed and not _is_listed(name, allowed)))


def _is_listed(licence: str, patterns: tuple[str, ...]) -> bool:
    # SPDX ids are compared without regard to case (SPDX 2.3, annex D.2).
    return any(re.match(translate(pattern.strip()), licence, re.IGNORECASE) for pattern in patterns)


def _num_alphanumerics(utf8: bytes) -> int:
    return int(np.count_nonzero(np.frombuffer(utf8.translate(_ALPHANUMERIC), np.bool_)))


def _tally(tallies: dict[str, Tally], name: str) -> Tally:
    tally = tallies.get(name)
    if tally is None:
        tally = tallies[name] = Tally()
    return tally

"""Which files become training text: small named filters, each drop counted under the filter's name."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from data_prep.records import READ_LIMIT_BYTES, SourceFile, TextFile
from mose.config import require

KEPT = "kept"
UNDECODABLE = "undecodable"
DUPLICATE = "duplicate_in_repository"

# Bytes that text does not hold: control characters but \b \t \n \v \f \r and escape (terminal colours).
_CONTROL = bytes(set(range(32)) - {8, 9, 10, 11, 12, 13, 27})
_MAX_CONTROL_SHARE = 0.02
_NOT_ALPHANUMERIC = bytes(byte for byte in range(128) if not chr(byte).isalnum())
# UTF-16 and UTF-32 hold NUL bytes in ordinary text.
_WIDE_ENCODINGS = ("utf-16", "utf16", "utf_16", "utf-32", "utf32", "utf_32")


@dataclass(frozen=True)
class FiltersConfig:
    """What a file must be to become training text. The limits drop few bytes: they are for what is plainly not source."""

    licence_types: tuple[str, ...] = ("permissive", "no_license", "unknown")
    """Licence types that are kept. The Stack v2's training set holds permissive and no_license; folders, git checkouts and
    most packages do not say, which is unknown."""
    max_bytes: int = 1 << 20
    """Drop files larger than this."""
    max_line_length: int = 100_000
    """Drop files with a line of more characters than this: data or minified code."""
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
        require(
            0 < self.max_bytes <= READ_LIMIT_BYTES, f"max_bytes: is {self.max_bytes}, expected 1 to {READ_LIMIT_BYTES} (64 MiB)"
        )
        require(self.max_line_length > 0, f"max_line_length: is {self.max_line_length}, expected 1 or more")
        require(
            0 <= self.min_alphanumeric_share <= 1,
            f"min_alphanumeric_share: is {self.min_alphanumeric_share}, expected a share from 0 to 1",
        )


def is_empty(file: SourceFile, config: FiltersConfig) -> bool:
    """No bytes, or nothing but white space."""
    return not file.content.strip()


def is_vendored(file: SourceFile, config: FiltersConfig) -> bool:
    """A copy of another project."""
    return config.drop_vendored and file.is_vendored


def is_generated(file: SourceFile, config: FiltersConfig) -> bool:
    """Written by a program."""
    return config.drop_generated and file.is_generated


def has_other_licence(file: SourceFile, config: FiltersConfig) -> bool:
    """A licence type that the config does not list."""
    return file.licence_type not in config.licence_types


def is_too_large(file: SourceFile, config: FiltersConfig) -> bool:
    """More bytes than `max_bytes`."""
    return len(file.content) > config.max_bytes


def is_binary(file: SourceFile, config: FiltersConfig) -> bool:
    """A NUL byte, or more than 2 % control characters; encodings that use NUL bytes are left to the decoder."""
    if file.encoding.lower().startswith(_WIDE_ENCODINGS):
        return False
    content = file.content
    controls = len(content) - len(content.translate(None, delete=_CONTROL))
    return b"\0" in content or controls > _MAX_CONTROL_SHARE * len(content)


def has_long_line(text: str, config: FiltersConfig) -> bool:
    """A line of more characters than `max_line_length`."""
    return max(map(len, text.split("\n"))) > config.max_line_length


def has_few_alphanumerics(text: str, config: FiltersConfig) -> bool:
    """Too small a share of the UTF-8 bytes is a letter, a digit or outside ASCII (other scripts are letters here)."""
    content = text.encode("utf-8")
    return len(content.translate(None, delete=_NOT_ALPHANUMERIC)) < config.min_alphanumeric_share * len(content)


BYTE_FILTERS: tuple[tuple[str, Callable[[SourceFile, FiltersConfig], bool]], ...] = (
    ("empty", is_empty),
    ("vendored", is_vendored),
    ("generated", is_generated),
    ("licence", has_other_licence),
    ("too_large", is_too_large),
    ("binary", is_binary),
)
TEXT_FILTERS: tuple[tuple[str, Callable[[str, FiltersConfig], bool]], ...] = (
    ("long_line", has_long_line),
    ("low_alphanumeric", has_few_alphanumerics),
)
REASONS = (*(name for name, _ in BYTE_FILTERS), UNDECODABLE, *(name for name, _ in TEXT_FILTERS), DUPLICATE)


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
    """`kept` and every drop reason."""
    eligible: Tally = field(default_factory=Tally)
    """UTF-8, not vendored, not generated, permissive: what a code model should see."""
    eligible_kept: Tally = field(default_factory=Tally)
    """Those of the eligible that passed."""
    languages: dict[str, Tally] = field(default_factory=dict)
    """Kept files by language."""
    licences: dict[str, Tally] = field(default_factory=dict)
    """Kept files by licence; several joined with ` AND `, none told as the licence type."""

    def count(self, file: SourceFile, outcome: str) -> None:
        """Count one file under `kept` or its drop reason."""
        size = len(file.content)
        self.reasons[outcome].add(size)
        if is_eligible(file):
            self.eligible.add(size)
            if outcome == KEPT:
                self.eligible_kept.add(size)
        if outcome == KEPT:
            self.languages.setdefault(file.language, Tally()).add(size)
            licence = " AND ".join(sorted(file.licences)) or file.licence_type
            self.licences.setdefault(licence, Tally()).add(size)

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
            for mine, theirs in (
                (total.reasons, plain["reasons"]),
                (total.languages, plain["languages"]),
                (total.licences, plain["licences"]),
            ):
                for name, tally in theirs.items():
                    mine.setdefault(name, Tally()).add(tally["bytes"], tally["files"])
        return total


def is_eligible(file: SourceFile) -> bool:
    """UTF-8, not vendored, not generated, permissively licensed."""
    return (
        file.encoding.upper() == "UTF-8" and not file.is_vendored and not file.is_generated and file.licence_type == "permissive"
    )


def filter_repository(files: Iterable[SourceFile], config: FiltersConfig, counts: FilterCounts) -> Iterator[TextFile]:
    """The files of one repository that pass every filter, decoded; each file is counted once in `counts`."""
    seen: set[str] = set()
    for file in files:
        reason, text = _judge(file, config)
        if reason == KEPT and config.drop_duplicates and file.blob_id in seen:
            reason = DUPLICATE
        counts.count(file, reason)
        if reason == KEPT:
            seen.add(file.blob_id)
            yield TextFile(file, text)


def decode(content: bytes, encoding: str) -> str | None:
    """The text, strictly decoded (a byte-order mark stays text); None when the bytes or the encoding's name are wrong."""
    try:
        text = content.decode(encoding)
        # A few encodings (UTF-7, unicode-escape) make lone surrogates, which no UTF-8 file or tokenizer can hold.
        text.encode("utf-8")
    except (LookupError, ValueError):
        return None
    return text


def _judge(file: SourceFile, config: FiltersConfig) -> tuple[str, str]:
    for reason, drops in BYTE_FILTERS:
        if drops(file, config):
            return reason, ""
    text = decode(file.content, file.encoding)
    if text is None:
        return UNDECODABLE, ""
    for reason, drops_text in TEXT_FILTERS:
        if drops_text(text, config):
            return reason, ""
    return KEPT, text

"""Prints the counts of a manifest as tables, with warnings."""

from typing import Any

from rich.table import Table

from mose.dataset.manifest import SPLITS, Manifest
from mose.files.streams import make_console

_ROWS = (
    ("rows", "rows"),
    ("repositories", "repositories"),
    ("text tokens", "text_tokens"),
    ("text tokens kept", "kept_token_share"),
    ("filled slots", "fill"),
    ("mixed rows", "mixed_share"),
    ("rows of one snippet", "single_snippet_share"),
    ("unmixed rows of one file", "single_file_share_of_unmixed"),
)
_LANGUAGES = 10
_NAMED_BAD = 10
# Deviation of the share of mixed rows from the configured one above which a warning is printed.
_MIXED_TOLERANCE = 0.02


def print_summary(manifest: Manifest) -> None:
    """Print the counts of each split, of the filters and of the most frequent languages, and warnings."""
    console = make_console()
    statistics = manifest.statistics
    for table in (_split_table(manifest), _filter_table(statistics["filters"]), _language_table(statistics["splits"])):
        console.print(table)
    if line := held_out_line(statistics):
        console.print(line, soft_wrap=True)
    print_cautions(manifest)


def held_out_line(statistics: dict[str, Any]) -> str:
    """How many files of train stand in held_out, too, and how many were dropped for it; empty without held_out."""
    if not statistics["splits"]["held_out"]["rows"]:
        return ""
    if "held_out_copies" not in statistics:
        return "copies of held-out files in train: not looked for"
    kept = statistics.get("copies_of_held_out_in_train", 0)
    dropped = statistics["filters"]["reasons"].get("copy_of_held_out", {"files": 0})["files"]
    return f"copies of held-out files in train: {kept:,}; {dropped:,} dropped"


def print_overview(manifest: Manifest) -> None:
    """Print only the counts of each split."""
    make_console().print(_split_table(manifest))


def print_cautions(manifest: Manifest) -> None:
    """Print the warnings of `cautions`."""
    for line in cautions(manifest.statistics):
        make_console().print(line, style="yellow", soft_wrap=True)


def cautions(statistics: dict[str, Any]) -> list[str]:
    """Warnings: an unexpected share of mixed rows, repositories without a usable file."""
    lines = []
    for split, counts in statistics["splits"].items():
        share = counts["mixed_share"]
        if share is not None and abs(share - statistics["wanted_mixed_share"]) > _MIXED_TOLERANCE:
            lines.append(f"{split}: {share:.1%} of rows are mixed, from {counts['repositories']} repositories in use")
    if statistics["unusable_repositories"]:
        names = ", ".join(statistics["unusable_examples"][:3])
        lines.append(f"{statistics['unusable_repositories']} repositories have no usable file, among them {names}")
    if copies := statistics.get("copies_of_held_out_in_train", 0):
        lines.append(f"{copies:,} files of train stand in held_out, too: validation measures memory (held_out_copies: drop)")
    if duplicates := statistics.get("duplicates_in_train", 0):
        lines.append(f"{duplicates:,} files of train are copies of another repository's (duplicates: drop leaves them out)")
    bad = statistics.get("bad_repositories", [])
    for repository in bad[:_NAMED_BAD]:
        lines.append(f"left out, cannot be read: {repository['name']}: {repository['reason']}")
    if len(bad) > _NAMED_BAD:
        lines.append(
            f"{len(bad) - _NAMED_BAD} more repositories cannot be read; `mose-data dropped --reason bad_repository` lists them"
        )
    return lines


def _split_table(manifest: Manifest) -> Table:
    table = Table("", *SPLITS, title=f"packed {manifest.packing_mode}", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for title, name in _ROWS:
        table.add_row(title, *(_text(manifest.statistics["splits"][split][name]) for split in SPLITS))
    return table


def _filter_table(filters: dict[str, Any]) -> Table:
    table = Table("files", "number", "bytes", title="filters", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, tally in filters["reasons"].items():
        if tally["files"]:
            table.add_row(name, f"{tally['files']:,}", f"{tally['bytes']:,}")
    table.add_section()
    table.add_row("bytes kept of UTF-8, own, permissive files", "", _text(filters["eligible_bytes_kept_share"]))
    return table


def _language_table(splits: dict[str, Any]) -> Table:
    totals = {split: splits[split]["tokens_by_language"] for split in SPLITS}
    names = sorted(
        {name for counts in totals.values() for name in counts}, key=lambda name: (-totals[SPLITS[0]].get(name, 0), name)
    )
    table = Table("text tokens", *SPLITS, title="languages", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name in names[:_LANGUAGES]:
        table.add_row(name, *(_text(totals[split].get(name, 0)) for split in SPLITS))
    if names[_LANGUAGES:]:
        rest = [sum(totals[split].get(name, 0) for name in names[_LANGUAGES:]) for split in SPLITS]
        table.add_row(f"{len(names) - _LANGUAGES} others", *map(_text, rest))
    return table


def _text(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.1%}"

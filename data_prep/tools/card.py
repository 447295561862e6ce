"""`mose-data card`: the data card of a data set, Markdown with the YAML front matter that a Hub page takes."""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser, Namespace

from data_prep.execution.inputs import read_config_of
from data_prep.execution.source_states import states_path
from data_prep.filters.filters import KEPT
from data_prep.pipeline.config import PackConfig
from mose.command import Command
from mose.config import to_plain
from mose.dataset.manifest import MANIFEST_NAME, SPLITS, Manifest, read_manifest
from mose.errors import MoseError
from mose.files.atomic_file import atomic_write
from mose.files.storage import storage_path
from mose.files.streams import escaped_parts, without_credentials

_NAMED = 20
# The Hub's classes of sizes, by the number of rows.
_SIZES = ((3, "n<1K"), (4, "1K<n<10K"), (5, "10K<n<100K"), (6, "100K<n<1M"), (7, "1M<n<10M"), (8, "10M<n<100M"), (9, "100M<n<1B"))


def data_card(dataset: Path) -> str:
    """The card of a finished data set, from its manifest and config; the same for the same data set.

    Raises:
        MoseError: the data set is not finished, or manifest or config cannot be read.
    """
    manifest, config = read_manifest(dataset), read_config_of(dataset)
    sections = (
        ("Contents", _contents(manifest)),
        ("Sources", _sources(dataset, config, manifest)),
        ("Languages", _tallies(manifest.statistics["filters"]["languages"], "language")),
        ("Licences", _licences(manifest, config)),
        ("Filters", _filters(manifest, config)),
        ("Duplicates", _duplicates(manifest, config)),
        ("Secrets and personal data", _secrets(manifest, config)),
        ("Contamination with evaluation sets", _contamination(manifest, config)),
        ("Known limits", _limits(manifest, config)),
    )
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections)
    return f"---\n{_front_matter(dataset, manifest)}---\n\n# {_plain(dataset.name)}\n\n{_summary(dataset, manifest)}\n\n{body}\n"


def _front_matter(dataset: Path, manifest: Manifest) -> str:
    rows = sum(shard.rows for shards in manifest.splits.values() for shard in shards)
    size = next((name for digits, name in _SIZES if rows < 10**digits), "n>1B")
    values = {
        "pretty_name": dataset.name,
        # Files of many licences stand beside each other; the Hub has one word for that.
        "license": "other",
        "license_name": "as-in-the-sources",
        "language": ["code"],
        "task_categories": ["fill-mask"],
        "size_categories": [size],
        "tags": ["code", "webdataset", "mose"],
        "configs": [
            {"config_name": "default", "data_files": [{"split": split, "path": f"{split}/*.tar"} for split in _used(manifest)]}
        ],
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _used(manifest: Manifest) -> list[str]:
    return [split for split in SPLITS if manifest.splits.get(split)]


def _summary(dataset: Path, manifest: Manifest) -> str:
    when = datetime.fromtimestamp((dataset / MANIFEST_NAME).stat().st_mtime, timezone.utc).date().isoformat()
    return (
        f"Source code packed into rows of {manifest.sequence_length:,} tokens for pre-training code encoders, finished on {when}."
        f" Each row holds snippets of one repository or of two that alternate, and says which. `{MANIFEST_NAME}` has "
        f"checksums of all files and the fingerprints `{manifest.config_fingerprint}` (config) and "
        f"`{manifest.tokenizer_fingerprint}` (tokenizer); lineage tables name repository, path, blob id and licence of a snippet."
    )


def _contents(manifest: Manifest) -> str:
    statistics = manifest.statistics["splits"]
    rows = []
    for title, name in (("rows", "rows"), ("repositories", "repositories"), ("text tokens", "text_tokens")):
        rows.append((title, *(f"{statistics[split][name]:,}" for split in SPLITS)))
    for title, name in (("filled slots", "fill"), ("mixed rows", "mixed_share")):
        rows.append((title, *(_share(statistics[split][name]) for split in SPLITS)))
    return _table(("", *SPLITS), rows)


def _sources(dataset: Path, config: PackConfig, manifest: Manifest) -> str:
    lines = []
    for name, value in to_plain(config.sources).items():
        if isinstance(value, list) and value:
            shown = ", ".join(f"`{_plain(_named(str(entry)))}`" for entry in value[:_NAMED])
            lines.append(f"- {name}: {shown}{f' and {len(value) - _NAMED} more' if len(value) > _NAMED else ''}")
        elif value not in ([], "", 0, False):
            lines.append(f"- {name}: `{_plain(_named(str(value)))}`")
    ledger = manifest.statistics.get("ledger")
    for kind, counts in (ledger["seen"] if ledger else {}).items():
        skipped = counts.get("not_selected_files", 0)
        links = counts.get("links_and_special_files", 0)
        passed = f", {links:,} links, submodules and special files passed over" if links else ""
        found = f"{counts['files']:,} files of {counts['bytes']:,} bytes; {skipped:,} files not selected{passed}"
        lines.append(f"- read as {kind}: {found}")
    lines += _states(dataset)
    return "\n".join(lines)


def _named(entry: str) -> str:
    """An entry without passwords; the name of NAME=FOLDER, the end of a path: a folder of the machine means nothing on a page."""
    if "=" in entry and not Path(entry).exists():
        return without_credentials(entry.partition("=")[0])
    return without_credentials(entry) if "://" in entry else Path(entry).name or entry


def _states(dataset: Path) -> list[str]:
    """State of each listed repository when it was read: its commit, version, or sizes and times."""
    try:
        states: dict[str, str] = json.loads(states_path(dataset).read_bytes())
    except (OSError, ValueError):
        return []
    named = [f"  - `{_plain(name)}`: {_plain(state)}" for name, state in sorted(states.items())[:_NAMED]]
    more = [f"  - and {len(states) - _NAMED} more in `tasks/sources.json`"] if len(states) > _NAMED else []
    return ["- repositories as they were read:", *named, *more] if named else []


def _licences(manifest: Manifest, config: PackConfig) -> str:
    kept = ", ".join(config.filters.licence_types)
    lines = [f"Kept licence types: {kept}."]
    for name, patterns in (("Allowed", config.filters.allowed_licences), ("Denied", config.filters.denied_licences)):
        lines += [f"{name}: {', '.join(map(_plain, patterns))}."] if patterns else []
    return " ".join(lines) + "\n\n" + _tallies(manifest.statistics["filters"]["licences"], "licence")


def _filters(manifest: Manifest, config: PackConfig) -> str:
    reasons = manifest.statistics["filters"]["reasons"]
    dropped = {name: tally for name, tally in reasons.items() if tally["files"] and name != KEPT}
    rows = [(KEPT, *_numbers(reasons[KEPT])), *((name, *_numbers(tally)) for name, tally in _by_bytes(dropped))]
    settings = ", ".join(
        f"`{name}: {_plain(str(value))}`" for name, value in to_plain(config.filters).items() if value not in ([], {})
    )
    bad = manifest.statistics.get("bad_repositories", [])
    left_out = f"\n\n{len(bad)} repositories could not be read and are left out." if bad else ""
    return f"Settings: {settings}.\n\n{_table(('outcome', 'files', 'bytes'), rows)}{left_out}"


def _duplicates(manifest: Manifest, config: PackConfig) -> str:
    reasons, statistics = manifest.statistics["filters"]["reasons"], manifest.statistics

    def files(name: str) -> str:
        return f"{reasons.get(name, {'files': 0})['files']:,}"

    across = {
        "drop": f"{files('duplicate_across_repositories')} copies in other train repositories dropped",
        "count": f"{statistics.get('duplicates_in_train', 0):,} copies of other train repositories' files kept",
        "ignore": "copies across train repositories neither looked for nor dropped",
    }[config.duplicates]
    held_out = {
        "drop": f"{files('copy_of_held_out')} copies of held-out files dropped from train",
        "count": f"{statistics.get('copies_of_held_out_in_train', 0):,} copies of held-out files are in train",
        "ignore": "copies of held-out files not looked for in train",
    }[config.held_out_copies]
    inside = f"{files('duplicate_in_repository')} exact copies inside a repository dropped"
    near = f"{files('near_duplicate')} near-duplicates of other files and {files('near_evaluation')} of evaluation texts dropped"
    near = near if config.near_duplicates else "near-duplicates are not looked for"
    return f"- {inside}\n- {across}\n- {held_out}\n- {near}"


def _secrets(manifest: Manifest, config: PackConfig) -> str:
    modes = f"Secrets: {config.filters.secrets}. E-mail and public IP addresses: {config.filters.personal_data}."
    replaced = manifest.statistics["filters"].get("replaced", {})
    return f"{modes}\n\n{_tallies(replaced, 'replaced', 'places', 'characters')}" if replaced else modes


def _contamination(manifest: Manifest, config: PackConfig) -> str:
    if not config.decontamination.files:
        return "Not compared with any evaluation set."
    names = ", ".join(f"`{_plain(storage_path(file).name)}`" for file in config.decontamination.files)
    found = manifest.statistics["filters"]["contaminated"]
    words = config.decontamination.ngram_words
    text = f"Pieces that share an n-gram of {words} words with {names} were dropped."
    return f"{text}\n\n{_tallies(found, 'evaluation file', 'pieces')}" if found else f"{text} None was found."


def _limits(manifest: Manifest, config: PackConfig) -> str:
    statistics = manifest.statistics
    unknown = statistics["filters"]["languages"].get("Unknown", {"bytes": 0})["bytes"]
    whole = sum(tally["bytes"] for tally in statistics["filters"]["languages"].values())
    lines = [
        "Licences are those that the sources state or that were detected from licence files; nobody has checked them one by one.",
        "Secrets are found by patterns of known services; passwords and keys of other forms, names and telephone numbers stay.",
        f"The language of {_share(unknown / whole if whole else None)} of the bytes is unknown.",
        f"{statistics['unusable_repositories']:,} of {statistics['repositories']:,} repositories have no usable file.",
    ]
    if config.sources.max_repository_bytes:
        lines.append(f"At most {config.sources.max_repository_bytes:,} bytes of a repository were read.")
    return "\n".join(f"- {line}" for line in lines)


def _tallies(tallies: Mapping[str, Mapping[str, int]], title: str, files: str = "files", size: str = "bytes") -> str:
    named = _by_bytes(tallies)
    rows = [(name, *_numbers(tally)) for name, tally in named[:_NAMED]]
    if rest := named[_NAMED:]:
        total = {unit: sum(tally[unit] for _, tally in rest) for unit in ("files", "bytes")}
        rows.append((f"{len(rest)} others", *_numbers(total)))
    return _table((title, files, size), rows)


def _by_bytes(tallies: Mapping[str, Mapping[str, int]]) -> list[tuple[str, Mapping[str, int]]]:
    return sorted(tallies.items(), key=lambda entry: (-entry[1]["bytes"], entry[0]))


def _numbers(tally: Mapping[str, int]) -> tuple[str, str]:
    return f"{tally['files']:,}", f"{tally['bytes']:,}"


def _table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(titles)
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *(list(map(_plain, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _plain(text: str) -> str:
    """Text of a source without what would end a table cell or a code span, or control a terminal."""
    return "".join(part for part, _ in escaped_parts(text)).replace("|", "\\|").replace("`", "'").replace("\n", " ")


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("dataset", type=str, help="Folder or URL of a finished data set.")
    parser.add_argument("--output", type=str, default="", help="File to write, such as DATASET/README.md; empty prints the card.")


def _run(parsed: Namespace) -> None:
    card = data_card(storage_path(parsed.dataset))
    if not parsed.output:
        print(card, end="")
        return
    path = storage_path(parsed.output)
    if path.is_dir():
        raise MoseError(f"{path}: output: is a folder, expected a file such as README.md")
    with atomic_write(path) as file:
        file.write(card.encode("utf-8"))
    print(f"wrote {path}")


SUMMARY = "Write a data card: sources, filters, licences, languages, limits, as Markdown for a Hub page."
COMMAND = Command(SUMMARY, _add_arguments, _run)

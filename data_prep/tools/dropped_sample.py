"""A page of randomly chosen dropped files with their first lines, to judge by eye whether the filters are right."""

import heapq
from collections.abc import Iterable
from pathlib import Path

from data_prep.execution.inputs import read_config_of
from data_prep.filters.dropped_log import Line
from data_prep.sources.registry import SourcesConfig, grouped_parts, list_repositories, read_repository
from mose.errors import MoseError
from mose.files.streams import escaped_parts
from mose.seeding import derive_key

_SHOWN_LINES = 12
_SHOWN_CHARACTERS = 120


def sample_page(dataset: Path, lines: Iterable[Line], number: int) -> str:
    """Markdown: `number` of the lines, chosen by a hash of repository and path, each with the beginning of its file.

    Files whose source is not there any more are shown without it.

    Raises:
        MoseError: the lists of dropped files or the config cannot be read.
    """
    chosen = heapq.nsmallest(number, lines, key=lambda line: (derive_key(0, "dropped", *line[:4]), line))
    texts = _texts(read_config_of(dataset).sources, {(line[0], line[1]) for line in chosen})
    parts = [f"# {len(chosen)} files dropped from {dataset.name}"]
    for count, (repository, path, _, reason, size, detail) in enumerate(sorted(chosen, key=lambda line: (line[3], *line)), 1):
        about = f" ({_plain(detail)})" if detail else ""
        parts.append(f"\n## {count}. {reason}{about}\n\n`{_plain(repository)}` `{_plain(path)}`, {size:,} bytes\n")
        shown = texts.get((repository, path))
        parts.append("not readable any more, or the problem of its source" if shown is None else f"````text\n{shown}\n````")
    return "\n".join(parts)


def _texts(sources: SourcesConfig, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """The first lines of these (repository, path)."""
    found: dict[tuple[str, str], str] = {}
    try:
        # A grouped folder has no list of repositories, and reading all of it for a few files would take hours.
        refs = [] if grouped_parts(sources) else list_repositories(sources)
    except MoseError:
        return found
    names = {name for name, _ in wanted}
    for ref in refs:
        if ref.name not in names:
            continue
        try:
            for file in read_repository(ref, sources):
                if (ref.name, file.path) in wanted and file.content:
                    found[ref.name, file.path] = _beginning(file.content)
        except (MoseError, OSError):
            continue
    return found


def _beginning(content: bytes) -> str:
    lines = content[: _SHOWN_LINES * _SHOWN_CHARACTERS].decode("utf-8", "replace").split("\n")[:_SHOWN_LINES]
    return "\n".join(_plain(line[:_SHOWN_CHARACTERS]) for line in lines)


def _plain(text: str) -> str:
    """Without characters that would control a terminal or end a code span."""
    return "".join(part for part, _ in escaped_parts(text)).replace("`", "'")

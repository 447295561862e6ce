"""Merges the counts of all tasks into the `statistics` of `manifest.json`."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from data_prep.filters.filters import KEPT, FilterCounts
from data_prep.packing.config import PackingConfig
from data_prep.packing.rows import RowCounts
from data_prep.pipeline.task_marker import TaskMarker
from mose.dataset.manifest import SPLITS

_EXAMPLES = 20


def merge_statistics(results: Sequence[TaskMarker], config: PackingConfig) -> dict[str, Any]:
    """Packing mode, counts and shares by split, counts of the filters, repositories left out, and the ledger of files."""
    examples = sorted(name for result in results for name in result.unusable_examples)
    filters = FilterCounts.merge([result.filters for result in results])
    statistics = {
        "mode": config.mode,
        "wanted_mixed_share": config.mixed_share,
        "splits": {split: _split_statistics([result.rows[split] for result in results], config) for split in SPLITS},
        "filters": filters.to_plain(),
        "repositories": sum(result.repositories for result in results),
        "unusable_repositories": sum(result.unusable_repositories for result in results),
        "unusable_examples": examples[:_EXAMPLES],
    }
    # Tasks of earlier versions did not count what their sources gave.
    if not all(result.seen or not result.repositories for result in results):
        return statistics
    bad = [{"name": bad.name, "reason": bad.reason} for result in results for bad in result.bad_repositories]
    copies = sum(result.kept_copies_of_held_out for result in results)
    more = {"copies_of_held_out_in_train": copies} if copies else {}
    duplicates = sum(result.kept_duplicates for result in results)
    more |= {"duplicates_in_train": duplicates} if duplicates else {}
    return {**statistics, **more, "bad_repositories": bad, "ledger": _ledger(results, filters)}


def _ledger(results: Sequence[TaskMarker], filters: FilterCounts) -> dict[str, Any]:
    """Files and bytes that the sources gave, by kind of source, and what became of them: both sides are equal."""
    seen: dict[str, Counter[str]] = {}
    for result in results:
        for kind, counts in result.seen.items():
            seen.setdefault(kind, Counter()).update(counts)
    outcomes = {name: vars(tally) for name, tally in filters.reasons.items() if tally.files}
    return {
        "seen": {kind: dict(counts) for kind, counts in sorted(seen.items())},
        "packed": outcomes.pop(KEPT, {"files": 0, "bytes": 0}),
        "dropped": outcomes,
    }


def _split_statistics(rows: Sequence[dict[str, Any]], config: PackingConfig) -> dict[str, Any]:
    """Sums over tasks, and shares of the sums; a share of nothing is None."""
    names = [*RowCounts.__dataclass_fields__, "repositories"]
    total: dict[str, Any] = {name: sum(task[name] for task in rows) for name in names}
    languages: Counter[str] = Counter()
    for task in rows:
        languages.update(task["tokens_by_language"])
    count, unmixed = total["rows"], total["rows"] - total["mixed_rows"]
    return {
        **total,
        "tokens_by_language": dict(languages),
        "fill": _share(total["tokens"], count * config.sequence_length),
        "mixed_share": _share(total["mixed_rows"], count),
        "single_snippet_share": _share(total["single_snippet_rows"], count),
        "single_file_share_of_unmixed": _share(total["single_file_rows"], unmixed),
        "kept_token_share": _share(total["text_tokens"] - total["dropped_tokens"], total["text_tokens"]),
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None

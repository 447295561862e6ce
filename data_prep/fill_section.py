"""How evenly the tasks of a data set filled their rows, and which of them stand out."""

from collections.abc import Sequence

import numpy as np

from data_prep.tools.stats.charts import Histogram, Mark, Section
from data_prep.tools.stats.counts import ShardFill

_BINS = 24
# Tukey's far-out fence: a task beyond three interquartile ranges of the quartiles is not of the same kind as the rest.
_FENCE = 3.0
# Tasks are never alike to the last digit; a smaller difference than this is not worth a name.
_LEAST_DIFFERENCE = 0.01
_NAMED = 10


def outliers(fills: Sequence[ShardFill]) -> list[ShardFill]:
    """Shards whose fill lies far outside that of the others, the worst first."""
    values = np.array([shard.fill for shard in fills])
    if not len(values):
        return []
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    reach = max(_FENCE * (high - low), _LEAST_DIFFERENCE)
    found = [shard for shard in fills if not low - reach <= shard.fill <= high + reach]
    return sorted(found, key=lambda shard: -abs(shard.fill - middle))


def fill_section(fills: Sequence[ShardFill], split: str) -> Section:
    """The spread of fill over the shards of a split, outliers named."""
    values = np.array([shard.fill for shard in fills])
    strange = outliers(fills)
    rows = [("shards", f"{len(fills):,}", "")]
    for name, quantile in (("least", 0.0), ("25 %", 0.25), ("median", 0.5), ("75 %", 0.75), ("most", 1.0)):
        rows += [(name, f"{np.quantile(values, quantile):.2%}", "")] if len(values) else []
    rows += [(f"outlier: {shard.path}", f"{shard.fill:.2%}", f"{shard.rows:,} rows") for shard in strange[:_NAMED]]
    rows += [(f"{len(strange) - _NAMED} more outliers", "", "")] if len(strange) > _NAMED else []
    told = f"{len(strange)} stand out" if strange else "none stands out"
    text = f"Share of filled slots of each shard of {split} (one a task): {told}."
    return Section("Fill by task", text, ("", "fill", ""), tuple(rows), _chart(values) if len(values) else None)


def _chart(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Histogram:
    low = min(float(values.min()), float(values.max()) - 0.02)
    counts, edges = np.histogram(values, bins=_BINS, range=(low, float(values.max()) + 1e-9))
    mark = Mark(float(np.median(values)), "median")
    return Histogram("fill", "shards", tuple(edges.tolist()), tuple(counts.tolist()), (mark,), is_share=True)

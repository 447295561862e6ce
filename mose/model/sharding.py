"""Which dimension of each parameter tensor parallelism cuts: one table, which the trainer and the exporter both read."""

import re
from collections.abc import Iterable
from enum import Enum

from mose.errors import MoseError


class Sharding(Enum):
    """How a parameter is spread over tensor-parallel ranks."""

    COLUMN = "column"
    """Cut along dimension 0 (outputs); the layer's output is cut, too."""
    ROW = "row"
    """Cut along dimension 1 (inputs); the partial outputs are summed over ranks."""
    VOCABULARY = "vocabulary"
    """Cut along dimension 0, which counts vocabulary rows padded to a multiple of 512."""
    REPLICATE = "replicate"
    """The same on every rank."""

    @property
    def dimension(self) -> int | None:
        """The dimension that is cut, or None."""
        return {Sharding.COLUMN: 0, Sharding.VOCABULARY: 0, Sharding.ROW: 1}.get(self)


_LAYER = r"starEncoder2\.layers\.\d+\."

# DeepSpeed matches with re.match, a prefix match: every pattern therefore ends in `$`.
SHARDING_TABLE: tuple[tuple[str, Sharding], ...] = (
    (r"starEncoder2\.embed_tokens\.weight$", Sharding.VOCABULARY),
    (_LAYER + r"self_attn\.[qkv]_proj\.(weight|bias)$", Sharding.COLUMN),
    (_LAYER + r"self_attn\.o_proj\.weight$", Sharding.ROW),
    (_LAYER + r"self_attn\.o_proj\.bias$", Sharding.REPLICATE),
    (_LAYER + r"mlp\.c_fc\.(weight|bias)$", Sharding.COLUMN),
    (_LAYER + r"mlp\.c_proj\.weight$", Sharding.ROW),
    (_LAYER + r"mlp\.c_proj\.bias$", Sharding.REPLICATE),
    (_LAYER + r"(input|post_attention)_layernorm\.(weight|bias)$", Sharding.REPLICATE),
    (r"starEncoder2\.norm\.(weight|bias)$", Sharding.REPLICATE),
    (r"pooler\.dense\.(weight|bias)$", Sharding.REPLICATE),
    (r"cls\.conditional_embeddings\.weight$", Sharding.REPLICATE),
    (r"cls\.predictions\.transform\.(dense|LayerNorm)\.(weight|bias)$", Sharding.REPLICATE),
    (r"cls\.predictions\.decoder\.weight$", Sharding.VOCABULARY),
    (r"cls\.predictions\.bias$", Sharding.VOCABULARY),
    (r"cls\.seq_relationship\.(weight|bias)$", Sharding.REPLICATE),
)


def matching_rows(name: str) -> list[Sharding]:
    """Every row of the table that a parameter's name matches; a test checks that it is exactly one."""
    return [kind for pattern, kind in SHARDING_TABLE if re.match(pattern, name)]


def sharding_of(name: str) -> Sharding:
    """The table's row for one parameter.

    Raises:
        MoseError: the table has no row, or more than one, for this name.
    """
    kinds = matching_rows(name)
    if len(kinds) != 1:
        raise MoseError(f"sharding table: {name}: {len(kinds)} rows match, expected exactly one")
    return kinds[0]


def patterns_of(*kinds: Sharding) -> list[str]:
    """The patterns of these kinds, in table order."""
    return [pattern for pattern, kind in SHARDING_TABLE if kind in kinds]


def used_patterns(names: Iterable[str], *kinds: Sharding) -> list[str]:
    """Those of `patterns_of` that some parameter matches: a model may have no final norm or no layer index."""
    known = list(names)
    return [pattern for pattern in patterns_of(*kinds) if any(re.match(pattern, name) for name in known)]

"""The identity of a run: every value that its numbers depend on, and which of them may differ when a checkpoint is resumed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mose.config import to_plain
from mose.errors import MoseError
from pretrain.config.deepspeed_options import WITHOUT_EFFECT_ON_NUMBERS
from pretrain.config.run import PretrainConfig

WORLD_SIZE = "world_size"
DEEPSPEED = "deepspeed"
DATA_FINGERPRINT = "data.fingerprint"
DATA_GENERATIONS = "data.generations"
"""Per data set the content roots of its generations; the fingerprint stays the same when `mose-data remove` empties rows."""
TENSOR_RANKS = "parallel.tensor_parallel_size"
ZERO_STAGE = "parallel.zero_stage"
ZERO_PARTITION = "parallel.zero_partition_ranks"
PRECISION = "parallel.precision"
WEIGHT_ORDER = "parallel.weight_order"
"""How ZeRO 1 and 2 lay out the weights of a partition, no field of the config; checkpoints without it have the model's order."""
MICRO_BATCH_ROWS = "batch.micro_batch_rows"
MICRO_BATCH_TOKENS = "batch.micro_batch_tokens"
# Fields that may differ between the run that saved and the run that resumes, since no number depends on them. A data set
# counts by its fingerprint, not by its path or staging; so do the sources of a mixture, together with their weights.
FREE_FIELDS = (
    "output",
    "max_steps",
    "intervals",
    "stability.max_skipped_in_a_row",
    "parallel.collective_timeout_seconds",
    "parallel.activation_checkpointing",
    "data.dataset",
    "data.staging",
    "data.mixture.dataset",
    "data.mixture.name",
    *(f"{DEEPSPEED}.{name}" for name in WITHOUT_EFFECT_ON_NUMBERS),
)
# Fields that distribute the same sums over devices: they change the last bits of a loss and nothing else. So do the raw
# DeepSpeed options that are passed through and not free: bucket sizes decide in which order gradients are added.
_LAYER_LAYOUT = ("parallel.sequence_parallel", "parallel.compile", "parallel.deterministic", "parallel.threads_per_rank")
LAYOUT_FIELDS = (
    WORLD_SIZE,
    TENSOR_RANKS,
    ZERO_STAGE,
    ZERO_PARTITION,
    WEIGHT_ORDER,
    MICRO_BATCH_ROWS,
    MICRO_BATCH_TOKENS,
    *_LAYER_LAYOUT,
)
# If one of these differs, the ranks of this run need other parts than those saved, and the checkpoint has to be converted.
RESHAPING_FIELDS = (WORLD_SIZE, TENSOR_RANKS, ZERO_STAGE, ZERO_PARTITION, WEIGHT_ORDER, PRECISION)
_SHAPES = ("vocabulary_size", "width", "feed_forward_width", "num_layers", "num_heads", "num_key_value_heads", "exit_layers")
# The stored tensors have these shapes, and the optimiser's states these groups: not even --allow-change can change them.
_PARTS = ("layer_index_width", "norm_after_last_layer")
_GROUPS = ("optimizer.decay_biases_and_norms", "optimizer.vocabulary_learning_rate_factor")
FIXED_FIELDS = (*(f"model.{name}" for name in (*_SHAPES, *_PARTS)), *_GROUPS)


def config_values(
    config: PretrainConfig, data_fingerprint: str, world_size: int, generations: Sequence[Sequence[str]] = ()
) -> dict[str, Any]:
    """Every value that the numbers of a run depend on, by dotted name: the identity stored with a checkpoint."""
    flat = _flatten(to_plain(config))
    kept = {name: value for name, value in flat.items() if not _is_free(name)}
    content = {DATA_GENERATIONS: [list(roots) for roots in generations]} if generations else {}
    order = {WEIGHT_ORDER: "aligned"} if is_aligned(config.parallel.zero_stage) else {}
    return kept | {DATA_FINGERPRINT: data_fingerprint, WORLD_SIZE: world_size} | order | content


def is_aligned(zero_stage: int) -> bool:
    """Whether a stage lays its weights out aligned; 3 cuts each parameter by itself, and 0 partitions nothing."""
    return zero_stage in (1, 2)


def _is_free(name: str) -> bool:
    """Whether no number depends on a field; `data.mixture.0.dataset` is looked up without its index."""
    bare = ".".join(part for part in name.split(".") if not part.isdecimal())
    return any(f"{bare}.".startswith(f"{free}.") for free in FREE_FIELDS)


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        listed = isinstance(value, list) and bool(value) and isinstance(value[0], dict)
        inner = {str(place): item for place, item in enumerate(value)} if listed else value
        flat |= _flatten(inner, f"{prefix}{name}.") if isinstance(inner, dict) else {f"{prefix}{name}": value}
    return flat


@dataclass(frozen=True)
class Change:
    """One value that differs between the run that saved and the run that resumes."""

    field: str
    was: Any
    now: Any

    @property
    def is_layout(self) -> bool:
        """Whether it only distributes the same sums over devices in another way."""
        return self.field in LAYOUT_FIELDS or self.field.startswith(f"{DEEPSPEED}.")

    @property
    def is_generation(self) -> bool:
        """Whether the data sets are those of the checkpoint after removals: rows have kept their numbers, some are shorter."""
        if self.field != DATA_GENERATIONS or not self.was or not self.now or len(self.was) != len(self.now):
            return False
        return all(now[: len(was)] == was for was, now in zip(self.was, self.now, strict=True))

    @property
    def kind(self) -> str:
        """Why a run may resume in spite of it: `layout`, `generation` or `allowed`."""
        return "layout" if self.is_layout else "generation" if self.is_generation else "allowed"

    def __str__(self) -> str:
        if self.field != DATA_GENERATIONS:
            return f"made with {self.field} = {self.was}, this run has {self.now}"
        return f"made with {self.field} = {_generations_in_words(self.was)}, this run has {_generations_in_words(self.now)}"

    def plain(self) -> dict[str, Any]:
        """For a line of JSON."""
        return asdict(self) | {"kind": self.kind}


def _generations_in_words(generations: Sequence[Sequence[str]] | None) -> str:
    return ", ".join(f"generation {len(roots)} ({roots[-1][:16]}...)" for roots in generations or ()) or "none"


def changes_between(saved: dict[str, Any], now: dict[str, Any]) -> tuple[Change, ...]:
    """Every value that differs, by name."""
    names = sorted(saved.keys() | now.keys())
    return tuple(Change(name, saved.get(name), now.get(name)) for name in names if saved.get(name) != now.get(name))


def check_changes(checkpoint: Path, saved: dict[str, Any], now: dict[str, Any], allowed: Sequence[str]) -> tuple[Change, ...]:
    """The changes with which a run may resume: of the layout, by removals from its data sets, and those that `allowed` names.

    Raises:
        MoseError: a value differs that is not allowed or cannot change, or ZeRO 3 meets another layout.
    """
    unknown = [name for name in allowed if name not in now and name not in saved]
    if unknown:
        raise MoseError(
            f"--allow-change {unknown[0]}: no such field; expected a dotted name as in config.yaml, or {DATA_FINGERPRINT}"
        )
    # A checkpoint does not name fields that were added after it was made; it was made as their defaults say.
    saved = {name: value for name, value in _flatten(to_plain(PretrainConfig())).items() if name in now} | saved
    if DATA_GENERATIONS not in saved:
        now = {name: value for name, value in now.items() if name != DATA_GENERATIONS}
    changes = changes_between(saved, now)
    for change in changes:
        difference = f"{checkpoint}: {change}"
        if change.field in FIXED_FIELDS:
            raise MoseError(f"{difference}; the stored tensors cannot be resumed so: expected {change.was}")
        if change.kind == "allowed" and change.field not in allowed:
            raise MoseError(f"{difference}; a run resumes with the config it began with, or with --allow-change {change.field}")
    _check_zero_3(checkpoint, saved, now, changes)
    return changes


def needs_conversion(changes: Sequence[Change]) -> bool:
    """Whether the saved parts have to be merged and split again for another layout."""
    return any(change.field in RESHAPING_FIELDS for change in changes)


def _check_zero_3(checkpoint: Path, saved: dict[str, Any], now: dict[str, Any], changes: Sequence[Change]) -> None:
    if needs_conversion(changes) and 3 in (saved.get(ZERO_STAGE), now.get(ZERO_STAGE)):
        reason = "DeepSpeed restores weight decay, step counts and tensor slices of ZeRO 3 wrongly in another layout"
        way_out = f"expected {describe_layout(saved)}, or a new run with start_from an exported checkpoint"
        raise MoseError(
            f"{checkpoint}: made at {describe_layout(saved)}, this run is at {describe_layout(now)}: {reason}; {way_out}"
        )


def describe_layout(identity: dict[str, Any]) -> str:
    """A layout in words, e.g. `data 2 x tensor 1, ZeRO 1, bf16, 4 rows per micro-batch`."""
    tensor = identity.get(TENSOR_RANKS) or 1
    data = (identity.get(WORLD_SIZE) or 0) // tensor
    partition = identity.get(ZERO_PARTITION) or 0
    over = f" over {partition} ranks" if partition else ""
    kind = f"ZeRO {identity.get(ZERO_STAGE)}{over}, {identity.get(PRECISION)}"
    return f"data {data} x tensor {tensor}, {kind}, {identity.get(MICRO_BATCH_ROWS)} rows per micro-batch"

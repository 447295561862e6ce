"""The configuration of one pre-training run; each section validates itself, `resolve()` fills in what depends on the data."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from mose.config import require
from mose.model.model_config import ModelConfig
from mose.schedule import ScheduleConfig, scaled_peak
from pretrain.config.deepspeed_options import check_deepspeed_options, check_reduced_over_all
from pretrain.config.objective import ObjectiveConfig
from pretrain.data.masking import MASKED_SHARE
from pretrain.data.order import BLOCK_ROWS, WINDOW_ROWS

PRECISIONS = ("fp32", "bf16")
CHECKPOINTING = ("none", "selective", "full")


@dataclass(frozen=True)
class MixtureSource:
    """One data set of a mixture."""

    dataset: str
    """Folder or URL of a data set written by `mose-data pack`."""
    weight: float = 1.0
    """Rows of this source in proportion to the others' weights; at least .001 of their sum."""
    name: str = ""
    """What metrics call it (data/rows/NAME); default: the last part of `dataset`."""

    def __post_init__(self) -> None:
        require(bool(self.dataset), "data.mixture.dataset: not given, expected a folder written by `mose-data pack`")
        positive = math.isfinite(self.weight) and self.weight > 0
        require(positive, f"data.mixture.weight: {self.weight} of {self.dataset}, expected a number above 0")

    @property
    def label(self) -> str:
        """The name, given or taken from the folder."""
        return self.name or self.dataset.rstrip("/").rpartition("/")[2]


@dataclass(frozen=True)
class StagingConfig:
    """Staging of the next rows on the node's own disk: for a data set on an object store or a slow file system."""

    folder: str = ""
    """Local folder that the ranks of a node share; empty reads the shards where they are, which must then be local."""
    max_bytes: int = 32 << 30
    """Most bytes in the folder on each node; at least two windows (data.window_rows) of each data set must fit."""
    read_ahead_windows: int = 1
    """Shuffle windows that are staged before the run reaches them, as far as max_bytes allows."""
    concurrency: int = 8
    """Concurrent reads per rank."""
    attempts: int = 5
    """Attempts at a read that fails or returns damaged rows, before the run ends."""
    retry_seconds: float = 0.5
    """Wait before the second attempt, with jitter; doubled for each further one."""

    def __post_init__(self) -> None:
        for name in ("max_bytes", "concurrency", "attempts"):
            require(getattr(self, name) > 0, f"data.staging.{name}: {getattr(self, name)}, expected 1 or more")
        for name in ("read_ahead_windows", "retry_seconds"):
            require(getattr(self, name) >= 0, f"data.staging.{name}: {getattr(self, name)}, expected 0 or more")
        require("://" not in self.folder, f"data.staging.folder: {self.folder}, expected a folder on the node's own disk")


@dataclass(frozen=True)
class DataConfig:
    """Where the rows come from and how they are ordered and masked."""

    dataset: str = ""
    """Folder written by `mose-data pack`, or its URL (s3://...; needs data.staging.folder)."""
    mixture: tuple[MixtureSource, ...] = ()
    """Several data sets with weights, in place of `dataset`; all of one tokenizer and row length."""
    split: str = "train"
    """Split to train on."""
    validation_split: str = "held_out"
    """Split to validate on; of a mixture, each source's first rows, as many as its weight says."""
    block_rows: int = BLOCK_ROWS
    """Neighbouring rows of a read block; blocks are permuted over the whole data set."""
    window_rows: int = WINDOW_ROWS
    """Rows of a shuffle window, in which the rows of the permuted blocks are shuffled."""
    masking_share: float = MASKED_SHARE
    """Share of real, ordinary tokens that are predicted (paper section 2.1)."""
    staging: StagingConfig = field(default_factory=StagingConfig)

    def __post_init__(self) -> None:
        require(self.block_rows > 0, f"data.block_rows: {self.block_rows}, expected 1 or more")
        require(self.window_rows > 0, f"data.window_rows: {self.window_rows}, expected 1 or more")
        require(0 < self.masking_share < 1, f"data.masking_share: {self.masking_share}, expected a share between 0 and 1")
        require(not (self.dataset and self.mixture), "data.mixture: given beside data.dataset, expected one of them")
        for name, values in (("dataset", [s.dataset for s in self.mixture]), ("name", [s.label for s in self.mixture])):
            twice = next((value for value in values if values.count(value) > 1), "")
            require(not twice, f"data.mixture.{name}: {twice} stands twice, expected another {name} for each source")


@dataclass(frozen=True)
class BatchConfig:
    """Batch sizes."""

    global_rows: int = 2048
    """Rows of one optimiser step over all devices: 2,048 x 2,048 slots are the paper's 4M tokens (section 3.1)."""
    micro_batch_rows: int = 4
    """Full rows per forward and backward pass on one device; more rows where they are shorter (see micro_batch_tokens)."""
    micro_batch_tokens: int = 0
    """Most real tokens of one forward and backward pass, for which memory is planned; 0: micro_batch_rows x model.max_length."""

    def __post_init__(self) -> None:
        require(self.global_rows > 0, f"batch.global_rows: {self.global_rows}, expected 1 or more")
        require(self.micro_batch_rows > 0, f"batch.micro_batch_rows: {self.micro_batch_rows}, expected 1 or more")
        require(self.micro_batch_tokens >= 0, f"batch.micro_batch_tokens: {self.micro_batch_tokens}, expected 0 or more")


@dataclass(frozen=True)
class ParallelConfig:
    """The layout of the run over devices; the data-parallel size is the world size divided by the tensor-parallel size."""

    tensor_parallel_size: int = 1
    """Ranks that share each layer; 1 suits the 1B model, more is for models that do not fit."""
    sequence_parallel: bool = False
    """Also divide norms, dropout and residuals over the ranks that share a layer, by tokens; saves activation memory."""
    zero_stage: int = 1
    """DeepSpeed ZeRO stage 0-3; 0 exists for fp32 comparisons and runs as 1."""
    zero_partition_ranks: int = 0
    """Data ranks that divide the optimiser states among them, such as those of a node: each such group holds all of them and
    gathers the updated weights by itself, over its fast links. 0: all data ranks. At ZeRO 1 without tensor parallelism."""
    precision: str = "bf16"
    """bf16 (GPUs) or fp32 (CPU, comparisons)."""
    gradient_communication: str = "fp32"
    """Type in which data ranks sum gradients: fp32, or in a bf16 run bf16, half the traffic and eight bits of each sum."""
    activation_checkpointing: str = "none"
    """none; selective: recompute attention's intermediates and the feed-forward activation; full: recompute whole layers."""
    compile: bool = False
    """Run each layer through torch.compile; dropout masks then differ from those of an uncompiled run."""
    deterministic: bool = False
    """Only kernels with a fixed order of sums, slower, so that a resumed run on GPUs is equal bit by bit, as it is on CPUs."""
    threads_per_rank: int = 1
    """CPU threads per rank; part of the layout, since it changes the order of sums."""
    collective_timeout_seconds: int = 600
    """Timeout of a collective; the run ends when one waits longer. A hang of 512 GPUs costs 85 GPU-hours before it ends; the
    slowest stage that ranks reach at different times, reading a checkpoint, takes a few minutes."""

    def __post_init__(self) -> None:
        size = self.tensor_parallel_size
        require(size in (1, 2, 4), f"parallel.tensor_parallel_size: {size}, expected 1, 2 or 4")
        require(self.zero_stage in (0, 1, 2, 3), f"parallel.zero_stage: {self.zero_stage}, expected 0, 1, 2 or 3")
        require(self.precision in PRECISIONS, f"parallel.precision: {self.precision!r}, expected one of {PRECISIONS}")
        reason = "DeepSpeed's bf16 optimiser at stage 0 steps once with empty gradients and clips by a wrong norm"
        require(self.precision == "fp32" or self.zero_stage > 0, f"parallel.zero_stage: 0 with bf16: {reason}; use 1")
        sent = f"parallel.gradient_communication: {self.gradient_communication!r}, expected fp32, or bf16 in a bf16 run"
        require(self.gradient_communication in ("fp32", self.precision), sent)
        alone = "parallel.sequence_parallel: true without tensor parallelism, expected parallel.tensor_parallel_size 2 or 4"
        require(size > 1 or not self.sequence_parallel, alone)
        kind = f"parallel.activation_checkpointing: {self.activation_checkpointing!r}, expected one of {CHECKPOINTING}"
        require(self.activation_checkpointing in CHECKPOINTING, kind)
        self._require_compilable()
        partition = f"parallel.zero_partition_ranks: {self.zero_partition_ranks}, expected 0 or more"
        require(self.zero_partition_ranks >= 0, partition)
        only = "expected 0, or parallel.zero_stage 1 and parallel.tensor_parallel_size 1"
        require(self.zero_partition_ranks == 0 or (self.zero_stage == 1 and size == 1), f"{partition.partition(',')[0]}, {only}")
        require(self.threads_per_rank > 0, f"parallel.threads_per_rank: {self.threads_per_rank}, expected 1 or more")

    def _require_compilable(self) -> None:
        if not self.compile:
            return
        hooks = "DeepSpeed's hooks inside each layer are compiled anew until torch gives up; use stage 1 or 2"
        require(self.zero_stage < 3, f"parallel.compile: true with ZeRO 3: {hooks}")
        compiler = "the compiler chooses itself which cheap results it computes again; use none or full"
        selective = self.activation_checkpointing == "selective"
        require(not selective, f"parallel.activation_checkpointing: selective with parallel.compile: {compiler}")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (paper section 3.1); clipping and decay exclusions are ours (docs/decisions.md)."""

    beta1: float = 0.9
    """Decay of the mean of gradients (paper section 3.1)."""
    beta2: float = 0.95
    """Decay of the mean of squares (paper section 3.1)."""
    epsilon: float = 1e-6
    """Added to the denominator (paper section 3.1)."""
    weight_decay: float = 0.1
    """Decoupled weight decay (paper section 3.1)."""
    decay_biases_and_norms: bool = False
    """Whether biases and LayerNorm weights decay, too; the paper does not say."""
    gradient_clipping: float = 1.0
    """Largest gradient norm; 0 switches clipping off. The paper does not say."""
    vocabulary_learning_rate_factor: float = 1.0
    """Learning rate of the token embeddings and of the output projection, as a multiple of the schedule's (Megatron's
    `--decoupled-lr`). 1 is the paper's; narrow models need more (docs/decisions.md). Decay per step is that of the others."""

    def __post_init__(self) -> None:
        require(0 <= self.beta1 < 1, f"optimizer.beta1: {self.beta1}, expected a number in [0, 1)")
        require(0 <= self.beta2 < 1, f"optimizer.beta2: {self.beta2}, expected a number in [0, 1)")
        require(self.gradient_clipping >= 0, f"optimizer.gradient_clipping: {self.gradient_clipping}, expected 0 or more")
        factor = self.vocabulary_learning_rate_factor
        require(0 < factor < float("inf"), f"optimizer.vocabulary_learning_rate_factor: {factor}, expected a number above 0")


@dataclass(frozen=True)
class IntervalConfig:
    """Intervals of logging, validation and checkpoints, in optimiser steps."""

    log_every_steps: int = 10
    """Steps between two lines of metrics."""
    validate_every_steps: int = 1000
    """Steps between two validations; 0 validates only at the end."""
    validation_rows: int = 2048
    """Rows of each validation, from the start of the validation split; 0 skips validation."""
    checkpoint_every_steps: int = 500
    """Steps between two checkpoints; the last step is always saved."""
    keep_last_checkpoints: int = 3
    """Number of newest checkpoints to keep."""
    permanent_every_steps: int = 10000
    """Checkpoints at multiples of this are never removed; 0 keeps none."""
    heartbeat_seconds: float = 30.0
    """Seconds between two updates of heartbeat.json."""

    def __post_init__(self) -> None:
        for name in ("log_every_steps", "checkpoint_every_steps", "keep_last_checkpoints", "heartbeat_seconds"):
            require(getattr(self, name) > 0, f"intervals.{name}: {getattr(self, name)}, expected 1 or more")


@dataclass(frozen=True)
class StabilityConfig:
    """Which steps are skipped, and when a run gives up. A step with a loss or gradient that is not finite is always skipped."""

    loss_outlier_sigmas: float = 6.0
    """Skip a step whose total loss lies this many standard deviations above the running mean; 0 skips none."""
    norm_outlier_sigmas: float = 6.0
    """Log and count, but do not skip, a gradient norm this many standard deviations above the running mean; 0: none."""
    warmup_steps: int = 100
    """Steps before a loss or norm can be an outlier."""
    horizon_steps: int = 100
    """Steps over which mean and variance are averaged."""
    max_skipped_in_a_row: int = 10
    """End the run with exit code 3 after this many skipped steps in a row; 0: never."""

    def __post_init__(self) -> None:
        for name in ("loss_outlier_sigmas", "norm_outlier_sigmas", "max_skipped_in_a_row"):
            require(getattr(self, name) >= 0, f"stability.{name}: {getattr(self, name)}, expected 0 or more")
        for name in ("warmup_steps", "horizon_steps"):
            require(getattr(self, name) > 1, f"stability.{name}: {getattr(self, name)}, expected 2 or more")


@dataclass(frozen=True)
class PretrainConfig:
    """One pre-training run."""

    output: str = "run"
    """Run directory; an existing run continues from its newest complete checkpoint (see --resume)."""
    seed: int = 0
    """Seed of initial weights, order, masks and dropout."""
    max_steps: int = 245000
    """Optimiser steps of the whole run (paper section 3.1)."""
    start_from: str = ""
    """Converted checkpoint whose weights a new run begins with (`mose-pretrain init`, `export`); empty: drawn from the seed."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    intervals: IntervalConfig = field(default_factory=IntervalConfig)
    stability: StabilityConfig = field(default_factory=StabilityConfig)
    deepspeed: dict[str, bool | int | float | dict[str, bool | int | float | Any]] = field(default_factory=dict)
    """Raw DeepSpeed options on top of ours: communication, logging. A dotted option replaces a whole zero_optimization."""

    def __post_init__(self) -> None:
        check_deepspeed_options(self.deepspeed)
        if self.parallel.zero_partition_ranks:
            check_reduced_over_all(self.deepspeed)
        size, model = self.parallel.tensor_parallel_size, self.model
        require(self.max_steps > 0, f"max_steps: {self.max_steps}, expected 1 or more")
        heads = f"parallel.tensor_parallel_size: {size} does not divide model.num_heads {model.num_heads}"
        require(model.num_heads % size == 0, heads)
        groups = f"parallel.tensor_parallel_size: {size} does not divide model.num_key_value_heads {model.num_key_value_heads}"
        groups += ": each rank needs whole key-value heads, so they bound the tensor-parallel size"
        require(model.num_key_value_heads % size == 0, groups)
        wide = f"parallel.tensor_parallel_size: {size} does not divide model.feed_forward_width {model.feed_forward_width}"
        require(model.feed_forward_width % size == 0, wide)
        self.objective.check_exits(model.exit_layers, model.num_layers)

    @property
    def micro_batch_tokens(self) -> int:
        """Most real tokens of one forward pass on one device."""
        return self.batch.micro_batch_tokens or self.batch.micro_batch_rows * self.model.max_length

    def resolve(self, vocabulary_size: int) -> "PretrainConfig":
        """The config that is run and written down: what depends on the data set or the width filled in, ZeRO 0 run as 1."""
        model, schedule = self.model.resolve(vocabulary_size), self.schedule
        peak = schedule.peak_learning_rate or scaled_peak(model.width)
        schedule = dataclasses.replace(schedule, peak_learning_rate=peak)
        small = f"model.vocabulary_size: {model.vocabulary_size} is smaller than the data set's vocabulary of {vocabulary_size}"
        require(model.vocabulary_size >= vocabulary_size, small)
        parallel = dataclasses.replace(self.parallel, zero_stage=max(1, self.parallel.zero_stage))
        return dataclasses.replace(self, model=model, schedule=schedule, parallel=parallel)


@dataclass(frozen=True)
class Layout:
    """The numbers of ranks of a run, and how the global batch divides over them."""

    world_size: int
    tensor_ranks: int
    data_ranks: int
    micro_batches: int
    """Micro-batches per data rank in a step whose rows are all full; fewer where rows are short."""
    partition_ranks: int = 0
    """Data ranks that divide the optimiser states among them; 0: all of them."""

    @classmethod
    def of(cls, config: PretrainConfig, world_size: int) -> "Layout":
        """The layout of `world_size` ranks.

        Raises:
            MoseError: the ranks do not divide by the tensor-parallel size, or there are more of them than rows.
        """
        tensor_ranks, batch = config.parallel.tensor_parallel_size, config.batch
        ranks = f"parallel.tensor_parallel_size: {tensor_ranks} does not divide the {world_size} ranks that were launched"
        require(world_size % tensor_ranks == 0, ranks)
        data_ranks = world_size // tensor_ranks
        few = f"batch.global_rows: {batch.global_rows} rows for {data_ranks} data ranks, expected at least one row each"
        require(batch.global_rows >= data_ranks, few)
        full_rows = max(1, config.micro_batch_tokens // config.model.max_length)
        rows = math.ceil(batch.global_rows / data_ranks)
        partition = config.parallel.zero_partition_ranks
        require(
            data_ranks % (partition or 1) == 0,
            f"parallel.zero_partition_ranks: {partition} does not divide the {data_ranks} data ranks that were launched",
        )
        return cls(world_size, tensor_ranks, data_ranks, math.ceil(rows / full_rows), partition)

    @property
    def zero_ranks(self) -> int:
        """Data ranks over which ZeRO partitions."""
        return self.partition_ranks or self.data_ranks

    @property
    def parts(self) -> int:
        """Parts of a checkpoint: each rank of one copy of the optimiser states writes one."""
        return self.zero_ranks * self.tensor_ranks

"""The layouts that are tested, what each is compared with, and how far it may differ.

Gradients and norms are compared, not losses alone: Adam with clipping hides a wrong scale (norm .667 for 5.335 leaves the
losses equal to 8e-8). In bf16 the first step is compared, before rounding has had steps to grow.
"""

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.initialization import initialize
from mose.model.modeling_mose import ModularStarEncoder
from mose.schedule import learning_rate
from pretrain.config.run import PretrainConfig
from pretrain.parallel.engine import parameter_groups
from tests.pretrain.cells import loader_of, tiny_config

STEPS = 5


@dataclass(frozen=True)
class Cell:
    """One layout."""

    data_ranks: int = 1
    tensor_ranks: int = 1
    micro_batch_rows: int = 2
    zero_stage: int = 1
    sequence_parallel: bool = False
    activation_checkpointing: str = "none"
    precision: str = "fp32"
    compile: bool = False
    zero_partition_ranks: int = 0

    def __str__(self) -> str:
        partition = f"over{self.zero_partition_ranks}" * (self.zero_partition_ranks > 0)
        flags = [partition, self.activation_checkpointing * (self.activation_checkpointing != "none"), "compile" * self.compile]
        name = f"dp{self.data_ranks}-tp{self.tensor_ranks}{'sp' * self.sequence_parallel}"
        name += f"-rows{self.micro_batch_rows}-zero{self.zero_stage}-{self.precision}"
        return "-".join((name, *filter(None, flags)))

    @property
    def ranks(self) -> int:
        """Processes that the cell takes."""
        return self.data_ranks * self.tensor_ranks

    @property
    def key_value_heads(self) -> int:
        """The tiny model has two, but each tensor rank needs one."""
        return max(2, self.tensor_ranks)

    def config(self, dataset: Path, dropout: float = 0.0) -> PretrainConfig:
        """The tiny run in this layout."""
        plan = (self.tensor_ranks, self.micro_batch_rows, self.zero_stage, self.precision, self.key_value_heads, dropout)
        layers = {
            name: getattr(self, name)
            for name in ("sequence_parallel", "activation_checkpointing", "compile", "zero_partition_ranks")
        }
        return tiny_config(dataset, *plan, **layers)


def _over_stages(**fields: Any) -> list[Cell]:
    return [Cell(zero_stage=stage, **fields) for stage in (0, 1, 2, 3)]


def _half(cells: list[Cell]) -> list[Cell]:
    return [replace(cell, precision="bf16") for cell in cells if cell.zero_stage > 0]


SP = {"tensor_ranks": 2, "sequence_parallel": True}
DEGREES = [Cell(*degrees) for degrees in itertools.product((1, 2), (1, 2), (1, 2, 4))]
BASIC = [replace(cell, zero_stage=stage) for cell in DEGREES for stage in (0, 1, 2, 3)]
SEQUENCE = [
    *_over_stages(**SP),
    *_over_stages(data_ranks=2, **SP),
    Cell(micro_batch_rows=1, **SP),
    Cell(micro_batch_rows=4, **SP),
]
FOUR = [*_over_stages(tensor_ranks=4), *_over_stages(tensor_ranks=4, sequence_parallel=True)]
_KINDS = ("selective", "full")
_RECOMPUTED_ON_SHARDS = [cell for kind in _KINDS for cell in _over_stages(activation_checkpointing=kind, **SP)]
RECOMPUTED = [
    *_RECOMPUTED_ON_SHARDS,
    *(
        Cell(data, tensor, zero_stage=stage, activation_checkpointing=kind)
        for kind in _KINDS
        for data, tensor in ((2, 1), (1, 2))
        for stage in (1, 3)
    ),
    *(replace(cell, activation_checkpointing="full") for cell in FOUR[-2:]),
]
HALF = _half([*_over_stages(data_ranks=2), *_over_stages(data_ranks=2, tensor_ranks=2), *FOUR[4:], *_RECOMPUTED_ON_SHARDS])
COMPILED = [
    replace(cell, compile=True)
    for cell in (
        Cell(),
        Cell(precision="bf16"),
        Cell(activation_checkpointing="full"),
        Cell(data_ranks=2, zero_stage=2),
        Cell(tensor_ranks=2),
        Cell(**SP),
    )
]
# Four data ranks as two nodes of two, as one node, and each a node of its own.
PARTITIONED = [
    *(Cell(4, zero_partition_ranks=ranks) for ranks in (0, 1, 2, 4)),
    Cell(4, micro_batch_rows=1, zero_partition_ranks=2),
    Cell(4, zero_partition_ranks=2, activation_checkpointing="selective"),
    Cell(4, precision="bf16", zero_partition_ranks=2),
    Cell(4, micro_batch_rows=1, precision="bf16", zero_partition_ranks=2),
    Cell(2, compile=True, zero_partition_ranks=1),
]
QUICK = [
    *(Cell(*degrees) for degrees in ((1, 1, 1), (1, 1, 4), (2, 1, 1), (1, 2, 1), (2, 2, 2), (2, 2, 4))),
    *(Cell(2, tensor, 2, stage) for stage in (0, 2, 3) for tensor in (1, 2)),
    Cell(1, 2, 1, 1, sequence_parallel=True),
    Cell(1, 2, 4, 1, sequence_parallel=True, activation_checkpointing="selective"),
    Cell(1, 2, 2, 3, sequence_parallel=True, activation_checkpointing="full"),
    Cell(2, 2, 2, 2, sequence_parallel=True, precision="bf16", activation_checkpointing="full"),
    Cell(2, 1, 2, 3, activation_checkpointing="selective"),
    Cell(1, 4, 2, 1),
    Cell(1, 4, 2, 2, sequence_parallel=True, activation_checkpointing="selective"),
    Cell(2, 2, 2, 1, precision="bf16"),
    Cell(4, micro_batch_rows=1, zero_partition_ranks=2),
    Cell(4, precision="bf16", zero_partition_ranks=2),
]
ALL = list(dict.fromkeys([*BASIC, *SEQUENCE, *FOUR, *RECOMPUTED, *HALF, *COMPILED, *PARTITIONED, *QUICK]))


def plain_loop(config: PretrainConfig) -> dict[str, Any]:
    """The same training without DeepSpeed, megatron, unpadding or chosen positions: padded rows, full logits, torch alone."""
    model = ModularStarEncoder(ModularStarEncoderConfig(**config.model.hugging_face()))
    initialize(model, config.model.initializer_range, config.seed)
    optimizer = torch.optim.AdamW(parameter_groups(model, config.optimizer), betas=(0.9, 0.95), eps=1e-6)
    loader = loader_of(config, 0, 1)
    outcome: dict[str, Any] = {"losses": [], "norms": []}
    for step in range(STEPS):
        loss = _plain_loss(model, loader.share(step * config.batch.global_rows), config)
        loss.backward()
        if step == 0:
            outcome["gradients"] = {name: p.grad.numpy().copy() for name, p in model.named_parameters() if p.grad is not None}
        outcome["losses"].append(loss.item())
        outcome["norms"].append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.gradient_clipping)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config.schedule) * group["factor"]
        optimizer.step()
        optimizer.zero_grad()
    return outcome


def _plain_loss(model: ModularStarEncoder, batches: Any, config: PretrainConfig) -> torch.Tensor:
    masked = sum(batch.num_masked for batch in batches)
    loss = torch.zeros(())
    for batch in batches:
        lengths = torch.diff(batch.cu_seqlens).tolist()
        ids = torch.nn.utils.rnn.pad_sequence(batch.input_ids_N.split(lengths), batch_first=True, padding_side="left")
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones(n) for n in lengths], batch_first=True, padding_side="left")
        output = model(input_ids=ids, attention_mask=mask, output_prediction_logits=True)
        labels_N = torch.full_like(batch.input_ids_N, -100).index_copy(0, batch.masked_N_indices, batch.labels_M)
        for index, layer in enumerate(config.model.exit_layers):
            logits_NV = output.prediction_logits[index][mask.bool()]
            mlm = F.cross_entropy(logits_NV, labels_N, ignore_index=-100, reduction="sum") / masked
            icc = F.cross_entropy(output.seq_relationship_logits[index], batch.mixed_B, reduction="sum")
            loss = loss + layer / config.model.num_layers * (mlm + icc / config.batch.global_rows)
    return loss


@dataclass(frozen=True)
class Differences:
    """How far a cell is from the plain loop; the norm is None at ZeRO 0, where DeepSpeed knows none."""

    loss: float
    """Largest relative difference of a step's loss."""
    gradient: float
    """Largest difference of a step-0 gradient, over the largest value of that tensor."""
    norm: float | None
    """Largest relative difference of a step's reported gradient norm."""

    def exceeded(self, precision: str) -> list[str]:
        """The bars that are exceeded, by name."""
        bars = BARS[precision]
        return [name for name, bar in bars.items() if (getattr(self, name) or 0.0) > bar]


# DESIGN section 5.3 in fp32. In bf16, eight bits of mantissa: rounding of one step at this width, with room for two.
BARS = {"fp32": {"loss": 1e-5, "gradient": 1e-5, "norm": 1e-4}, "bf16": {"loss": 5e-3, "gradient": 0.12, "norm": 2e-2}}


def differences(result: dict[str, Any], reference: dict[str, Any], cell: Cell) -> Differences:
    """A cell's outcome against the plain loop's: over all steps in fp32, in the first one in bf16."""
    steps = slice(0, 1 if cell.precision == "bf16" else STEPS)
    gradients = reference["gradients"]
    assert result["gradients"].keys() == gradients.keys()
    return Differences(
        loss=_relative(result["losses"][steps], reference["losses"][steps]),
        gradient=max(float(np.abs(result["gradients"][name] - g).max() / np.abs(g).max()) for name, g in gradients.items()),
        norm=_relative(result["norms"][steps], reference["norms"][steps]) if cell.zero_stage else None,
    )


def _relative(values: list[float], expected: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(values, expected, strict=True))

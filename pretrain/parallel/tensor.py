"""Tensor parallelism: megatron-core's layers in the plain model, by the sharding table; the only file that imports megatron.

Letters: N real tokens, S tokens of this rank's shard under sequence parallelism (N / tensor ranks), D width, M masked tokens,
V vocabulary rows of all ranks, W vocabulary rows of this rank.
"""

import dataclasses
import datetime
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from mose.model.sharding import Sharding, sharding_of
from pretrain.parallel.topology import Place

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Transformer Engine and Apex are absent on purpose
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.model_parallel_config import ModelParallelConfig
    from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes


# Column-parallel layers that read the output of `input_layernorm`.
_SHARING_INPUT = ("q_proj", "k_proj", "v_proj")


def initialize_tensor_groups(place: Place, tensor_ranks: int, timeout_seconds: int | None = None) -> "ModelParallelUnit":
    """Make this rank's tensor and data group, put them where megatron's layers look, and wrap them for DeepSpeed.

    megatron's own `initialize_model_parallel` makes thousands of groups at 512 ranks, for kinds of parallelism that are not
    used here, and every rank enters each of them. Here a rank enters only the two that it is a member of.

    Without CUDA, `torch.cuda.current_device` is replaced for the process: megatron asks it where to put buffers.
    """
    if not torch.cuda.is_available():
        torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment, return-value]
    # megatron calls collectives by names that torch 2.13 deprecates, with a warning at each call site.
    warnings.filterwarnings("ignore", "`torch.distributed.*` is deprecated", FutureWarning)
    if not parallel_state.is_initialized():
        _make_groups(place, tensor_ranks, timeout_seconds)
    return ModelParallelUnit()


def _make_groups(place: Place, tensor_ranks: int, timeout_seconds: int | None) -> None:
    tensor = range(place.rank - place.tensor_rank, place.rank - place.tensor_rank + tensor_ranks)
    data = range(place.tensor_rank, dist.get_world_size(), tensor_ranks)
    timeout = None if timeout_seconds is None else datetime.timedelta(seconds=timeout_seconds)
    state: Any = parallel_state
    for name, ranks in (("TENSOR_MODEL_PARALLEL", list(tensor)), ("DATA_PARALLEL", list(data))):
        group = dist.new_group(ranks, timeout=timeout, use_local_synchronization=True, group_desc=name)
        setattr(state, f"_{name}_GROUP", group)
        setattr(state, f"_{name}_GLOBAL_RANKS", ranks)
    state._MODEL_PARALLEL_GROUP = state._TENSOR_MODEL_PARALLEL_GROUP
    state._MODEL_PARALLEL_GLOBAL_RANKS = state._TENSOR_MODEL_PARALLEL_GLOBAL_RANKS
    # Layers of one stage: DeepSpeed asks for this size too.
    state._MPU_PIPELINE_MODEL_PARALLEL_WORLD_SIZE, state._MPU_PIPELINE_MODEL_PARALLEL_RANK = 1, 0
    if state._GLOBAL_MEMORY_BUFFER is None:
        state._set_global_memory_buffer()


class ModelParallelUnit:
    """megatron's `parallel_state` under the names that DeepSpeed asks an `mpu` for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(parallel_state, name)

    def get_model_parallel_world_size(self) -> int:
        """Ranks that share each layer."""
        return int(parallel_state.get_tensor_model_parallel_world_size())

    def get_model_parallel_rank(self) -> int:
        """This rank's number among them."""
        return int(parallel_state.get_tensor_model_parallel_rank())


def _without_extra_state(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    # megatron adds `_extra_state` entries of None, on which DeepSpeed's universal conversion fails.
    state.pop(f"{prefix}_extra_state", None)


class _TensorOnly:
    """Makes a megatron layer return its output alone instead of (output, bias), as the plain layer it replaces does."""

    def forward(self, x: Tensor) -> Tensor:
        output, _ = super().forward(x)  # type: ignore[misc]
        return output  # type: ignore[no-any-return]


class ColumnParallelLinear(_TensorOnly, tensor_parallel.ColumnParallelLinear):  # type: ignore[misc]
    """A linear layer whose outputs are sharded over ranks."""


class RowParallelLinear(_TensorOnly, tensor_parallel.RowParallelLinear):  # type: ignore[misc]
    """A linear layer whose inputs are sharded over ranks; the partial outputs are all-reduced."""


class SequenceRowParallelLinear(_TensorOnly, tensor_parallel.RowParallelLinear):  # type: ignore[misc]
    """A linear layer whose inputs are sharded over ranks; the partial outputs are reduce-scattered over tokens, [S, D]."""

    def forward(self, x: Tensor) -> Tensor:
        (bias,) = with_summed_gradients(self.bias)
        return super().forward(x) + bias


class SequenceVocabularyEmbedding(tensor_parallel.VocabParallelEmbedding):  # type: ignore[misc]
    """Embeddings of tokens [N], reduce-scattered from vocabulary slices to token shards, [S, D]."""

    def forward(self, input_ids_N: Tensor) -> Tensor:
        # megatron takes [batch, sequence] and returns [sequence, batch, width] when it reduce-scatters.
        return super().forward(input_ids_N[None]).squeeze(1)  # type: ignore[no-any-return]


class _SummedGradients(torch.autograd.Function):
    """Identity forward; backward the sum of the gradients over tensor ranks, in one float32 all-reduce.

    torch has no such pair: its collectives with gradient (`torch.distributed.nn`, functional collectives) communicate in the
    forward pass too. megatron's does, but silently leaves a gradient that is not contiguous unreduced.
    """

    @staticmethod
    def forward(context: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        context.group = parallel_state.get_tensor_model_parallel_group()
        return tuple(tensor.clone() for tensor in tensors)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        flat = torch.cat([gradient.flatten().float() for gradient in gradients])
        dist.all_reduce(flat, group=context.group)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        return tuple(part.view_as(gradient).to(gradient.dtype) for part, gradient in zip(parts, gradients, strict=True))


def with_summed_gradients(*replicated: Tensor) -> tuple[Tensor, ...]:
    """Replicated parameters for use on a shard of the tokens: their gradients are summed over the tensor ranks."""
    return _SummedGradients.apply(*replicated)  # type: ignore[no-any-return, no-untyped-call]


class _SummedInputGradient(torch.autograd.Function):
    """Identity forward; backward the sum of the gradient over tensor ranks, in its own type: one term per rank's columns."""

    @staticmethod
    def forward(context: Any, x_ND: Tensor) -> Tensor:
        return x_ND.view_as(x_ND)

    @staticmethod
    def backward(context: Any, gradient_ND: Tensor) -> Tensor:
        summed_ND = gradient_ND.contiguous()
        dist.all_reduce(summed_ND, group=parallel_state.get_tensor_model_parallel_group())
        return summed_ND


class SharedInputNorm(nn.LayerNorm):
    """LayerNorm whose output several column-parallel layers read: the gradients of all are summed here, then reduced once.

    Each megatron layer by itself all-reduces the gradient of its own input: queries, keys and values one after the other, three
    times the bytes between the ranks.
    """

    def forward(self, x_ND: Tensor) -> Tensor:
        return _SummedInputGradient.apply(super().forward(x_ND))  # type: ignore[no-any-return, no-untyped-call]


def gather_tokens(x_SD: Tensor, *, partial_gradients: bool) -> Tensor:
    """All-gather the shards [S, D] of all tensor ranks to [N, D].

    `partial_gradients`: each rank's gradient of the result is one term of a sum (it came through sharded weights), so backward is
    a reduce-scatter; otherwise every rank has the complete gradient, and backward takes this rank's shard of it.
    """
    return tensor_parallel.gather_from_sequence_parallel_region(x_SD, tensor_parallel_output_grad=partial_gradients)  # type: ignore[no-any-return]


def apply_tensor_parallelism(model: nn.Module, dtype: torch.dtype, sequence_parallel: bool = False) -> None:
    """Replace each layer that the sharding table shards by megatron's; parameter names stay the same, weights are uninitialised.

    With `sequence_parallel`, embedding and row-parallel layers reduce-scatter their outputs over tokens, and column-parallel
    layers take tokens that `pretrain.parallel.sequence` has gathered.
    """
    config = ModelParallelConfig(
        use_cpu_initialization=True,
        perform_initialization=False,
        params_dtype=dtype,
        tensor_model_parallel_size=parallel_state.get_tensor_model_parallel_world_size(),
        sequence_parallel=sequence_parallel,
    )
    for name, module in list(model.named_modules()):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            replacement = _parallel_layer(module, sharding_of(f"{name}.weight"), config, name.endswith(_SHARING_INPUT))
            if replacement is not None:
                replacement.register_state_dict_post_hook(_without_extra_state)  # type: ignore[no-untyped-call]
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, replacement)
        elif name.endswith(".input_layernorm") and not sequence_parallel:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _shared_input(module))
    for name, parameter in list(model.named_parameters()):
        _cut_bare_parameter(model, name, parameter)


def _shared_input(norm: nn.Module) -> SharedInputNorm:
    """The same norm, with the parameters of `norm`, in front of layers that leave the reduction to it."""
    assert isinstance(norm, nn.LayerNorm)
    replacement = SharedInputNorm(norm.normalized_shape, eps=norm.eps, device="meta")
    replacement.weight, replacement.bias = norm.weight, norm.bias
    return replacement


def _parallel_layer(
    module: nn.Linear | nn.Embedding, kind: Sharding, config: ModelParallelConfig, shares_input: bool
) -> nn.Module | None:
    common: dict[str, Any] = {"config": config, "init_method": nn.init.zeros_}
    on_shards = config.sequence_parallel
    if isinstance(module, nn.Embedding):
        if kind is not Sharding.VOCABULARY:
            return None
        sizes = (module.num_embeddings, module.embedding_dim)
        if on_shards:
            return SequenceVocabularyEmbedding(*sizes, reduce_scatter_embeddings=True, **common)
        return tensor_parallel.VocabParallelEmbedding(*sizes, **common)  # type: ignore[no-any-return]
    sizes, bias = (module.in_features, module.out_features), module.bias is not None
    if kind in (Sharding.COLUMN, Sharding.VOCABULARY):
        # The decoder and c_fc reduce their input's gradient themselves, beside the product for their weight's. Queries,
        # keys and values share one reduction (SharedInputNorm), under sequence parallelism all columns one gather (sequence.py).
        reduced_elsewhere = (on_shards and kind is Sharding.COLUMN) or shares_input
        common["config"] = dataclasses.replace(config, sequence_parallel=False)
        return ColumnParallelLinear(*sizes, bias=bias, gather_output=False, disable_grad_reduce=reduced_elsewhere, **common)
    if kind is Sharding.ROW:
        row = SequenceRowParallelLinear if on_shards else RowParallelLinear
        return row(*sizes, bias=bias, input_is_parallel=True, skip_bias_add=on_shards, **common)
    return None


def _cut_bare_parameter(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Shard a parameter that is no layer's own weight, such as `cls.predictions.bias`; those of megatron's layers are left."""
    parent_name, _, child = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    dimension = sharding_of(name).dimension
    if dimension is None or isinstance(parent, tuple(megatron_layers().values())):
        return
    shape = list(parameter.shape)
    shape[dimension] //= parallel_state.get_tensor_model_parallel_world_size()
    setattr(parent, child, nn.Parameter(torch.empty(shape, dtype=parameter.dtype)))


def mark_parallel_parameters(model: nn.Module) -> None:
    """Mark sharded parameters for DeepSpeed's gradient norm, which counts the others once, not once per rank."""
    for name, parameter in model.named_parameters():
        dimension = sharding_of(name).dimension
        for attribute in ("tensor_model_parallel", "partition_dim", "partition_stride"):
            if hasattr(parameter, attribute):
                delattr(parameter, attribute)
        if dimension is not None:
            set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=dimension, stride=1)


def vocabulary_cross_entropy(logits_MW: Tensor, labels_M: Tensor) -> Tensor:
    """Cross-entropy [M] of logits whose vocabulary is sharded over ranks; megatron overwrites its argument, so it gets a copy."""
    copied_MW = logits_MW.float() if logits_MW.dtype != torch.float32 else logits_MW.clone()
    return tensor_parallel.vocab_parallel_cross_entropy(copied_MW, labels_M)  # type: ignore[no-any-return]


def vocabulary_correct(logits_MW: Tensor, labels_M: Tensor) -> Tensor:
    """Whether the largest logit over all ranks is that of the label, bool [M]; two maxima in one all-reduce."""
    group = parallel_state.get_tensor_model_parallel_group()
    width = logits_MW.shape[1]
    local_M = labels_M - parallel_state.get_tensor_model_parallel_rank() * width
    mine_M = (local_M >= 0) & (local_M < width)
    target_M = logits_MW.gather(1, local_M.clamp(0, width - 1)[:, None]).squeeze(1).masked_fill(~mine_M, float("-inf"))
    best_2M = torch.stack((logits_MW.max(dim=1).values, target_M)).float()
    dist.all_reduce(best_2M, op=dist.ReduceOp.MAX, group=group)
    return best_2M[1] >= best_2M[0]


def maximum_over_ranks(numbers_M: Tensor) -> Tensor:
    """Maximum over the tensor ranks, [M]; not differentiable."""
    return _over_ranks(numbers_M, dist.ReduceOp.MAX)


def sum_over_ranks(numbers_M: Tensor) -> Tensor:
    """Sum over the tensor ranks, [M]; not differentiable."""
    return _over_ranks(numbers_M, dist.ReduceOp.SUM)


def _over_ranks(numbers_M: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    reduced_M = numbers_M.detach().clone()
    dist.all_reduce(reduced_M, op=operation, group=parallel_state.get_tensor_model_parallel_group())
    return reduced_M


def vocabulary_start(rows_per_rank: int) -> int:
    """First vocabulary row of this rank."""
    return int(parallel_state.get_tensor_model_parallel_rank()) * rows_per_rank


def megatron_layers() -> dict[str, type[nn.Module]]:
    """megatron-core's own classes by kind."""
    names = ("ColumnParallelLinear", "RowParallelLinear", "VocabParallelEmbedding")
    return {name: getattr(tensor_parallel, name) for name in names}

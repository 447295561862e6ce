"""ZeRO partitions inside a node, copies across nodes: gradients are reduced over all ranks, everything else stays in a node.

DeepSpeed's ZeRO 1 knows one group, over which it reduces gradients, divides optimiser states, sums the norm and gathers updated
weights. The last of these overlaps with nothing: at 512 ranks each node receives all weights over the network after each step.
Here DeepSpeed gets the ranks of a node as its data-parallel group, and the reduction of a gradient bucket alone is widened to
all data ranks, beside the backward pass as before. As every rank then has the same sums, all copies of a weight stay equal, as
those of plain data parallelism do.

DeepSpeed's own hierarchical partitions, hpZ (`zero_hpz_partition_size`) and MiCS, belong to stage 3: its hooks rule out compiled
layers, and no other layout can read its checkpoints (docs/decisions.md).
"""

import datetime
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from pretrain.parallel.topology import Place, partition_of


@dataclass(frozen=True)
class PartitionUnit:
    """The `mpu` that DeepSpeed asks for its data-parallel group: the ranks of one partition; layers are not shared."""

    group: Any
    ranks: int
    place: int

    @classmethod
    def of(cls, place: Place, partition_ranks: int, timeout_seconds: int | None = None) -> "PartitionUnit":
        """Make the group of this rank; no other rank takes part."""
        members = partition_of(place.data_rank, partition_ranks)
        timeout = None if timeout_seconds is None else datetime.timedelta(seconds=timeout_seconds)
        group = dist.new_group(list(members), timeout=timeout, use_local_synchronization=True, group_desc="ZERO_PARTITION")
        return cls(group, partition_ranks, members.index(place.data_rank))

    def get_data_parallel_group(self) -> Any:
        """The group over which ZeRO partitions."""
        return self.group

    def get_data_parallel_world_size(self) -> int:
        """Its number of ranks."""
        return self.ranks

    def get_data_parallel_rank(self) -> int:
        """This rank's number in it."""
        return self.place

    def get_model_parallel_group(self) -> None:
        """No rank shares a layer with another."""

    def get_model_parallel_world_size(self) -> int:
        """Ranks that share each layer."""
        return 1

    def get_model_parallel_rank(self) -> int:
        """This rank's number among them."""
        return 0

    # Loading a checkpoint of another layout asks for the same under these names.
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_rank = get_model_parallel_rank


def reduce_over_all(optimizer: Any, group: Any) -> None:
    """Let DeepSpeed's optimiser of ZeRO 1 all-reduce each bucket of gradients over `group` in place of its own group."""
    reduce = optimizer.allreduce_bucket

    def reduce_widely(
        bucket: list[Tensor],
        communication_data_type: torch.dtype,
        rank: int | None = None,
        log: Any = None,
        divide: bool = True,
        process_group: Any = None,
    ) -> Any:
        # `average_tensor` has divided before; `rank` belongs to ways of reducing that the config refuses.
        assert rank is None and not divide
        return reduce(bucket, communication_data_type, log=log, divide=False, process_group=group)

    optimizer.allreduce_bucket = reduce_widely

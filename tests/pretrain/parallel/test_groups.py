"""Process groups of 512 ranks, on torch's fake back end: each rank makes the two that it is a member of, and no other."""

from collections.abc import Iterator

import pytest
import torch
from torch import distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from pretrain.config.run import Layout
from pretrain.parallel import tensor
from pretrain.parallel.launch import build_context
from pretrain.parallel.topology import place_of

RANKS = 512
CPU = torch.device("cpu")


@pytest.fixture(params=[0, 1, 4, 511])
def rank(request: pytest.FixtureRequest) -> Iterator[int]:
    dist.init_process_group("fake", store=FakeStore(), rank=request.param, world_size=RANKS)
    yield request.param
    tensor.parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def count_new_groups(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    made: list[list[int]] = []
    original = dist.new_group

    def counted(ranks: list[int], **options: object) -> object:
        made.append(ranks)
        return original(ranks, **options)

    monkeypatch.setattr(dist, "new_group", counted)
    return made


@pytest.mark.parametrize("tensor_ranks", [1, 2, 4])
def test_a_rank_makes_its_own_two_groups(rank: int, tensor_ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = count_new_groups(monkeypatch)
    context = build_context(Layout(RANKS, tensor_ranks, RANKS // tensor_ranks, 1), CPU)
    place = place_of(rank, tensor_ranks)
    if tensor_ranks == 1:
        assert (made, context.mpu) == ([], None)
        return
    assert made == [
        [place.data_rank * tensor_ranks + other for other in range(tensor_ranks)],
        [other * tensor_ranks + place.tensor_rank for other in range(RANKS // tensor_ranks)],
    ]
    assert all(rank in group for group in made)
    assert context.mpu.get_model_parallel_world_size() == context.mpu.get_tensor_model_parallel_world_size() == tensor_ranks
    assert context.mpu.get_model_parallel_rank() == context.mpu.get_tensor_model_parallel_rank() == place.tensor_rank
    assert context.mpu.get_data_parallel_world_size() == RANKS // tensor_ranks
    assert context.mpu.get_data_parallel_rank() == place.data_rank
    assert context.mpu.get_data_parallel_group() is context.data_group
    assert context.mpu.get_tensor_model_parallel_src_rank() == rank - place.tensor_rank

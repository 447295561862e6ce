"""Data parallelism: two gloo ranks give the gradient of one process that holds the whole batch, negatives included."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, multiprocessing

from finetune.config import RetrievalConfig
from finetune.distributed import gather_rows, process_group, sum_gradients
from finetune.retrieval.loss import multi_exit_loss
from finetune.retrieval.train import train
from mose.checkpoint.converted_checkpoint import random_like, write_checkpoint
from mose.dataset.pairs import write_pairs
from mose.run_directory import RunDirectory
from tests.distributed import free_port
from tests.finetune.conftest import make_pairs, tiny_config

PAIRS, WIDTH, EXITS, RANKS = 8, 6, 3, 2
WEIGHTS = (0.25, 0.5, 1.0)


def inputs() -> tuple[Tensor, Tensor]:
    """Queries and targets that lie close to those of other pairs, so that the negatives carry most of the gradient."""
    rng = np.random.default_rng(4)
    center = rng.normal(size=WIDTH)
    both = [torch.from_numpy(center + 0.5 * rng.normal(size=(PAIRS, WIDTH))).float() for _ in range(2)]
    return both[0], both[1]


def model_of() -> torch.nn.ModuleList:
    torch.manual_seed(0)
    return torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(EXITS))


def losses(model: torch.nn.ModuleList, part: slice) -> Tensor:
    queries, targets = (table[part] for table in inputs())
    excluded = torch.zeros(PAIRS, PAIRS, dtype=torch.bool)
    excluded[1, 6] = excluded[6, 1] = True
    embedded = [[gather_rows(F.normalize(head(table), dim=-1)) for head in model] for table in (queries, targets)]
    return multi_exit_loss(embedded[0], embedded[1], WEIGHTS, 10.0, excluded).total


def retrieval_config(folder: Path, output: str) -> RetrievalConfig:
    places = {"checkpoint": str(folder / "model"), "pairs": str(folder / "pairs.parquet"), "output": str(folder / output)}
    learned = {"learning_rate": 1e-3, "logit_scale_learning_rate_factor": 10.0}
    return RetrievalConfig(**places, **learned, steps=2, batch_pairs=8, chunk_pairs=2, log_every_steps=1, device="cpu")


def join(rank: int, port: int) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    torch.set_num_threads(1)


def work(rank: int, ports: tuple[int, int], folder: str) -> None:
    join(rank, ports[0])
    train(retrieval_config(Path(folder), "two_ranks"))
    join(rank, ports[1])
    with process_group(torch.device("cpu")) as world:
        model = model_of()
        share = PAIRS // world.size
        total = losses(model, slice(world.rank * share, (world.rank + 1) * share))
        total.backward()
        unused = torch.nn.Parameter(torch.ones(2))
        unused.grad = torch.ones(2) if rank == 1 else None
        sum_gradients([*model.parameters(), unused])
        found = {"total": total.detach(), "unused": unused.grad, **{n: p.grad for n, p in model.named_parameters()}}
        torch.save(found, Path(folder) / f"rank-{rank}.pt")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A folder with a checkpoint without dropout and with pairs, some of them code-code."""
    folder = tmp_path_factory.mktemp("ranks")
    write_checkpoint(folder / "model", random_like(tiny_config(), seed=3), tokenizer_folder, {})
    write_pairs(folder / "pairs.parquet", make_pairs(24, second=True))
    return folder


@pytest.fixture(scope="module")
def ranks(prepared: Path) -> list[dict[str, Tensor]]:
    folder = prepared
    ports = (free_port(), free_port())
    multiprocessing.spawn(work, args=(ports, str(folder)), nprocs=RANKS)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(RANKS)]


def test_every_rank_has_the_gradient_of_the_whole_batch(ranks: list[dict[str, Tensor]]):
    model = model_of()
    total = losses(model, slice(None))
    total.backward()
    for found in ranks:
        assert found["total"].item() == pytest.approx(total.item(), rel=1e-6)
        for name, parameter in model.named_parameters():
            assert (found[name] - parameter.grad).abs().max() <= 1e-6 * parameter.grad.abs().max(), name


def test_two_ranks_train_the_model_that_one_process_trains(prepared: Path, ranks: list[dict[str, Tensor]]):
    train(retrieval_config(prepared, "one_process"))
    lines = [RunDirectory(prepared / name).read_metrics() for name in ("one_process", "two_ranks")]
    for one, two in zip(*lines, strict=True):
        for name in one.keys() - {"throughput/pairs_per_second"}:
            assert two[name] == pytest.approx(one[name], rel=1e-4), name
    assert (prepared / "two_ranks" / "checkpoint" / "model.safetensors").is_file()


def test_the_bar_would_notice_targets_gathered_in_another_order(ranks: list[dict[str, Tensor]]):
    """Negatives matter here: with the ranks' halves of the targets exchanged the loss is another one."""
    model = model_of()
    queries, targets = inputs()
    exchanged = torch.cat((targets[PAIRS // 2 :], targets[: PAIRS // 2]))
    excluded = torch.zeros(PAIRS, PAIRS, dtype=torch.bool)
    embedded = [[F.normalize(head(table), dim=-1) for head in model] for table in (queries, exchanged)]
    wrong = multi_exit_loss(embedded[0], embedded[1], WEIGHTS, 10.0, excluded).total
    assert abs(wrong.item() - ranks[0]["total"].item()) > 0.01


def test_a_parameter_without_gradient_on_one_rank_gets_the_other_ranks(ranks: list[dict[str, Tensor]]):
    assert [found["unused"].tolist() for found in ranks] == [[1.0, 1.0], [1.0, 1.0]]


def test_a_lone_process_gathers_its_own_rows():
    rows = torch.ones(2, 3)
    assert gather_rows(rows) is rows
    with process_group(torch.device("cpu")) as world:
        assert (world.rank, world.size, world.is_first) == (0, 1, True)

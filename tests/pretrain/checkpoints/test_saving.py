"""What one of many ranks does when a checkpoint is saved: it reports its own files, and only rank 0 looks up those of others."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.checkpoints.store import CheckpointStore
from pretrain.config.run import Layout
from pretrain.parallel.context import ParallelContext

RANKS = 512


def part_of(rank: int) -> str:
    return f"state/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    for rank in range(RANKS):
        (tmp_path / part_of(rank)).write_bytes(b"states")
    return tmp_path


def store_of(rank: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> CheckpointStore:
    """The store of one rank; what it gathers from the others is that each has written its part."""
    context = ParallelContext(rank, rank, 0, Layout(RANKS, 1, RANKS, 1), torch.device("cpu"), None, None)
    store = CheckpointStore(folder, context, {})

    def gather(mine: Any) -> list[Any]:
        if not isinstance(mine, dict):
            # The answer of rank 0, which other ranks wait for.
            return [mine] if rank == 0 else [(None, None)]
        return [mine if other == rank else {part_of(other): ("0" * 64, 6)} for other in range(RANKS)]

    monkeypatch.setattr(store, "_gather", gather)
    return store


def looked_up(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names whose facts are asked for from now on; a listing fails."""
    names: set[str] = set()
    original = Path.stat

    def stat(path: Path, **options: Any) -> Any:
        names.add(path.name)
        return original(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    for listing in ("rglob", "glob", "iterdir"):
        monkeypatch.setattr(Path, listing, None)
    return names


def test_a_rank_looks_at_its_own_files_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, names = store_of(7, folder, monkeypatch), looked_up(monkeypatch)
    files, sizes = store._described(folder, [folder / part_of(7)])
    assert names == {Path(part_of(7)).name}
    assert sizes == {part_of(rank): 6 for rank in range(RANKS)} and files.keys() == sizes.keys()


def test_rank_0_looks_up_every_reported_file_and_lists_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, names = store_of(0, folder, monkeypatch), looked_up(monkeypatch)
    store._described(folder, [folder / part_of(0)])
    assert names == {Path(part_of(rank)).name for rank in range(RANKS)}


def test_a_part_that_rank_0_does_not_see_is_no_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / part_of(300)).unlink()
    (folder / part_of(301)).write_bytes(b"cut")
    store = store_of(0, folder, monkeypatch)
    with pytest.raises(OSError, match="510 of 512 ranks' parts are there; expected a folder that all ranks share"):
        store._described(folder, [folder / part_of(0)])


def test_other_ranks_raise_what_rank_0_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(7, folder, monkeypatch)
    fault = "511 of 512 ranks' parts are there; expected a folder that all ranks share"
    monkeypatch.setattr(store, "from_main", lambda work: fault)
    with pytest.raises(OSError, match=fault):
        store._described(folder, [folder / part_of(7)])

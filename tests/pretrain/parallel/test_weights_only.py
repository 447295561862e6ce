"""Covers loading without code: DeepSpeed's loader and conversion refuse states that hold more than tensors and plain values."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mose.errors import MoseError
from pretrain.parallel.weights_only import ALLOWED_NAMES, foreign_classes
from tests.datasets import make_dataset
from tests.distributed import RankPools
from tests.pretrain.cells import tiny_config
from tests.pretrain.hostile import HOSTILE, Exploit, torch_file
from tests.pretrain.saved_states import load_hostile

Hostile = Callable[[Path, Path], None]


def test_deepspeeds_loader_refuses_every_kind_of_hostile_part_and_runs_nothing(pools: RankPools, tmp_path: Path) -> None:
    config = tiny_config(make_dataset(tmp_path / "data"))
    (found,) = pools.of(1).run(load_hostile, config, tmp_path)
    for hostile in HOSTILE:
        message = found[hostile.__name__]
        assert message is not None
        assert message.startswith(str(tmp_path))
        assert "expected tensors and plain values" in message
        assert "\n" not in message
    assert not (tmp_path / "mark").exists()
    # The same call on the untouched part: what was refused is the exploit.
    assert found["untouched"] is None


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.__name__)
def test_deepspeeds_conversion_refuses_them_too(hostile: Hostile, tmp_path: Path) -> None:
    from pretrain.parallel.engine import merge_parts

    (tmp_path / "state").mkdir()
    torch.save({"universal_checkpoint_info": {}}, tmp_path / "state" / "mp_rank_00_model_states.pt")
    hostile(tmp_path / "state" / "zero_pp_rank_0_mp_rank_00_optim_states.pt", tmp_path / "mark")
    with pytest.raises(MoseError) as caught:
        merge_parts(tmp_path, tmp_path / "universal")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "mark").exists()


def test_the_exploit_works_where_nothing_stops_it(tmp_path: Path) -> None:
    torch_file(tmp_path / "part.pt", tmp_path / "mark")
    torch.load(tmp_path / "part.pt", weights_only=False)
    assert (tmp_path / "mark").is_dir()


def test_the_real_getattr_is_never_allowed(tmp_path: Path) -> None:
    from pretrain.parallel.engine import _stage_named

    with pytest.raises(Exception, match="expected a ZeRO stage"):
        _stage_named(os, "system")
    assert "builtins.getattr" in ALLOWED_NAMES


def test_foreign_classes_are_named_without_making_them(tmp_path: Path) -> None:
    torch_file(tmp_path / "part.pt", tmp_path / "mark")
    torch.save({"step": torch.tensor(1.0)}, tmp_path / "good.pt")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    assert foreign_classes(tmp_path / "part.pt") == [f"{os.mkdir.__module__}.mkdir"]
    assert foreign_classes(tmp_path / "good.pt") == []
    assert foreign_classes(tmp_path / "junk.pt") == []
    assert Exploit(tmp_path).__reduce__()[0] is os.mkdir

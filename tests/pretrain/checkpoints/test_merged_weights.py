"""Covers the reader of master weights: equal to DeepSpeed's own conversion in every layout, and broken states as one line.

The user pain it stands for: "TP checkpoint <-> Hugging Face".
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mose.errors import MoseError
from pretrain.checkpoints.merged_weights import STAND_INS, MergedWeights, ZeroStage
from tests.datasets import make_dataset
from tests.distributed import RankPools
from tests.pretrain.cells import tiny_config
from tests.pretrain.saved_states import save_state

# Data ranks, tensor ranks, ZeRO stage, precision.
LAYOUTS = [(2, 1, 2, "bf16"), (2, 1, 3, "fp32"), (1, 2, 1, "fp32"), (2, 2, 3, "fp32")]
LONG = [pytest.param(layout, marks=pytest.mark.soak) for layout in ((2, 1, 1, "fp32"), (2, 2, 1, "bf16"))]


def layout_name(layout: tuple[int, int, int, str]) -> str:
    return "DP{}-TP{}-ZeRO{}-{}".format(*layout)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("merged"))


@pytest.mark.parametrize("layout", [*LAYOUTS, *LONG], ids=layout_name)
def test_equal_to_deepspeeds_own_conversion(
    layout: tuple[int, int, int, str], rows: Path, pools: RankPools, tmp_path: Path
) -> None:
    from pretrain.parallel.engine import merge_parts

    data_ranks, tensor_ranks, stage, precision = layout
    config = tiny_config(rows, tensor_ranks, zero_stage=stage, precision=precision)
    (saved, *_) = pools.of(data_ranks * tensor_ranks).run(save_state, config, tmp_path)
    merged = MergedWeights(tmp_path / "state")
    assert merged.names == saved["names"]
    merge_parts(tmp_path, tmp_path / "universal")
    for name in merged.names:
        value = torch.load(tmp_path / "universal" / "zero" / name / "fp32.pt", weights_only=True)
        theirs, ours = value["param"] if isinstance(value, dict) else value, merged.read(name)
        # Stage 3 writes parameters flat there.
        assert torch.equal(ours.flatten(), theirs.flatten()), name
        assert ours.shape == theirs.shape or stage == 3, name


@pytest.fixture(scope="module")
def cut_state(rows: Path, pools: RankPools, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state of 1 x 2 ranks; copy it before changing it."""
    folder = tmp_path_factory.mktemp("cut")
    pools.of(2).run(save_state, tiny_config(rows, 2), folder)
    return folder / "state"


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def shorten(folder: Path) -> None:
    path = folder / "zero_pp_rank_0_mp_rank_01_optim_states.pt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def forget_weights(folder: Path) -> None:
    for rank in (0, 1):
        torch.save({"optimizer_state_dict": {"state": {}}}, folder / f"zero_pp_rank_0_mp_rank_0{rank}_optim_states.pt")


def leave_nothing(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


class Unwanted:
    """Would run code if it were unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return print, ("unpickled",)


def smuggle(folder: Path) -> None:
    torch.save({"optimizer_state_dict": Unwanted()}, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")


class Attribute:
    """Pickled as `getattr(kind, name)`."""

    def __init__(self, kind: object, name: str):
        self._asked = (kind, name)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, str]]:
        return getattr, self._asked


def reach_for_an_attribute(folder: Path) -> None:
    torch.save({"optimizer_state_dict": Attribute(torch.Tensor, "numpy")}, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")


BAD = {
    "nothing": (leave_nothing, "holds no optimiser states; expected those of ZeRO 1, 2 or 3"),
    "a rank's file": (
        remove("zero_pp_rank_0_mp_rank_00_optim_states.pt"),
        "the optimiser states of data rank 0, tensor rank 0 are missing",
    ),
    "the shapes": (remove("mp_rank_01_model_states.pt"), r"mp_rank_01_model_states\.pt: no such file"),
    "truncated": (shorten, r"mp_rank_01_optim_states\.pt: not a whole DeepSpeed file"),
    "no master weights": (forget_weights, "holds no float32 master weights"),
    "an attribute": (
        reach_for_an_attribute,
        r"mp_rank_00_optim_states\.pt: not a whole DeepSpeed file: Weights only load failed",
    ),
    "foreign code": (smuggle, r"mp_rank_00_optim_states\.pt: not a whole DeepSpeed file: Weights only load failed"),
}


@pytest.mark.parametrize("case", BAD)
def test_broken_states_are_one_line(case: str, cut_state: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    damage, message = BAD[case]
    shutil.copytree(cut_state, tmp_path / "state")
    damage(tmp_path / "state")
    with pytest.raises(MoseError, match=message) as caught:
        MergedWeights(tmp_path / "state")
    assert "\n" not in str(caught.value)
    assert "unpickled" not in capfd.readouterr().out


def test_a_stage_that_python_3_11_2_pickled_is_read(tmp_path: Path) -> None:
    from deepspeed.runtime.zero.config import ZeroStageEnum

    torch.save(Attribute(ZeroStageEnum, "gradients"), tmp_path / "stage.pt")
    with torch.serialization.safe_globals(STAND_INS):
        assert torch.load(tmp_path / "stage.pt", weights_only=True) is ZeroStage["gradients"]


def test_a_parameter_that_is_not_there(cut_state: Path) -> None:
    with pytest.raises(MoseError, match="holds no parameter embed"):
        MergedWeights(cut_state).read("embed")


def test_copies_that_differ_between_tensor_ranks_are_refused(cut_state: Path, tmp_path: Path) -> None:
    """Replicated weights drift apart silently where ranks draw different dropout; an export must not pick one of them."""
    shutil.copytree(cut_state, tmp_path / "state")
    merged = MergedWeights(tmp_path / "state")
    (piece,) = merged._pieces["pooler.dense.weight"][1]
    with piece.path.open("r+b") as file:
        file.seek(piece.byte_offset + 4)
        file.write(b"\0\0\0\0")
    with pytest.raises(MoseError, match=r"pooler\.dense\.weight: copies of tensor ranks 0 and 1 differ"):
        merged.read("pooler.dense.weight")
    merged.read("starEncoder2.embed_tokens.weight")


def test_a_parameters_name_cannot_lead_out_of_the_folder(cut_state: Path, tmp_path: Path) -> None:
    """DeepSpeed's conversion makes a folder of this name."""
    shutil.copytree(cut_state, tmp_path / "state")
    path = next((tmp_path / "state").glob("*_optim_states.pt"))
    values = torch.load(path, weights_only=False)
    fragments = values["optimizer_state_dict"]["param_slice_mappings"][0]
    fragments["../../outside"] = fragments.pop(next(iter(fragments)))
    torch.save(values, path)
    with pytest.raises(MoseError, match=r"parameter '\.\./\.\./outside': expected a dotted name"):
        MergedWeights(tmp_path / "state")

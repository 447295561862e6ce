"""Covers `mose-pretrain compare` and `checkpoints`: differences by parameter, exit codes, and what is told of damage.

The user pains it stands for: "loaded checkpoint not identical to release" and "encoder conversion gives NaN".
"""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mose.errors import MoseError
from pretrain.analysis.compare import compare_checkpoints
from pretrain.analysis.list_checkpoints import list_checkpoints
from tests.pretrain.forked import refuses, run_forked, succeeds


@pytest.fixture(scope="module")
def exported(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared") / "exported"
    succeeds("export", finished_run, "--output", folder)
    return folder


def test_a_training_checkpoint_equals_its_export_without_the_vocabularys_padding(finished_run: Path, exported: Path) -> None:
    found = compare_checkpoints(finished_run, exported)
    assert found.equal
    assert found.identical == len(load_file(exported / "model.safetensors"))


def test_two_steps_differ_and_the_largest_difference_comes_first(finished_run: Path) -> None:
    first, second = (finished_run / "checkpoints" / f"step-00000{step}" for step in (2, 6))
    found = compare_checkpoints(first, second)
    assert not found.equal
    relative = [difference.relative for difference in found.differing]
    assert relative == sorted(relative, reverse=True)
    outcome = run_forked("compare", first, second, "--top", 3)
    assert outcome.code == 1
    assert f"{found.identical} tensors identical, {len(found.differing)} differ, 0 in one only" in outcome.output
    assert found.differing[2].name in outcome.output
    assert found.differing[3].name not in outcome.output
    assert run_forked("compare", second, second).code == 0


def test_one_value_one_name_and_one_nan_are_found(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "other")
    tensors = load_file(exported / "model.safetensors")
    name = "starEncoder2.norm.bias"
    changed = tensors[name].clone()
    changed[3] += 0.5
    save_file(tensors | {name: changed, "more": torch.zeros(1)}, tmp_path / "other" / "model.safetensors")
    found = compare_checkpoints(exported, tmp_path / "other")
    assert [difference.name for difference in found.differing] == [name]
    assert found.differing[0].largest == pytest.approx(0.5)
    assert found.differing[0].relative == pytest.approx(0.5 / float(changed.abs().max()))
    assert (found.only_first, found.only_second) == ((), ("more",))
    changed[3] = float("nan")
    save_file(tensors | {name: changed}, tmp_path / "other" / "model.safetensors")
    assert compare_checkpoints(exported, tmp_path / "other").differing[0].largest == float("inf")
    assert compare_checkpoints(tmp_path / "other", tmp_path / "other").equal


def test_what_cannot_be_compared_is_one_line(finished_run: Path, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    line = refuses("compare", exported, tmp_path / "nothing")
    assert "expected a run directory, a training checkpoint or a converted checkpoint" in line
    shutil.copytree(exported, tmp_path / "other")
    tensors = load_file(exported / "model.safetensors")
    save_file(tensors | {"starEncoder2.norm.bias": torch.zeros(3)}, tmp_path / "other" / "model.safetensors")
    with pytest.raises(MoseError, match=r"starEncoder2\.norm\.bias: \[32\] in the first, \[3\] in the second"):
        compare_checkpoints(exported, tmp_path / "other")
    shutil.copytree(finished_run, tmp_path / "run")
    part = tmp_path / "run" / "checkpoints" / "step-000006" / "state" / "mp_rank_00_model_states.pt"
    part.write_bytes(part.read_bytes()[:-1])
    assert "mp_rank_00_model_states.pt has" in refuses("compare", exported, tmp_path / "run")


def test_checkpoints_of_a_run_with_loss_layout_and_damage(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    part = next((tmp_path / "run" / "checkpoints" / "step-000004" / "state").glob("zero_pp_rank_0*"))
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    sizes_only, every_byte = (list_checkpoints(tmp_path / "run", checksums) for checksums in (False, True))
    assert [one.step for one in every_byte] == [2, 4, 6]
    assert [one.fault is None for one in sizes_only] == [True, True, True]
    assert [one.fault is None for one in every_byte] == [True, False, True]
    assert [one.latest for one in every_byte] == [False, False, True]
    assert all(one.loss is not None and one.loss > 1 and one.num_bytes > 1_000_000 for one in every_byte)
    assert {one.layout for one in every_byte} == {"data 1 x tensor 1, ZeRO 1, fp32, 2 rows per micro-batch"}
    shown = run_forked("checkpoints", tmp_path / "run", "--check")
    assert shown.code == 1
    assert f"step-000004: state/{part.name} differs from its checksum" in shown.output
    assert run_forked("checkpoints", tmp_path / "run").code == 0
    assert "expected a run directory written by `mose-pretrain train`" in refuses("checkpoints", tmp_path)

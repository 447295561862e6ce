"""Covers the exporter: every exit against the live model, natively and by `AutoModel` in a process without our packages.

The user pains it stands for: "TP checkpoint <-> Hugging Face" and "encoder conversion gives NaN".
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mose.converted_checkpoint import load_pretrained
from mose.run_directory import RunDirectory
from mose.tokenizer import load_tokenizer
from tests.commands import command_line, environment, launcher_line, refused, run_well

TOLERANCE = 5e-6
# Run where no package of ours can be imported: opens the folder with transformers alone, runs the probe rows left-padded,
# and prints the largest difference at each exit over the largest value.
READER = """
import json, sys
for name in ("mose", "pretrain", "finetune", "data_prep", "cluster", "deepspeed", "megatron"):
    sys.modules[name] = None
import torch
from safetensors.torch import load_file
from transformers import AutoModel
folder, probe = sys.argv[1], load_file(sys.argv[2])
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
lengths = torch.diff(probe["cu_seqlens"]).tolist()
rows = probe["input_ids_N"].split(lengths)
pad = lambda parts: torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_side="left")
ids, mask = pad(rows), pad([torch.ones(n, dtype=torch.long) for n in lengths])
with torch.no_grad():
    states = model(input_ids=ids, attention_mask=mask).exit_hidden_states
live = [probe[name] for name in sorted(probe) if name.startswith("exit_")]
print(json.dumps([float((a[mask.bool()] - b).abs().max() / b.abs().max()) for a, b in zip(states, live, strict=True)]))
"""


def differences_by_auto_model(folder: Path, checkpoint: Path, scratch: Path) -> list[float]:
    words = [sys.executable, "-c", READER, str(folder), str(checkpoint / "probe.safetensors")]
    done = subprocess.run(words, cwd=scratch, env=environment(HF_HOME=str(scratch)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_exported_model_is_the_live_one_without_our_packages(finished_run: Path, tmp_path: Path) -> None:
    run_well(command_line("pretrain", "export", finished_run, "--output", tmp_path / "out"))
    parity = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert parity["exits"].keys() == {"01", "02", "04"}
    assert parity["worst"] <= TOLERANCE
    differences = differences_by_auto_model(tmp_path / "out", finished_run / "checkpoints" / "step-000006", tmp_path)
    assert len(differences) == 3
    assert max(differences) <= TOLERANCE
    assert load_tokenizer(tmp_path / "out").fingerprint() == load_tokenizer(finished_run).fingerprint()
    facts = json.loads((tmp_path / "out" / "facts.json").read_text())
    assert facts["progress"]["step"] == 6


@pytest.mark.parametrize(
    "layout", [("--parallel.tensor_parallel_size", "2"), ("--parallel.zero_stage", "3")], ids=["tensor-parallel-2", "zero-3"]
)
def test_every_layout_exports(layout: tuple[str, str], finished_run: Path, tmp_path: Path) -> None:
    words = ["train", "--config", finished_run / "config.yaml", "--output", tmp_path / "run", "--max_steps", 6]
    words += ["--intervals.log_every_steps", 1, "--intervals.checkpoint_every_steps", 2]
    run_well(launcher_line(2, *words, *layout))
    run_well(command_line("pretrain", "export", tmp_path / "run", "--output", tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["worst"] <= TOLERANCE
    assert (
        max(differences_by_auto_model(tmp_path / "out", tmp_path / "run" / "checkpoints" / "step-000006", tmp_path)) <= TOLERANCE
    )
    losses = [[entry.get("loss/total") for entry in RunDirectory(run).read_metrics()] for run in (finished_run, tmp_path / "run")]
    alone, shared = ([loss for loss in run if loss is not None] for run in losses)
    assert shared == pytest.approx(alone, rel=1e-5)
    assert len(alone) == 6


def test_one_exit_of_an_earlier_step(finished_run: Path, tmp_path: Path) -> None:
    run_well(command_line("pretrain", "export", finished_run, "--output", tmp_path / "out", "--step", 4, "--exit", 2))
    probe = load_file(finished_run / "checkpoints" / "step-000004" / "probe.safetensors")
    model = load_pretrained(tmp_path / "out")
    assert model.config.num_hidden_layers == 2
    with torch.no_grad():
        (state,) = model.starEncoder2(probe["input_ids_N"], probe["positions_N"], probe["cu_seqlens"], 48)
    assert (state - probe["exit_02"]).abs().max() <= TOLERANCE * probe["exit_02"].abs().max()


def test_what_cannot_be_exported_is_one_line(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    line = command_line("pretrain", "export", finished_run, "--output")
    assert "already exists" in refused([*line, str(tmp_path / "there")])
    assert "holds no step-000005" in refused([*line, str(tmp_path / "new"), "--step", "5"])
    assert "exit 3: the model has exits [1, 2, 4]" in refused([*line, str(tmp_path / "new"), "--exit", "3"])
    assert "config.yaml" in refused(command_line("pretrain", "export", tmp_path / "nowhere", "--output", tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_model_that_disagrees_is_not_exported(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    source, target = (tmp_path / "run" / "checkpoints" / f"step-00000{step}" / "probe.safetensors" for step in (2, 6))
    shutil.copyfile(source, target)
    line = refused(command_line("pretrain", "export", tmp_path / "run", "--output", tmp_path / "out"))
    assert "exported model differs by" in line
    assert not (tmp_path / "out").exists()

"""Covers the exporter: every exit against the live model, natively and by `AutoModel` in a process without our packages.

The user pains it stands for: "TP checkpoint <-> Hugging Face" and "encoder conversion gives NaN".
"""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mose.checkpoint.converted_checkpoint import (
    load_pretrained,
    load_retrieval,
    retrieval_from_pretrained,
    truncate_at,
    write_checkpoint,
)
from mose.checkpoint.published_checkpoint import import_published
from mose.errors import MoseError
from mose.run_directory import RunDirectory
from mose.tokenizer import load_tokenizer
from pretrain.checkpoints.export import ExportRequest, export_run
from pretrain.checkpoints.merged_weights import MergedWeights
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
    said = run_well(command_line("pretrain", "export", finished_run, "--exit", 2, 4, "--output", tmp_path / "two"))
    assert "exit_04" in said
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["exit_02", "exit_04"]
    export_run(finished_run, tmp_path / "out", ExportRequest())
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
    "layout",
    [
        pytest.param(("--parallel.tensor_parallel_size", "2"), id="tensor-parallel-2", marks=pytest.mark.soak),
        pytest.param(("--parallel.tensor_parallel_size", "2", "--parallel.zero_stage", "3"), id="tensor-parallel-2-zero-3"),
    ],
)
def test_every_layout_exports(layout: tuple[str, str], finished_run: Path, tmp_path: Path) -> None:
    words = ["train", "--config", finished_run / "config.yaml", "--output", tmp_path / "run", "--max_steps", 6]
    words += ["--intervals.log_every_steps", 1, "--intervals.checkpoint_every_steps", 2]
    run_well(launcher_line(2, *words, *layout))
    (report,) = export_run(tmp_path / "run", tmp_path / "out", ExportRequest()).values()
    assert report is not None
    assert report["worst"] <= TOLERANCE
    assert (
        max(differences_by_auto_model(tmp_path / "out", tmp_path / "run" / "checkpoints" / "step-000006", tmp_path)) <= TOLERANCE
    )
    losses = [[entry.get("loss/total") for entry in RunDirectory(run).read_metrics()] for run in (finished_run, tmp_path / "run")]
    alone, shared = ([loss for loss in run if loss is not None] for run in losses)
    assert shared == pytest.approx(alone, rel=1e-5)
    assert len(alone) == 6


def test_one_exit_of_an_earlier_step(finished_run: Path, tmp_path: Path) -> None:
    export_run(finished_run, tmp_path / "out", ExportRequest(step=4, exits=(2,)))
    probe = load_file(finished_run / "checkpoints" / "step-000004" / "probe.safetensors")
    model = load_pretrained(tmp_path / "out")
    assert model.config.num_hidden_layers == 2
    with torch.no_grad():
        (state,) = model.starEncoder2(probe["input_ids_N"], probe["positions_N"], probe["cu_seqlens"], 48)
    assert (state - probe["exit_02"]).abs().max() <= TOLERANCE * probe["exit_02"].abs().max()
    assert "| optimiser steps | 4 |" in (tmp_path / "out" / "README.md").read_text()


def test_all_exits_from_one_reading(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five models of one run: each folder stands alone, has its own parity report, and no weight is read twice."""
    reads: Counter[str] = Counter()
    read = MergedWeights.read

    def counted(weights: MergedWeights, name: str) -> torch.Tensor:
        reads[name] += 1
        return read(weights, name)

    monkeypatch.setattr(MergedWeights, "read", counted)
    reports = export_run(finished_run, tmp_path / "out", ExportRequest(all_exits=True))
    assert set(reads.values()) == {1}
    export_run(finished_run, tmp_path / "whole", ExportRequest())
    whole = load_pretrained(tmp_path / "whole")
    assert reports.keys() == {"exit_01", "exit_02", "exit_04"}
    for layer in (1, 2, 4):
        folder = tmp_path / "out" / f"exit_{layer:02d}"
        parity = json.loads((folder / "parity.json").read_text())
        assert parity == reports[folder.name]
        assert (parity["exits"].keys(), parity["worst"] <= TOLERANCE) == ({f"{layer:02d}"}, True)
        cut, expected = load_pretrained(folder), truncate_at(whole, layer)
        for (name, ours), theirs in zip(cut.named_parameters(), expected.parameters(), strict=True):
            assert torch.equal(ours, theirs), name


def test_published_layout_of_a_run_is_its_bf16_and_comes_back(finished_run: Path, tmp_path: Path) -> None:
    (report,) = export_run(finished_run, tmp_path / "out", ExportRequest(layout="published")).values()
    assert report is not None
    assert (report["stored_as"], report["worst"] <= report["tolerance"]) == ("bfloat16", True)
    import_published(tmp_path / "out", tmp_path / "back")
    export_run(finished_run, tmp_path / "ours", ExportRequest())
    read, whole = load_pretrained(tmp_path / "back"), load_pretrained(tmp_path / "ours")
    for (name, ours), theirs in zip(read.named_parameters(), whole.named_parameters(), strict=True):
        assert torch.equal(ours, theirs[1].bfloat16().float()), name


def test_a_fine_tuned_folder_is_cut_at_an_exit(finished_run: Path, tmp_path: Path) -> None:
    export_run(finished_run, tmp_path / "ours", ExportRequest())
    retrieval = retrieval_from_pretrained(load_pretrained(tmp_path / "ours"), 1)
    write_checkpoint(tmp_path / "tuned", retrieval, tmp_path / "ours", {})
    export_run(tmp_path / "tuned", tmp_path / "cut", ExportRequest(exits=(2,)))
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        expected = retrieval.eval()(ids).projected_pooled_normalized[1]
        assert torch.equal(load_retrieval(tmp_path / "cut")(ids).projected_pooled_normalized[0], expected)


def test_what_cannot_be_exported_is_one_line(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    requests = {
        "there: already exists": (finished_run, tmp_path / "there", ExportRequest()),
        "holds no step-000005": (finished_run, tmp_path / "new", ExportRequest(step=5)),
        r"exit 3: the model has exits \[1, 2, 4\]": (finished_run, tmp_path / "new", ExportRequest(exits=(3,))),
        r"config\.yaml": (tmp_path / "nowhere", tmp_path / "new", ExportRequest()),
    }
    for message, (run, output, request) in requests.items():
        with pytest.raises(MoseError, match=message):
            export_run(run, output, request)
    assert "holds no step-000007" in refused(
        command_line("pretrain", "export", finished_run, "--output", tmp_path / "new", "--step", 7)
    )
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def copied(finished_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run" / "checkpoints" / "step-000006"


def test_a_model_that_disagrees_is_not_exported(finished_run: Path, tmp_path: Path) -> None:
    checkpoint = copied(finished_run, tmp_path)
    shutil.copyfile(checkpoint.parent / "step-000002" / "probe.safetensors", checkpoint / "probe.safetensors")
    with pytest.raises(MoseError, match="exported model differs by"):
        export_run(tmp_path / "run", tmp_path / "out", ExportRequest())
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_damaged_checkpoint_is_not_exported(finished_run: Path, tmp_path: Path) -> None:
    checkpoint = copied(finished_run, tmp_path)
    (part,) = checkpoint.rglob("*_optim_states.pt")
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(MoseError, match="optim_states.pt"):
        export_run(tmp_path / "run", tmp_path / "out", ExportRequest())
    part.unlink()
    with pytest.raises(MoseError, match="optim_states.pt"):
        export_run(tmp_path / "run", tmp_path / "out", ExportRequest())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]

"""Export of a 1.05B-parameter checkpoint: seconds, peak memory, and the ratio to reading and writing the same bytes.

The checkpoint's files are written as DeepSpeed writes them (ZeRO 1, one rank, random weights, Adam's moments zero; without
the bf16 copy of the weights, which the exporter does not read). Each export and each plain copy is a process of its own and
begins with files that are not in the page cache. Needs about 35 GB of disk and 10 GB of memory.

python -m benchmarks.export [--scratch FOLDER] [--output benchmarks/results/FILE.json]
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mose.checkpoint.exit_selection import parameter_shapes
from mose.config import fingerprint, save_config
from mose.files.atomic_file import file_sha256, sync_file, write_json
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.model_config import ModelConfig
from mose.model.modeling_mose import ModularStarEncoder, StarEncoder2
from mose.run_directory import RunDirectory
from pretrain.checkpoints.files import MANIFEST_NAME, PROBE_NAME
from pretrain.checkpoints.probe import probe_batch
from pretrain.config.run import ParallelConfig, PretrainConfig
from pretrain.parallel.zero import STATE_TAG
from tests.datasets import make_tokenizer

Group = dict[str, tuple[int, ...]]
STEP = 100
BLOCK_BYTES = 1 << 24
EXPORTS = {"whole": [], "published layout": ["--layout", "published"], "every exit": ["--all-exits"]}
# What the plain copy does: read N bytes, write M bytes, flush them.
COPY = """
import os, sys
source, target, read, write = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
block = bytearray(1 << 24)
with open(source, "rb", buffering=0) as a, open(target, "wb", buffering=0) as b:
    while read > 0:
        read -= a.readinto(block)
    while write > 0:
        write -= b.write(memoryview(block)[: min(len(block), write)])
    os.fsync(b.fileno())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="Folder on the disk to measure (default: that of temporary files).")
    parser.add_argument("--layers", type=int, default=36, help="36 is the 1.05B model; fewer for a trial.")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        config = made_config(arguments.layers)
        write_run(Path(folder) / "run", config)
        figures = measure(Path(folder), config)
    print(json.dumps(figures, indent=1))
    if arguments.output:
        write_json(arguments.output, figures)


def made_config(layers: int) -> PretrainConfig:
    """The 1B model; with fewer layers, exits at a half and at the end."""
    model = ModelConfig()
    if layers != model.num_layers:
        model = dataclasses.replace(model, num_layers=layers, exit_layers=(layers // 2, layers))
    return PretrainConfig(max_steps=STEP, model=model, parallel=ParallelConfig(precision="fp32"))


def write_run(folder: Path, config: PretrainConfig) -> None:
    """A run directory with one checkpoint of random weights."""
    run = RunDirectory(folder)
    state = run.checkpoint(STEP) / STATE_TAG
    state.mkdir(parents=True)
    save_config(config, run.config)
    make_tokenizer(folder, 420)
    run.append_metrics({"step": STEP, "loss/total": 1.0})
    padded = {**config.model.hugging_face(), "vocab_size": config.model.padded_vocabulary_size}
    shapes = parameter_shapes(ModularStarEncoder, ModularStarEncoderConfig(**padded))
    groups: list[Group] = [{n: s for n, s in shapes.items() if (len(s) > 1) is matrices} for matrices in (True, False)]
    flats = [random_values(folder.parent / f"values-{i}", group) for i, group in enumerate(groups)]
    write_deepspeed_files(state, groups, flats)
    write_probe(run.checkpoint(STEP) / PROBE_NAME, config, groups, flats)
    files = [path for path in run.checkpoint(STEP).rglob("*") if path.is_file()]
    names = {path: path.relative_to(run.checkpoint(STEP)).as_posix() for path in files}
    # The exporter compares sizes; a checksum of the large file would only take time here.
    manifest: dict[str, Any] = {
        "progress": {"step": STEP, "consumed_rows": 0, "consumed_tokens": 0},
        "identity": {},
        "files": {name: file_sha256(path) if path.stat().st_size < BLOCK_BYTES else "" for path, name in names.items()},
        "sizes": {name: path.stat().st_size for path, name in names.items()},
    }
    write_json(run.checkpoint(STEP) / MANIFEST_NAME, manifest | {"fingerprint": fingerprint(manifest)})
    (run.checkpoints / "latest").write_text(run.checkpoint(STEP).name)
    for path in folder.parent.glob("values-*"):
        path.unlink()


def random_values(path: Path, group: Group) -> torch.Tensor:
    """A group's flat values in a mapped file, so that they do not stay in memory; layer norms near one."""
    total = sum(torch.Size(shape).numel() for shape in group.values())
    flat = torch.from_file(str(path), shared=True, size=total)
    generator, start = torch.Generator().manual_seed(0), 0
    for name, shape in group.items():
        count = torch.Size(shape).numel()
        mean = 1.0 if "norm.weight" in name.lower() else 0.0
        flat[start : start + count].normal_(mean, 0.018, generator=generator)
        start += count
    return flat


def write_deepspeed_files(state: Path, groups: list[Group], flats: list[torch.Tensor]) -> None:
    """The two files of ZeRO 1 on one rank."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    shapes = [{name: torch.Size(shape) for name, shape in group.items()} for group in groups]
    torch.save({"module": {}, "param_shapes": shapes, "dp_world_size": 1}, state / "mp_rank_00_model_states.pt")
    mappings = []
    for group in shapes:
        start, mapping = 0, {}
        for name, shape in group.items():
            mapping[name] = fragment_address(numel=shape.numel(), start=start)
            start += shape.numel()
        mappings.append(mapping)
    moments = {
        index: {
            "step": torch.tensor(float(STEP)),
            **{name: zeros(state, f"{name}-{index}", flat) for name in ("exp_avg", "exp_avg_sq")},
        }
        for index, flat in enumerate(flats)
    }
    values = {
        "loss_scaler": LossScaler(1.0),
        "zero_stage": ZeroStageEnum.optimizer_states,
        "base_optimizer_state": {"state": moments, "param_groups": []},
        "single_partition_of_fp32_groups": flats,
        "param_slice_mappings": mappings,
    }
    torch.save({"optimizer_state_dict": values}, state / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    for path in state.glob("*.zeros"):
        path.unlink()


def zeros(folder: Path, name: str, like: torch.Tensor) -> torch.Tensor:
    """Zeros in a mapped file that is a hole on the disk."""
    path = folder / f"{name}.zeros"
    with path.open("wb") as file:
        file.truncate(like.numel() * like.itemsize)
    return torch.from_file(str(path), shared=True, size=like.numel())


@torch.no_grad()
def write_probe(path: Path, config: PretrainConfig, groups: list[Group], flats: list[torch.Tensor]) -> None:
    """Exit states of the whole model in memory, which the streamed ones are compared with."""
    with torch.device("meta"):
        trunk = StarEncoder2(ModularStarEncoderConfig(**config.model.hugging_face())).eval()
    values = {}
    for group, flat in zip(groups, flats, strict=True):
        start = 0
        for name, shape in group.items():
            values[name] = flat[start : start + torch.Size(shape).numel()].view(shape)
            start += torch.Size(shape).numel()
    own = {name: values[f"starEncoder2.{name}"][: parameter.shape[0]] for name, parameter in trunk.named_parameters()}
    trunk.load_state_dict(own, assign=True)
    batch = probe_batch(config.model.vocabulary_size, config.model.max_length)
    states = trunk(batch.input_ids_N, batch.positions_N, batch.cu_seqlens, batch.max_length)
    tensors = {"input_ids_N": batch.input_ids_N, "positions_N": batch.positions_N, "cu_seqlens": batch.cu_seqlens}
    save_file(tensors | {f"exit_{layer:02d}": s for layer, s in zip(config.model.exit_layers, states, strict=True)}, path)


def measure(folder: Path, config: PretrainConfig) -> dict[str, Any]:
    """Each export beside a plain copy of as many bytes."""
    shape = ModularStarEncoderConfig(**config.model.hugging_face())
    parameters = sum(torch.Size(s).numel() for s in parameter_shapes(ModularStarEncoder, shape).values())
    (optimizer,) = (folder / "run").rglob("*_optim_states.pt")
    figures: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, no GPU",
        "parameters": parameters,
        "checkpoint_bytes": optimizer.stat().st_size,
        "exports": {},
    }
    for name, words in EXPORTS.items():
        target = folder / "out"
        forget(optimizer)
        line = [sys.executable, "-m", "pretrain.cli", "export", str(folder / "run"), "--output", str(target), *words]
        seconds, busy, peak = run_process(line)
        written = sum(path.stat().st_size for path in target.rglob("*.safetensors"))
        worst = max(json.loads(path.read_text())["worst"] for path in target.rglob("parity.json"))
        shutil.rmtree(target)
        forget(optimizer)
        copied, _, _ = run_process([sys.executable, "-c", COPY, str(optimizer), str(target), str(4 * parameters), str(written)])
        target.unlink()
        largest = parameters * (2 if "published" in words else 4)
        figures["exports"][name] = {
            "seconds": round(seconds, 1),
            "processor_seconds": round(busy, 1),
            "written_bytes": written,
            "peak_bytes": peak,
            "peak_to_model_bytes": round(peak / largest, 3),
            "plain_copy_seconds": round(copied, 1),
            "ratio_to_plain_copy": round(seconds / copied, 2),
            "load_average": round(os.getloadavg()[0], 1),
            "worst_difference_of_largest_value": worst,
        }
        print(name, figures["exports"][name], flush=True)
    return figures


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    sync_file(path)
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run_process(line: list[str]) -> tuple[float, float, int]:
    """Wall seconds, processor seconds and peak resident bytes of one process."""
    script = "import resource as r, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
    script += "used = r.getrusage(r.RUSAGE_CHILDREN); print(used.ru_utime + used.ru_stime, used.ru_maxrss)"
    began = time.perf_counter()
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([sys.executable, "-c", script, *line], stdout=subprocess.PIPE, text=True, check=True, env=environment)
    busy, kibibytes = done.stdout.split()
    return time.perf_counter() - began, float(busy), int(kibibytes) * 1024


if __name__ == "__main__":
    main()

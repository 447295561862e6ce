"""What the choice of files costs beside the tokenizer, and what many small things cost: files, rows, duplicates, starts.

python -m benchmarks.selection [--sources FOLDER ... --tokenizer FOLDER] [--tiny-files N] [--rows N] [--start-up]
    [--output FILE.json]
"""

import argparse
import functools
import importlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.execution.pack import pack_dataset
from data_prep.filters.config import FiltersConfig
from data_prep.filters.filters import FILTERS, BytesFilter, FilterCounts, TextFilter, decode, filter_repository
from data_prep.pipeline.assignment import assign_sources
from data_prep.pipeline.config import PackConfig
from data_prep.pipeline.duplicates import Duplicates, write_duplicates
from data_prep.pipeline.held_out import duplicates_path, prepare_duplicates
from data_prep.sources.detection.secrets import find
from data_prep.sources.file_kinds import detected
from data_prep.sources.registry import SourcesConfig, list_repositories, read_repository
from data_prep.sources.repositories import SourceFile, TextFile
from data_prep.tokenization.encoding import Encoder
from mose.tokenizer import load_tokenizer

SEED = 0
BATCH_CHARACTERS = 1 << 22
FILES_PER_FOLDER = 100
# Its two searches are measured apart.
PLAIN = FiltersConfig(secrets="keep", personal_data="keep")


def steps(folders: list[str], tokenizer: str, repeats: int) -> dict[str, Any]:
    """CPU seconds of each step over all files, medians of repeats, and its share of the bare tokenizer in the same repeat."""
    checkouts = [folder for folder in folders if (Path(folder) / ".git").exists()]
    others = tuple(folder for folder in folders if folder not in checkouts)
    config = SourcesConfig(git_checkouts=tuple(checkouts), repositories=others, detection="suffix", detect_licences=False)
    raw = [file for ref in list_repositories(config) for file in read_repository(ref, config)]
    texts = list(filter_repository(map(detected, raw), PLAIN, FilterCounts()))
    encoder = Encoder(load_tokenizer(Path(tokenizer)))
    runs = [_seconds_of_steps(raw, texts, encoder) for _ in range(repeats)]
    return {
        "files": len(raw),
        "megabytes": sum(len(file.content) for file in raw) / 1e6,
        "kept_megabytes": sum(len(text.text) for text in texts) / 1e6,
        "repeats": repeats,
        "cpu_seconds": {name: statistics.median(run[name] for run in runs) for name in runs[0]},
        "share_of_encoding": {name: statistics.median(run[name] / run["encoding"] for run in runs) for name in runs[0]},
    }


def _seconds_of_steps(raw: list[SourceFile], texts: list[TextFile], encoder: Encoder) -> dict[str, float]:
    filters = {entry.reason: entry for entry in FILTERS}
    files = [text.source for text in texts]
    work: dict[str, Callable[[], object]] = {
        "encoding": lambda: [encoder.encode_flat(batch) for batch in _batches([text.text for text in texts])],
        "detection": lambda: [detected(file) for file in raw],
        "all filters": lambda: list(filter_repository(files, PLAIN, FilterCounts())),
        "secrets and addresses": lambda: [find(text.text, text.utf8, secrets=True, personal=True) for text in texts],
        "decoding": lambda: [decode(file.content, file.encoding) for file in files],
        **{f"filter {name}": functools.partial(_judge_all, entry, texts) for name, entry in filters.items()},
    }
    seconds = {}
    for name, run in work.items():
        began = time.process_time()
        run()
        seconds[name] = time.process_time() - began
    return seconds


def _judge_all(entry: BytesFilter | TextFilter, texts: list[TextFile]) -> None:
    for text in texts:
        if isinstance(entry, BytesFilter):
            entry.drops(text.source, PLAIN)
        else:
            entry.drops(text, PLAIN)


def _batches(texts: list[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if sum(map(len, batch)) >= BATCH_CHARACTERS:
            yield batch
            batch = []
    if batch:
        yield batch


def duplicates(repositories: int, files_each: int) -> dict[str, Any]:
    """Time and memory of the table of duplicates among made-up repositories, a tenth of whose files are copies."""
    generator = np.random.default_rng(SEED)
    total = repositories * files_each

    def files() -> Iterator[tuple[str, str]]:
        for first in range(0, repositories, 1000):
            drawn = generator.integers(total, size=(1000, files_each)) * (generator.random((1000, files_each)) < 0.1)
            for row, picks in enumerate(drawn.tolist()):
                for place, pick in enumerate(picks):
                    number = pick or (first + row) * files_each + place + total
                    yield f"owner/{first + row}", f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}{0:024x}"

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with TemporaryDirectory() as folder:
        path = Path(folder) / "duplicates.npy"
        began = time.process_time()
        write_duplicates(path, files(), SEED)
        seconds = time.process_time() - began
        found = len(Duplicates.read(path, SEED))
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {
        "repositories": repositories,
        "files": total,
        "duplicate_blobs": found,
        "cpu_seconds": seconds,
        "files_per_cpu_second": total / seconds,
        "peak_memory_growth_mib": growth,
    }


def duplicates_of_parquet(rows: int) -> dict[str, Any]:
    """Time and memory of the same by the functions of `mose-data pack`, from a parquet file of one-file rows."""
    with TemporaryDirectory() as folder:
        _write_rows(Path(folder) / "rows.parquet", rows)
        return {"rows": rows, **_in_process(_find_duplicates, Path(folder))}


def tiny_files(number: int, tokenizer: str) -> dict[str, Any]:
    """Time and memory of packing a repository of as many files of 20 to 300 bytes, as a folder and as a git checkout."""
    figures: dict[str, Any] = {"files": number}
    with TemporaryDirectory() as folder:
        place = Path(folder) / "repository"
        for index in range(number):
            file = place / f"{index // FILES_PER_FOLDER}" / f"{index}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(f"value_{index}_{line} = {line}\n" for line in range(1 + index % 15)))
        figures["folder"] = _in_process(_pack, SourcesConfig(repositories=(str(place),)), tokenizer, Path(folder) / "plain")
        for words in (
            ["init", "-q"],
            ["add", "-A"],
            ["-c", "user.name=a", "-c", "user.email=a@a.invalid", "commit", "-qm", "all"],
        ):
            subprocess.run(["git", "-C", str(place), *words], check=True)
        figures["git"] = _in_process(_pack, SourcesConfig(git_checkouts=(str(place),)), tokenizer, Path(folder) / "git")
    return figures


def _pack(sources: SourcesConfig, tokenizer: str, output: Path) -> dict[str, Any]:
    config = PackConfig(output=str(output), tokenizer=tokenizer, sources=sources, num_tasks=1, held_out_fraction=0.0)
    manifest = pack_dataset(config)
    assert manifest is not None
    reasons = manifest.statistics["filters"]["reasons"]
    return {"files_by_outcome": {reason: tally["files"] for reason, tally in reasons.items() if tally["files"]}}


def _in_process(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What `work` returns in a process of its own, with its CPU seconds and peak memory, children included."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return executor.submit(_measured, work, arguments).result()


def _measured(work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> dict[str, Any]:
    before, began = _usage()
    found = work(*arguments)
    after, ended = _usage()
    return {**found, "cpu_seconds": ended - began, "peak_mib_of_libraries": before, "peak_mib": after}


def _usage() -> tuple[float, float]:
    """Peak resident MiB of this process or its largest child, and CPU seconds of all of them."""
    usages = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return max(usage.ru_maxrss for usage in usages) / 1024, sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _write_rows(path: Path, rows: int) -> None:
    draws = np.random.default_rng(SEED)
    numbers = np.where(draws.random(rows) < 0.1, draws.integers(rows, size=rows), np.arange(rows) + rows)
    columns = {
        "blob_id": pa.array([f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}{0:024x}" for number in numbers.tolist()]),
        "path": pa.array(np.repeat("/a.py", rows)),
        "language": pa.array(np.repeat("Python", rows)),
        "length_bytes": pa.array(np.full(rows, 11)),
        "detected_licenses": pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32), pa.array(np.repeat("MIT", rows))),
        "license_type": pa.array(np.repeat("permissive", rows)),
        "src_encoding": pa.array(np.repeat("UTF-8", rows)),
        "is_vendor": pa.array(np.zeros(rows, bool)),
        "is_generated": pa.array(np.zeros(rows, bool)),
        "content": pa.array(np.repeat("number = 1\n", rows)),
    }
    structs = pa.StructArray.from_arrays([*columns.values()], [*columns])
    files = pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32), structs)
    names = pa.array([f"owner/{row}" for row in range(rows)])
    pq.write_table(pa.table({"repo_name": names, "files": files}), path, row_group_size=10_000)


def _find_duplicates(folder: Path) -> dict[str, Any]:
    sources = SourcesConfig(stack_v2=(str(folder / "rows.parquet"),))
    config = PackConfig(
        output=str(folder / "dataset"), tokenizer="none", sources=sources, duplicates="drop", held_out_fraction=0.0
    )
    assignment = assign_sources(config)
    listed, _ = _usage()
    prepare_duplicates(folder / "dataset", config, assignment)
    found = Duplicates.read(duplicates_path(folder / "dataset"), config.seed)
    return {"duplicate_blobs": len(found), "peak_mib_after_listing": listed}


def start_up(repeats: int) -> dict[str, float]:
    """CPU seconds of `--help` of each command, the least of the repeats: other load only adds to them.

    With compiled modules, as an installed package has them; one more run before the others writes them.
    """
    seconds = {}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with TemporaryDirectory() as folder:
        environment["PYTHONPYCACHEPREFIX"] = folder
        for package in ("data_prep", "pretrain", "finetune", "cluster"):
            for name in importlib.import_module(f"{package}.cli").commands():
                line = [sys.executable, "-m", f"{package}.cli", name, "--help"]
                runs = []
                for _ in range(repeats + 1):
                    _, began = _usage()
                    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, env=environment)
                    runs.append(_usage()[1] - began)
                seconds[f"{package} {name}"] = min(runs[1:])
    return seconds


def main() -> None:
    """Measure what was asked for and write the result; parts that were not stay as they are in the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", nargs="*", default=[], help="Folders and git checkouts whose files go through each step.")
    parser.add_argument("--tokenizer", default="", help="Needed for --sources and --tiny-files.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--repositories", type=int, default=0, help="Made-up repositories for the table of duplicates.")
    parser.add_argument("--tiny-files", type=int, default=0)
    parser.add_argument("--rows", type=int, default=0, help="Rows of parquet for the table of duplicates.")
    parser.add_argument("--start-up", action="store_true", help="CPU seconds of each command's --help.")
    parser.add_argument("--output", default="")
    parsed = parser.parse_args()
    output = Path(parsed.output)
    result: dict[str, Any] = json.loads(output.read_text("utf-8")) if output.is_file() else {}
    result["date"] = date.today().isoformat()
    result["hardware"] = f"{os.cpu_count()} cores (1 used), {platform.processor() or platform.machine()}, no GPU"
    result["seed"] = SEED
    found: dict[str, Any] = {}
    # First, because the memory of a process never shrinks in these figures.
    if parsed.repositories:
        found["duplicates"] = duplicates(parsed.repositories, 4)
    if parsed.rows:
        found["duplicates_of_parquet"] = duplicates_of_parquet(parsed.rows)
    if parsed.tiny_files:
        found["tiny_files"] = tiny_files(parsed.tiny_files, parsed.tokenizer)
    if parsed.sources:
        found["steps"] = steps(parsed.sources, parsed.tokenizer, parsed.repeats)
    if parsed.start_up:
        found["start_up_cpu_seconds"] = start_up(parsed.repeats)
    result |= found
    result["load_average"] = {**result.get("load_average", {}), **dict.fromkeys(found, os.getloadavg())}
    text = json.dumps(result, indent=1)
    print(text)
    if parsed.output:
        output.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()

"""What the choice of files costs beside the tokenizer: each step's CPU on real checkouts, and the duplicates of a million.

python -m benchmarks.selection --checkouts REPO ... --tokenizer TOKENIZER --output benchmarks/results/selection.json
"""

import argparse
import json
import os
import platform
import resource
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from data_prep.filters.filters import FilterCounts, FiltersConfig, filter_repository
from data_prep.pipeline.duplicates import Duplicates, write_duplicates
from data_prep.sources.detection.secrets import find
from data_prep.sources.file_kinds import detected
from data_prep.sources.registry import SourcesConfig, list_repositories, read_repository
from data_prep.tokenization.encoding import Encoder
from mose.tokenizer import load_tokenizer

SEED = 0
BATCH_CHARACTERS = 1 << 22


def steps(checkouts: list[str], tokenizer: str) -> dict[str, Any]:
    """CPU seconds of each step over all files of the checkouts."""
    config = SourcesConfig(git_checkouts=tuple(checkouts), detection="suffix", detect_licences=False)
    raw = [file for ref in list_repositories(config) for file in read_repository(ref, config)]
    began = time.process_time()
    files = [detected(file) for file in raw]
    detection = time.process_time() - began
    plain = FiltersConfig(secrets="keep", personal_data="keep")
    began = time.process_time()
    kept = list(filter_repository(files, plain, FilterCounts()))
    filters = time.process_time() - began
    began = time.process_time()
    for text in kept:
        find(text.text, text.utf8, secrets=True, personal=True)
    secrets = time.process_time() - began
    encoder = Encoder(load_tokenizer(Path(tokenizer)))
    began = time.process_time()
    for batch in _batches([text.text for text in kept]):
        encoder.encode_flat(batch)
    encoding = time.process_time() - began
    return {
        "files": len(files),
        "megabytes": sum(len(file.content) for file in raw) / 1e6,
        "kept_megabytes": sum(len(text.text) for text in kept) / 1e6,
        "cpu_seconds": {"detection": detection, "filters": filters, "secrets": secrets, "encoding": encoding},
        "share_of_encoding": {"detection": detection / encoding, "filters": filters / encoding, "secrets": secrets / encoding},
    }


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


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkouts", nargs="+", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--repositories", type=int, default=1_000_000)
    parser.add_argument("--output", default="")
    parsed = parser.parse_args()
    result = {
        "date": date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores (1 used), {platform.processor() or platform.machine()}, no GPU",
        "seed": SEED,
        # First, because the memory of a process never shrinks in these figures.
        "duplicates": duplicates(parsed.repositories, 4),
        "steps": steps(parsed.checkouts, parsed.tokenizer),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if parsed.output:
        Path(parsed.output).write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()

"""Peak memory of packing: bounded however large a repository is."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.data_prep.repositories import make_config

PEAK_MEGABYTES = 1500
FILE_BYTES = 400_000
# One repository whose files come one after another, each of other text, as from a source that streams; prints the peak.
PACK = """
import re, sys
import numpy as np
from data_prep.packing.config import PackingConfig
from data_prep.sources.repositories import RepositoryRef, SourceFile, content_sha1
from data_prep.pipeline.task import run_task
from tests.data_prep.repositories import make_config
from pathlib import Path

def files(count, size):
    words = np.array([f"{a}_{b}{c}" for a in ("get", "set", "item") for b in ("value", "index", "name") for c in range(999)])
    for number in range(count):
        chosen = np.random.default_rng(number).choice(words, (size // 14, 2))
        content = ("\\n".join(map(" = ".join, chosen)) + f"\\n# {number}\\n").encode()
        yield SourceFile("large", f"/{number:06d}.py", content, "Python", (), "permissive", content_sha1(content))

if __name__ == "__main__":
    config = make_config(Path(sys.argv[1]), packing=PackingConfig(), num_tasks=1, held_out_fraction=0.0).resolve()
    repository = (RepositoryRef("large", "directory", ""), files(int(sys.argv[2]), int(sys.argv[3])))
    result = run_task(config, 0, [repository], "listing")
    # Not ru_maxrss: a process begins with that of the one which started it, here all that the other tests have loaded.
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024 / 1e6
    print(peak, result.filters["reasons"]["kept"]["bytes"], result.rows["train"]["text_tokens"])
"""


def peak_of(folder: Path, megabytes: int) -> float:
    """Peak resident megabytes of a process that packs a repository of so much text."""
    make_config(folder)
    command = [sys.executable, "-c", PACK, str(folder), str(round(megabytes * 1e6 / FILE_BYTES)), str(FILE_BYTES)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[3]).stdout.split()
    assert float(printed[1]) >= 0.9 * megabytes * 1e6
    # More than two pools, so that the waiting texts are as many as they ever are.
    assert int(printed[2]) > 2 * 16_000_000
    return float(printed[0])


@pytest.mark.soak
def test_a_repository_of_several_pools_is_packed_in_bounded_memory(tmp_path: Path) -> None:
    assert peak_of(tmp_path, 60) < PEAK_MEGABYTES


@pytest.mark.soak
def test_a_repository_ten_times_as_large_takes_no_more(tmp_path: Path) -> None:
    assert peak_of(tmp_path, 600) < PEAK_MEGABYTES

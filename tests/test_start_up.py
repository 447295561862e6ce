"""What a command imports before it works: each pays only for what it uses, so that it answers in a fraction of a second.

Modules are compared, not times, because other load would disturb those.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Libraries of CPU seconds that no command needs to explain itself, and those that only some inputs need.
LATE = (
    *("torch", "transformers", "deepspeed", "megatron", "matplotlib", "pandas", "scipy", "sklearn"),
    *("upath", "fsspec", "aiohttp", "botocore", "requests", "openai", "huggingface_hub"),
    *("re2", "detect_secrets", "infer_license", "charset_normalizer", "tree_sitter", "pyarrow.dataset"),
)
# The commands of each package whose `--help` is asked for in one process, and further modules that none of them may load.
STARTS = {
    "data_prep": (
        "train-tokenizer pack status finish inspect lineage stats card remove dedup translate synthconl",
        "pyarrow.compute",
    ),
    "data_prep, all": ("", ""),
    "pretrain": ("", "pyarrow sentencepiece"),
    "finetune": ("", "pyarrow rich.progress"),
    "cluster": ("", "numpy pyarrow asyncio"),
}
SCRIPT = """
import contextlib, importlib, io, sys
package, names = sys.argv[1], sys.argv[2].split()
commands = importlib.import_module(package + ".cli").commands()
from mose.command import run_command
for name in names or commands:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        run_command("program", "", commands, [name, "--help"])
        raise AssertionError(name + ": gave no help")
print(*sys.modules)
"""


@pytest.mark.parametrize("start", STARTS)
def test_a_start_imports_no_library_that_it_does_not_use(start: str) -> None:
    names, forbidden = STARTS[start]
    line = [sys.executable, "-c", SCRIPT, start.partition(",")[0], names]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {*LATE, *forbidden.split()} & set(done.stdout.split()) == set()

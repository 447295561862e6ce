"""A fingerprint of a checkpoint folder: vectors of two models are never mixed, and no search reads gigabytes to make sure."""

import hashlib
from pathlib import Path

from mose.errors import MoseError
from mose.tokenizer import load_tokenizer

# A retrained model differs in nearly every block, so a sample of them tells two models apart.
_BLOCK_BYTES, _BLOCKS = 1 << 16, 64


def model_fingerprint(folder: Path) -> str:
    """16 hexadecimal digits of config.json, the tokenizer, and 64 blocks spread over each weight file (all of a small one).

    Raises:
        MoseError: the folder holds no such files.
    """
    digest = hashlib.sha256(load_tokenizer(folder).fingerprint().encode())
    paths = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    if len(paths) == 1:
        raise MoseError(f"{folder}: holds no .safetensors file, expected a folder written by `mose-finetune retrieval`")
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        step = max(_BLOCK_BYTES, (size - _BLOCK_BYTES) // (_BLOCKS - 1))
        with path.open("rb") as file:
            for start in range(0, size, step):
                file.seek(start)
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()[:16]

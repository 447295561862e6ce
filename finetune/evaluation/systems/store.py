"""Embeddings on disk by model, task and list of texts, in blocks, so that a killed run goes on where it was.

Letters: E exits, R rows (texts), D width.
"""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.embedding import with_progress
from finetune.evaluation.systems.system import Embedder
from finetune.evaluation.tasks.parts.problem import Texts
from finetune.retrieval.prompts import Prompt
from mose.errors import MoseError, first_line
from mose.files.atomic_file import atomic_write, write_json
from mose.files.json_file import parse_json
from mose.files.npy_file import read_npy

_INPUTS_NAME = "inputs.json"


class EmbeddingStore:
    """The embeddings of one model. Every block is one call of the model, so that a resumed run computes the same numbers."""

    def __init__(self, folder: Path, name: str, embedder: Embedder, block_texts: int):
        """Keep blocks of `block_texts` texts in `folder`; nothing is read or written yet."""
        self.folder, self.name, self.embedder, self.block_texts = folder, name, embedder, block_texts

    def table(self, task: str, texts: Texts) -> NDArray[np.float32]:
        """Embeddings [E, R, D] of a list of texts, computed where they are not on disk.

        Raises:
            MoseError: the folder holds embeddings of another model or of other texts, or the model gives vectors that are not
                finite, or of another width than before; one line.
        """
        label = f"{self.name}: {task}/{texts.name}"
        folder = self.folder / task.replace(":", "-") / f"{texts.name.replace(' ', '-')}-{texts.role}"
        self._bind(folder, texts)
        lengths = np.asarray(self.embedder.lengths(texts.prompts))
        order = np.argsort(lengths, kind="stable")
        starts = range(0, len(order), self.block_texts)
        found: list[NDArray[np.float32]] = []
        for number, start in enumerate(with_progress(starts, len(starts), label)):
            places = order[start : start + self.block_texts]
            prompts = [texts.prompts[place] for place in places.tolist()]
            found.append(self._block(folder / f"block-{number:06d}.npy", prompts, texts.role, label))
            if found[-1].shape[2] != found[0].shape[2]:
                widths = f"{found[-1].shape[2]} dimensions, expected the {found[0].shape[2]} of the texts before"
                raise MoseError(f"{label}: embeddings of {widths}")
        table = np.empty((len(self.embedder.exits), len(order), found[0].shape[2]), dtype=np.float32)
        table[:, order] = np.concatenate(found, axis=1)
        return table

    def _block(self, path: Path, prompts: Sequence[Prompt], role: str, label: str) -> NDArray[np.float32]:
        shape = (len(self.embedder.exits), len(prompts))
        if path.is_file():
            try:
                block: NDArray[np.float32] = read_npy(path)
                if block.ndim == 3 and block.shape[:2] == shape and block.dtype == np.float32:
                    return block
                fault = f"array of shape {block.shape}"
            except (OSError, ValueError) as error:
                fault = first_line(error)
            print(f"{path}: not a whole block of embeddings ({fault}): computed again", file=sys.stderr)
        block = self.embedder.embed(prompts, role)
        if block.ndim != 3 or block.shape[:2] != shape:
            raise MoseError(f"{label}: embeddings of shape {block.shape}, expected {shape[0]} exits x {shape[1]} texts x width")
        wrong = np.argwhere(~np.isfinite(block).all(axis=2))
        if len(wrong):
            text = prompts[int(wrong[0][1])].text
            exit_name = self.embedder.exits[int(wrong[0][0])].name
            raise MoseError(f"{label}: exit {exit_name}: the embedding of {text[:40]!r} holds NaN or infinity, expected numbers")
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            np.save(file, block)
        return block

    def _bind(self, folder: Path, texts: Texts) -> None:
        """Write down what the folder's embeddings are of, or refuse a folder that has others."""
        digest = hashlib.sha256()
        for prompt in texts.prompts:
            # Lengths keep two texts apart from one text that joins them.
            for part in (prompt.instruction, prompt.text):
                content = part.encode("utf-8", "surrogatepass")
                digest.update(f"{len(content)} ".encode() + content)
        inputs = {"model": self.embedder.fingerprint, "texts": digest.hexdigest()[:16], "block_texts": self.block_texts}
        path = folder / _INPUTS_NAME
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, inputs)
            return
        try:
            there = parse_json(path.read_bytes())
        except ValueError:
            there = None
        if there != inputs:
            names = [name for name, value in inputs.items() if not isinstance(there, dict) or there.get(name) != value]
            message = f"{path}: embeddings of another {' and other '.join(names)} than {self.name}'s, expected a new `output`"
            raise MoseError(f"{message}, or this folder removed")

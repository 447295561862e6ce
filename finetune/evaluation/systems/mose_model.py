"""Our retrieval checkpoints: the embeddings of every exit from one forward pass.

Letters: E exits, R rows (texts), D width.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.device import pick_device
from finetune.evaluation.embedding import embed_rows
from finetune.evaluation.systems.system import Exit, folder_fingerprint
from finetune.retrieval.prompts import Prompt, encode_prompts
from mose.checkpoint.converted_checkpoint import load_retrieval
from mose.model.size import encoder_parameters, flops_per_row
from mose.run_directory import exit_name
from mose.tokenizer import load_tokenizer


class MoseEmbedder:
    """A converted retrieval checkpoint."""

    def __init__(self, folder: Path, *, max_length: int, chunk_tokens: int, flops_tokens: int, device: str, bf16: bool):
        """Load model and tokenizer.

        Raises:
            MoseError: the folder is not a converted retrieval checkpoint, or the device cannot be used.
        """
        self._model, self._tokenizer = load_retrieval(folder), load_tokenizer(folder)
        shape = self._model.config
        self._max_length = max_length or int(shape.max_position_embeddings)
        self._chunk_tokens, self._device = chunk_tokens, pick_device(device)
        self._bf16 = bf16 and self._device.type == "cuda"
        self.fingerprint = f"{folder_fingerprint(folder)} max_length {self._max_length} bf16 {self._bf16}"
        self.exits = [
            Exit(exit_name(layer), layer, encoder_parameters(shape, layer), flops_per_row(shape, layer, flops_tokens) / 1e9)
            for layer in shape.exit_layers
        ]

    def lengths(self, prompts: Sequence[Prompt]) -> Sequence[int]:
        """Estimated tokens: tokenizing is left to each block."""
        return [prompt.estimated_tokens(self._max_length) for prompt in prompts]

    def embed(self, prompts: Sequence[Prompt], role: str) -> NDArray[np.float32]:
        """Normalised embeddings [E, R, D]; the instruction in each prompt is what tells queries from code."""
        rows = encode_prompts(self._tokenizer, prompts, self._max_length)
        return np.stack(embed_rows(self._model, rows, self._chunk_tokens, self._device, self._bf16, progress=False))

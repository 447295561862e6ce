"""Any sentence-transformers model by name or folder; its own prompts for queries and documents are used."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finetune.device import pick_device
from finetune.evaluation.systems.system import Exit
from finetune.retrieval.prompts import Prompt
from mose.checkpoint.retrieval_prompts import QUERY_PROMPT
from mose.errors import MoseError, first_line

_BATCH_TEXTS = 32


class SentenceEmbedder:
    """A sentence-transformers model."""

    def __init__(self, name: str, *, max_length: int, device: str, remote_code: bool):
        """Load it.

        Raises:
            MoseError: sentence-transformers is not installed, or it cannot open the model.
        """
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise MoseError(f"models: {name}: sentence-transformers is not installed, expected it for this model") from None
        try:
            self._model = SentenceTransformer(name, device=str(pick_device(device)), trust_remote_code=remote_code)
            # Loaded with whatever the folder asks for: any of many libraries may fail, each with errors of its own.
        except Exception as error:
            raise MoseError(f"models: {name}: sentence-transformers cannot open it: {first_line(error)}") from None
        longest = self._model.max_seq_length
        if max_length and (longest is None or longest > max_length):
            self._model.max_seq_length = max_length
        digest = hashlib.sha256(f"{self._model.max_seq_length}".encode())
        for key, tensor in self._model.state_dict().items():
            digest.update(key.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        self.fingerprint = digest.hexdigest()[:16]
        self.exits = [Exit(parameters=sum(weight.numel() for weight in self._model.parameters()))]

    def lengths(self, prompts: Sequence[Prompt]) -> Sequence[int]:
        """Characters."""
        return [len(prompt.text) for prompt in prompts]

    def embed(self, prompts: Sequence[Prompt], role: str) -> NDArray[np.float32]:
        """Normalised embeddings [1, R, D] of the texts, without our instructions."""
        encode = self._model.encode_query if role == QUERY_PROMPT else self._model.encode_document
        texts = [prompt.text for prompt in prompts]
        table = encode(texts, batch_size=_BATCH_TEXTS, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(table, dtype=np.float32)[None]

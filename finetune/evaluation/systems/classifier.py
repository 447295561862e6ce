"""Our classification checkpoints on pairs of texts: every exit says clone or not by its larger logit (paper Table 2)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from finetune.batches import chunks_by_length, pack_rows
from finetune.classification.rows import encode_rows
from finetune.device import pick_device, precision
from finetune.evaluation.embedding import with_progress
from finetune.evaluation.systems.system import Exit, folder_fingerprint
from finetune.evaluation.tasks.parts.judges import ClonePairs
from finetune.evaluation.tasks.parts.problem import Judged, Part
from mose.checkpoint.converted_checkpoint import load_classification
from mose.errors import MoseError
from mose.model.size import encoder_parameters, flops_per_row
from mose.run_directory import exit_name
from mose.tokenizer import load_tokenizer


class ClassifierSystem:
    """A converted classification checkpoint of two classes; it has answers for parts of pairs only."""

    kind = "classifier"

    def __init__(
        self, name: str, folder: Path, *, max_length: int, chunk_tokens: int, flops_tokens: int, device: str, bf16: bool
    ):
        """Load model and tokenizer.

        Raises:
            MoseError: the folder is not a converted classification checkpoint, or it has not two classes.
        """
        self.name, self._model, self._tokenizer = name, load_classification(folder), load_tokenizer(folder)
        shape = self._model.config
        if shape.num_labels != 2:
            raise MoseError(f"models: {name}: {folder} has {shape.num_labels} classes, expected 2: no clone, clone")
        self._max_length = max_length or int(shape.max_position_embeddings)
        self._chunk_tokens, self._device = chunk_tokens, pick_device(device)
        self._bf16 = bf16 and self._device.type == "cuda"
        self.fingerprint = f"{folder_fingerprint(folder)} max_length {self._max_length} bf16 {self._bf16}"
        self.exits: Sequence[Exit] = [
            Exit(exit_name(layer), layer, encoder_parameters(shape, layer), flops_per_row(shape, layer, flops_tokens) / 1e9)
            for layer in shape.exit_layers
        ]

    def judge(self, task: str, part: Part) -> list[Judged] | None:
        """Scores of each exit on the scored pairs, from one pass; None for parts that are not pairs."""
        if not isinstance(part.judge, ClonePairs):
            return None
        pairs, prompts = part.judge.scored, part.documents.prompts
        places = zip(pairs.first_P.tolist(), pairs.second_P.tolist(), strict=True)
        texts = [(prompts[first].text, prompts[second].text) for first, second in places]
        rows = encode_rows(self._tokenizer, texts, self._max_length)
        predicted_EP = np.zeros((len(self.exits), len(rows)), dtype=bool)
        self._model.to(self._device).eval()
        chunks = chunks_by_length([len(row) for row in rows], max_rows=len(rows), max_tokens=self._chunk_tokens)
        with torch.inference_mode(), precision(self._device, self._bf16):
            for chunk in with_progress(chunks, len(chunks), f"{self.name}: {task}"):
                batch = pack_rows([rows[index] for index in chunk]).to(self._device)
                logits = self._model.classify(batch.input_ids_N, batch.positions_N, batch.cu_seqlens, batch.max_length)
                for exit_index, logits_BC in enumerate(logits):
                    if not bool(torch.isfinite(logits_BC).all()):
                        name = self.exits[exit_index].name
                        raise MoseError(f"{self.name}: {task}: exit {name}: a logit is NaN or infinity, expected numbers")
                    predicted_EP[exit_index, chunk] = (logits_BC.argmax(dim=-1) == 1).cpu().numpy()
        return [part.judge.judge_predictions(predicted_P) for predicted_P in predicted_EP]

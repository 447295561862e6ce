"""One exit of a model as mteb takes models, so that CoIR and any other task of mteb is scored by mteb's own code.

Letters: E exits, R rows (texts), D width.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.evaluation.systems.embedding import EmbeddingSystem
from finetune.evaluation.systems.system import ONLY_EXIT
from finetune.evaluation.tasks.parts.problem import Texts
from finetune.retrieval.prompts import Prompt, code_prompt, text_prompt
from mose.checkpoint.retrieval_prompts import DOCUMENT_PROMPT, QUERY_PROMPT
from mose.errors import MoseError, first_line

_CODE_LANGUAGE = "-Code"


class MtebExit:
    """mteb's encoder interface. All exits share the store: the first exit's run computes the embeddings of all of them."""

    def __init__(self, system: EmbeddingSystem, exit_index: int):
        """Stand for one exit of the model."""
        from mteb.models import ModelMeta

        self._system, self._exit_index = system, exit_index
        row = system.exits[exit_index]
        name = "".join(letter if letter.isalnum() else "-" for letter in system.name)
        revision = hashlib.sha256(system.fingerprint.encode()).hexdigest()[:16]
        suffix = "" if row.name == ONLY_EXIT else f"-exit-{row.name}"
        values = {"name": f"local/{name}{suffix}", "revision": revision, "n_parameters": row.parameters}
        self.mteb_model_meta = ModelMeta.create_empty(overwrites=values)

    def encode(
        self,
        inputs: Iterable[dict[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **options: Any,
    ) -> NDArray[np.float32]:
        """Embeddings [R, D] of the texts of all batches; queries get the text instruction, everything else that of code."""
        texts = [text for batch in inputs for text in batch["text"]]
        is_query = prompt_type is not None and str(getattr(prompt_type, "value", prompt_type)) == "query"
        language = _language(task_metadata.eval_langs, hf_subset)
        prompts: list[Prompt] = [text_prompt(text) if is_query else code_prompt(text, language) for text in texts]
        # mteb hands the corpus over in pieces: each is a list of its own, named by what it holds.
        digest = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        found = self._system.store.table(
            f"mteb-{task_metadata.name}", Texts(digest, QUERY_PROMPT if is_query else DOCUMENT_PROMPT, prompts)
        )
        table_RD: NDArray[np.float32] = found[self._exit_index]
        return table_RD

    def similarity(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Cosines of all pairs: embeddings are normalised."""
        return torch.as_tensor(embeddings1) @ torch.as_tensor(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Cosine of each pair."""
        return (torch.as_tensor(embeddings1) * torch.as_tensor(embeddings2)).sum(dim=-1)


def named_tasks(names: Sequence[str]) -> list[Any]:
    """mteb's tasks of these names.

    Raises:
        MoseError: mteb is not installed, or has no such task.
    """
    try:
        import mteb
    except ImportError:
        raise MoseError("mteb_tasks: mteb is not installed, expected it for these tasks (pip install mteb)") from None
    found = []
    for name in names:
        try:
            found.append(mteb.get_task(name))
        except (KeyError, ValueError) as error:
            raise MoseError(f"mteb_tasks: {name!r}: {first_line(error)}") from None
    return found


def mteb_scores(system: EmbeddingSystem, task: Any) -> list[float]:
    """The task's main score of each exit, by mteb's own runner.

    Raises:
        MoseError: the task's data cannot be loaded, or mteb cannot score it; one line.
    """
    import mteb

    scores = []
    for index in range(len(system.exits)):
        try:
            result = mteb.evaluate(MtebExit(system, index), task, cache=None, co2_tracker=False, show_progress_bar=False)
        except MoseError:
            raise
        # Data sets come over the network through libraries that raise errors of their own.
        except Exception as error:
            raise MoseError(f"mteb_tasks: {task.metadata.name}: {first_line(error)}") from None
        scores.append(float(result.task_results[0].get_score()))
    return scores


def _language(eval_langs: Any, subset: str) -> str:
    """The programming language of a subset where the task names exactly one, else ''."""
    names = eval_langs.get(subset, []) if isinstance(eval_langs, dict) else eval_langs
    languages = [name.removesuffix(_CODE_LANGUAGE) for name in names if name.endswith(_CODE_LANGUAGE)]
    return languages[0] if len(languages) == 1 else ""

"""One exit as a model of mteb: mteb's own runner gives the NDCG@10 that our judge gives, and all exits share one pass."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.evaluation.systems.embedding import EmbeddingSystem
from finetune.evaluation.systems.mose_model import MoseEmbedder
from finetune.evaluation.systems.mteb_exit import mteb_scores, named_tasks
from finetune.evaluation.systems.store import EmbeddingStore
from finetune.evaluation.tasks.parts.judges import JudgedDocuments
from finetune.evaluation.tasks.parts.problem import Part, Texts
from finetune.retrieval.prompts import code_prompt, text_prompt
from mose.errors import MoseError
from tests.finetune.conftest import make_pairs

mteb = pytest.importorskip("mteb")


def cosqa(relevant: list[int]) -> Any:
    """mteb's own CosQA task on 30 documents of ours instead of the published ones."""
    from datasets import Dataset
    from mteb.tasks.retrieval.code.cos_qa_retrieval import CosQARetrieval

    pairs = make_pairs(30)

    class LocalCosQA(CosQARetrieval):
        def load_data(self, *arguments: Any, **options: Any) -> None:
            corpus = [{"id": f"d{i}", "title": "", "text": pair.code_a.strip()} for i, pair in enumerate(pairs)]
            queries = [{"id": f"q{i}", "text": pair.nl} for i, pair in enumerate(pairs[:12])]
            qrels = {f"q{i}": {f"d{document}": 1} for i, document in enumerate(relevant)}
            values = {"corpus": Dataset.from_list(corpus), "queries": Dataset.from_list(queries)}
            self.dataset = {"default": {"test": {**values, "relevant_docs": qrels, "top_ranked": None}}}  # type: ignore[typeddict-item]
            self.data_loaded = True

    return LocalCosQA()


def test_mtebs_score_is_ours_and_all_exits_share_one_pass(retriever: Path, tmp_path: Path) -> None:
    embedder = MoseEmbedder(retriever, max_length=0, chunk_tokens=500, flops_tokens=64, device="cpu", bf16=True)
    texts = [0]
    embed = embedder.embed

    def counted(prompts: Any, role: str) -> Any:
        texts[0] += len(prompts)
        return embed(prompts, role)

    embedder.embed = counted  # type: ignore[method-assign]
    system = EmbeddingSystem("mose", EmbeddingStore(tmp_path, "Ours", embedder, 16))
    relevant = [(7 * i + 3) % 30 for i in range(12)]
    found = mteb_scores(system, cosqa(relevant))
    assert texts[0] == 42 and len(found) == 3
    pairs = make_pairs(30)
    part = Part(
        "",
        Texts("c", "document", [code_prompt(pair.code_a.strip(), "python") for pair in pairs]),
        JudgedDocuments([np.array([document]) for document in relevant], [np.array([1])] * 12),
        Texts("q", "query", [text_prompt(pair.nl) for pair in pairs[:12]]),
    )
    ours = [judged.values["ndcg_at_10"].score for judged in system.judge("ours", part)]
    assert found == pytest.approx(ours, abs=1e-5)


def test_a_task_that_mteb_does_not_have_is_one_line() -> None:
    with pytest.raises(MoseError, match="mteb_tasks: 'Sonnets': "):
        named_tasks(["Sonnets"])


def test_coir_is_there_by_name() -> None:
    names = ["CodeSearchNetCCRetrieval", "CosQA", "CodeTransOceanDL", "CodeTransOceanContest"]
    assert [task.metadata.name for task in named_tasks(names)] == names

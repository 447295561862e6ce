"""The models of a benchmark: each gives what it gives when it is used alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from finetune.classification.rows import encode_rows
from finetune.evaluation.systems.classifier import ClassifierSystem
from finetune.evaluation.systems.lexical import LexicalSystem
from finetune.evaluation.systems.mose_model import MoseEmbedder
from finetune.evaluation.systems.sentence_model import SentenceEmbedder
from finetune.evaluation.tasks.parts.judges import ClonePairs, Pairs, SameLabel
from finetune.evaluation.tasks.parts.problem import Part, Texts
from finetune.retrieval.prompts import code_prompt, encode_prompts, text_prompt
from mose.checkpoint.converted_checkpoint import load_classification, load_retrieval, truncate_at
from mose.errors import MoseError
from mose.tokenizer import load_tokenizer
from tests.finetune.conftest import make_pairs

PROMPTS = [text_prompt(pair.nl) for pair in make_pairs(9)] + [code_prompt(pair.code_a, "python") for pair in make_pairs(9)]


def ours(folder: Path, chunk_tokens: int = 100) -> MoseEmbedder:
    return MoseEmbedder(folder, max_length=0, chunk_tokens=chunk_tokens, flops_tokens=64, device="cpu", bf16=True)


def clones() -> Part:
    documents = Texts("functions", "document", [code_prompt(pair.code_a, "java") for pair in make_pairs(12)])
    first, second = np.arange(11), np.arange(1, 12)
    pairs = Pairs(first, second, np.arange(11) % 2)
    return Part("", documents, ClonePairs(pairs, pairs))


def test_five_exits_of_one_pass_equal_a_pass_of_each_truncated_model(retriever: Path) -> None:
    embedder = ours(retriever)
    table = embedder.embed(PROMPTS, "document")
    assert table.shape == (3, 18, 32) and [row.layer for row in embedder.exits] == [1, 2, 4]
    rows = encode_prompts(load_tokenizer(retriever), PROMPTS, 128)
    for index, layer in enumerate((1, 2, 4)):
        alone = truncate_at(load_retrieval(retriever), layer).eval()
        for place in (0, 13):
            ids = torch.from_numpy(rows[place].astype(np.int64))[None]
            with torch.inference_mode():
                found = alone(input_ids=ids, attention_mask=torch.ones_like(ids)).projected_pooled_normalized[-1][0]
            assert np.abs(found.numpy() - table[index, place]).max() < 1e-5


def test_a_fingerprint_is_that_of_the_files_and_of_what_changes_numbers(retriever: Path, classifier: Path) -> None:
    assert ours(retriever).fingerprint == ours(retriever, chunk_tokens=7).fingerprint
    shorter = MoseEmbedder(retriever, max_length=30, chunk_tokens=100, flops_tokens=64, device="cpu", bf16=True)
    assert shorter.fingerprint != ours(retriever).fingerprint


def test_a_sentence_transformers_model_is_used_as_it_is(sentence_folder: Path) -> None:
    embedder = SentenceEmbedder(str(sentence_folder), max_length=0, device="cpu", remote_code=False)
    texts = [prompt.text for prompt in PROMPTS]
    expected = SentenceTransformer(str(sentence_folder), device="cpu").encode(texts, normalize_embeddings=True)
    assert np.abs(embedder.embed(PROMPTS, "query")[0] - expected).max() < 1e-6
    assert embedder.exits[0].parameters and len(embedder.exits) == 1


def test_our_folder_in_sentence_transformers_gives_our_deepest_exit(retriever: Path) -> None:
    embedder = SentenceEmbedder(str(retriever), max_length=0, device="cpu", remote_code=True)
    expected = ours(retriever).embed(PROMPTS[:9], "query")[-1]
    assert np.abs(embedder.embed(PROMPTS[:9], "query")[0] - expected).max() < 1e-5


def test_a_folder_that_is_no_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MoseError, match="models: .*nothing: sentence-transformers cannot open it: "):
        SentenceEmbedder(str(tmp_path / "nothing"), max_length=0, device="cpu", remote_code=False)


def test_a_classifier_answers_pairs_by_its_larger_logit(classifier: Path) -> None:
    part = clones()
    system = ClassifierSystem("C", classifier, max_length=0, chunk_tokens=60, flops_tokens=64, device="cpu", bf16=True)
    found = system.judge("clones", part)
    assert found is not None and len(found) == 3
    model, tokenizer = load_classification(classifier).eval(), load_tokenizer(classifier)
    texts = [prompt.text for prompt in part.documents.prompts]
    rows = encode_rows(tokenizer, [(texts[i], texts[i + 1]) for i in range(11)], 128)
    predicted = np.zeros((3, 11), dtype=bool)
    for place, row in enumerate(rows):
        ids = torch.from_numpy(row.astype(np.int64))
        with torch.inference_mode():
            logits = model.classify(ids, torch.arange(len(row)), torch.tensor([0, len(row)], dtype=torch.int32), len(row))
        predicted[:, place] = [int(logits_BC.argmax()) == 1 for logits_BC in logits]
    assert isinstance(part.judge, ClonePairs)
    for judged, predicted_P in zip(found, predicted, strict=True):
        expected = part.judge.judge_predictions(predicted_P)
        assert {name: value.score for name, value in judged.values.items()} == {
            name: value.score for name, value in expected.values.items()
        }


def test_a_classifier_has_no_answer_to_a_search(classifier: Path) -> None:
    system = ClassifierSystem("C", classifier, max_length=0, chunk_tokens=60, flops_tokens=64, device="cpu", bf16=True)
    search = Part("", clones().documents, SameLabel(np.arange(12) % 3, np.arange(12)))
    assert system.judge("poj104", search) is None


@pytest.mark.parametrize("kind", ["tfidf", "bm25"])
def test_words_alone_find_programs_of_the_same_words(kind: str) -> None:
    texts = [f"{noun} {number}" for number in range(4) for noun in ("apple pear", "house door")]
    part = Part("", Texts("t", "document", [code_prompt(text, "c") for text in texts]), SameLabel(np.arange(8) % 2, np.arange(8)))
    assert LexicalSystem(kind, kind).judge("t", part)[0].values["map_at_r"].score == 1


def test_documents_without_words_are_one_line() -> None:
    part = Part("", Texts("t", "document", [code_prompt("++", "c")] * 3), SameLabel(np.zeros(3, dtype=np.int64), np.arange(3)))
    with pytest.raises(MoseError, match="TF-IDF: poj104 : empty vocabulary.*, expected documents with words"):
        LexicalSystem("TF-IDF", "tfidf").judge("poj104", part)

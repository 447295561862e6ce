"""Run by test_folder_tools.py in a process that cannot import our packages: each tool is used on an exported folder as its own
documentation shows it. Arguments: the folders of the pre-trained, retrieval and classification model, and a folder to write into.
"""

import contextlib
import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

# Worker processes import this file as well, and cannot import our packages either.
for package in ("mose", "pretrain", "finetune", "data_prep", "cluster"):
    sys.modules[package] = None  # type: ignore[assignment]

TEXTS = ["def f(x): return x", "for i in range(9): print(i)", "a", "b = {}", "while True: pass", "import os"]
QUIET: dict[str, Any] = {"report_to": [], "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}


class Tensors(nn.Module):
    """A model that takes and returns tensors alone, as exporters want it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return output.projected_pooled_normalized[-1] if "projected_pooled_normalized" in output else output.last_hidden_state


def opened(folder: str, auto: Any = AutoModel, **options: Any) -> Any:
    return auto.from_pretrained(folder, trust_remote_code=True, **options).eval()


def encoded(folder: str, texts: list[str]) -> Any:
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=True)(texts, padding=True, return_tensors="pt")


@torch.no_grad()
def onnx(folder: str, out: Path, exit_layer: int) -> float:
    """Largest difference of the ONNX graph of one exit to the model, at a batch and a length other than those of the export."""
    import onnxruntime

    model, rows = Tensors(opened(folder, exit_layer=exit_layer)), encoded(folder, TEXTS[:3])
    shapes = {0: torch.export.Dim("rows", max=64), 1: torch.export.Dim("slots", max=512)}
    path = str(out / f"exit{exit_layer}.onnx")
    with contextlib.redirect_stdout(sys.stderr):
        torch.onnx.export(
            model,
            (rows.input_ids, rows.attention_mask),
            path,
            dynamo=True,
            dynamic_shapes=(shapes, shapes),
            input_names=["input_ids", "attention_mask"],
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rows = encoded(folder, [" ".join(TEXTS), "c"])
    found = session.run(None, {name: rows[name].numpy() for name in ("input_ids", "attention_mask")})[0]
    return float((torch.from_numpy(found) - model(rows.input_ids, rows.attention_mask)).abs().max())


def lora(folder: str, out: Path) -> dict[str, Any]:
    """An adapter of a classifier learns, is saved, and gives the same logits on a freshly opened model."""
    from peft import LoraConfig, PeftModel, get_peft_model

    rows, labels = encoded(folder, TEXTS), torch.tensor([0, 1, 2, 0, 1, 2])
    options = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["dense", "out_proj"])
    model = get_peft_model(opened(folder, AutoModelForSequenceClassification), options)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(6):
        loss = model(**rows, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    model.eval().save_pretrained(out / "adapter")
    again = PeftModel.from_pretrained(opened(folder, AutoModelForSequenceClassification), out / "adapter").eval()
    with torch.no_grad():
        return {"losses": losses, "same": torch.equal(model(**rows).logits, again(**rows).logits)}


@torch.no_grad()
def int8(folder: str) -> float:
    """Least cosine of an int8 model's embeddings to the plain one's."""
    rows, plain = encoded(folder, TEXTS), opened(folder)
    quantized = torch.ao.quantization.quantize_dynamic(opened(folder), {nn.Linear}, dtype=torch.qint8)
    pairs = zip(plain(**rows).projected_pooled_normalized, quantized(**rows).projected_pooled_normalized, strict=True)
    return min(float((a * b).sum(dim=-1).min()) for a, b in pairs)


def trainer(folder: str, out: Path) -> dict[str, Any]:
    """Steps of transformers' Trainer, with gradient checkpointing; its predictions; and the folder that it saves."""
    from transformers import Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    data = [{**tokenizer(text), "labels": place % 3} for place, text in enumerate(TEXTS)]
    options = {"max_steps": 3, "per_device_train_batch_size": 3, "report_to": [], "save_strategy": "no", "use_cpu": True}
    arguments = TrainingArguments(
        str(out / "trainer"), gradient_checkpointing=True, logging_steps=1, disable_tqdm=True, **options
    )
    model = opened(folder, AutoModelForSequenceClassification)
    run = Trainer(model, arguments, train_dataset=data, data_collator=DataCollatorWithPadding(tokenizer))
    with contextlib.redirect_stdout(sys.stderr):
        run.train()
        predictions = run.predict(data).predictions
    run.save_model(str(out / "trained"))
    again, rows = opened(str(out / "trained"), AutoModelForSequenceClassification), encoded(folder, TEXTS)
    with torch.no_grad():
        difference = float((again(**rows).logits - model.eval()(**rows).logits).abs().max())
    steps = [line for line in run.state.log_history if "grad_norm" in line]
    return {"shape": list(predictions.shape), "steps": len(steps), "difference": difference}


def sentences(folder: str, out: Path) -> dict[str, Any]:
    """sentence-transformers: several processes encode as one does; its trainer changes the embeddings, and its folder opens."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    model = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
    before = model.encode(TEXTS)
    pool = model.start_multi_process_pool(["cpu"] * 2)
    shared = model.encode(TEXTS, pool=pool, chunk_size=3)
    model.stop_multi_process_pool(pool)
    data = Dataset.from_dict({"anchor": TEXTS, "positive": TEXTS[1:] + TEXTS[:1]})
    options = {"max_steps": 2, "per_device_train_batch_size": 3, "learning_rate": 1e-3, **QUIET}
    arguments = SentenceTransformerTrainingArguments(str(out / "sentences"), **options)
    with contextlib.redirect_stdout(sys.stderr):
        SentenceTransformerTrainer(model, arguments, train_dataset=data, loss=MultipleNegativesRankingLoss(model)).train()
    model.save_pretrained(str(out / "sentences_trained"))
    after = model.encode(TEXTS)
    again = SentenceTransformer(str(out / "sentences_trained"), trust_remote_code=True, device="cpu").encode(TEXTS)
    return {
        "processes": float(abs(shared - before).max()),
        "moved": float(abs(after - before).max()),
        "saved": float(abs(again - after).max()),
    }


def benchmark(folder: str) -> dict[str, float] | None:
    """mteb's CosQA task on texts of ours: its NDCG@10, and the same from the embeddings of `encode`; None without mteb.

    Query i has the one answer i. mteb must find the prompts of queries and of codes by itself.
    """
    if importlib.util.find_spec("mteb") is None:
        return None
    import mteb
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
    queries = [" ".join(reversed(text.split())) for text in TEXTS]
    names = [str(place) for place in range(len(TEXTS))]
    (task,) = mteb.get_tasks(tasks=["CosQA"])
    split = {side: Dataset.from_dict({"id": names, "text": texts}) for side, texts in (("queries", queries), ("corpus", TEXTS))}
    task.dataset = {"default": {"test": {**split, "relevant_docs": {name: {name: 1} for name in names}, "top_ranked": None}}}
    task.data_loaded = True
    with contextlib.redirect_stdout(sys.stderr):
        (result,) = mteb.evaluate(model, task, cache=None, show_progress_bar=False).task_results
    similarities = torch.from_numpy(model.encode(queries, prompt_name="query") @ model.encode(TEXTS, prompt_name="document").T)
    ranks = 1 + (similarities > similarities.diagonal()[:, None]).sum(dim=1)
    expected = sum(1 / math.log2(1 + rank) for rank in ranks.tolist()) / len(TEXTS)
    return {"mteb": result.scores["test"][0]["ndcg_at_10"], "expected": expected}


def main() -> None:
    pretrained, retrieval, classifier, out = sys.argv[1:5]
    chosen, folder = sys.argv[5:], Path(out)
    tools: dict[str, Any] = {
        "onnx_1": lambda: onnx(pretrained, folder, 1),
        "onnx_2": lambda: onnx(retrieval, folder, 2),
        "lora": lambda: lora(classifier, folder),
        "int8": lambda: int8(retrieval),
        "trainer": lambda: trainer(classifier, folder),
        "sentences": lambda: sentences(retrieval, folder),
        "mteb": lambda: benchmark(retrieval),
    }
    print(json.dumps({name: run() for name, run in tools.items() if not chosen or name in chosen}))


if __name__ == "__main__":
    main()

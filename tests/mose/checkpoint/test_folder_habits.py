"""Covers what transformers users do with an exported folder, in a process that cannot import our packages."""

import json
import subprocess
from pathlib import Path

from mose.checkpoint.converted_checkpoint import random_like, retrieval_from_pretrained, write_checkpoint
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.tokenizer import load_tokenizer
from tests.commands import environment
from tests.datasets import make_tokenizer

CONFIG = ModularStarEncoderConfig(
    vocab_size=420,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    matryoshka_layers=[1, 2, 4],
)
LITERALS = ["x = '<sep>' + '<cls>'", "a<pad>b <mask> <unk>"]
READER = """
import json, sys
for name in ("mose", "pretrain", "finetune", "data_prep", "cluster"):
    sys.modules[name] = None
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer, pipeline
first, second, literals = json.loads(sys.argv[1])
found = {"classes": []}
for folder in (first, second, first):
    found["classes"].append(type(AutoModel.from_pretrained(folder, trust_remote_code=True)).__name__)
for auto in (AutoModelForMaskedLM, AutoModelForPreTraining):
    found["classes"].append(type(auto.from_pretrained(first, trust_remote_code=True)).__name__)
tokenizer = AutoTokenizer.from_pretrained(first, trust_remote_code=True)
found["ids"] = [tokenizer(text).input_ids[1:-1] for text in literals]
model = AutoModelForMaskedLM.from_pretrained(first, trust_remote_code=True)
fill = pipeline("fill-mask", model=model, tokenizer=tokenizer)
found["filled"] = len(fill("a <mask> b", top_k=3, tokenizer_kwargs={"split_special_tokens": False}))
# By the folder's name alone, and what a caller may pass besides.
fill = pipeline("fill-mask", first, trust_remote_code=True)
found["plain"] = fill("a <mask> b", top_k=3) == fill("a <mask> b", top_k=3, tokenizer_kwargs={"split_special_tokens": False})
found["several"] = [len(texts) for texts in fill(["a <mask>", "<mask> b"], tokenizer_kwargs={"truncation": True}, top_k=2)]
found["fine_tuned_pipelines"] = json.load(open(f"{second}/config.json")).get("custom_pipelines")
rows = tokenizer(["a b", "c"], padding=True, return_tensors="pt")
found["loss"] = model(**rows, labels=rows.input_ids).loss.item()
model.resize_token_embeddings(431, mean_resizing=False)
model.save_pretrained("resized")
again = type(model).from_pretrained("resized")
found["same"] = all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
tokenizer.save_pretrained("resized")
found["saved"] = len(pipeline("fill-mask", "resized", trust_remote_code=True)("a <mask> b"))
print(json.dumps(found))
"""


def test_folders_of_one_name_tasks_literal_tokens_and_resizing(tmp_path: Path, folder_python: str) -> None:
    make_tokenizer(tmp_path / "tokenizer", 420)
    first, second = tmp_path / "pretrained" / "exit_04", tmp_path / "retrieval" / "exit_04"
    for folder, model in ((first, random_like(CONFIG, 1)), (second, retrieval_from_pretrained(random_like(CONFIG, 1), 2))):
        folder.parent.mkdir()
        write_checkpoint(folder, model, tmp_path / "tokenizer", {})
    given = json.dumps([str(first), str(second), LITERALS])
    done = subprocess.run(
        [folder_python, "-c", READER, given],
        cwd=tmp_path,
        env=environment(HF_HOME=str(tmp_path / "hub"), PYTHONPATH=""),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    opened = ["", "ForRetrieval", "", "ForMaskedLM", "ForPreTraining"]
    assert found["classes"] == [f"ModularStarEncoder{kind}" for kind in opened]
    ours = load_tokenizer(first)
    assert found["ids"] == [ours.encode(text).tolist() for text in LITERALS]
    assert found["filled"] == 3
    assert found["plain"]
    assert found["several"] == [2, 2]
    assert not found["fine_tuned_pipelines"]
    assert found["saved"] == 5
    assert found["loss"] > 0
    assert found["same"]

"""Writes a sentence-transformers model of random weights, a BERT with mean pooling: a peer for benchmarks without a download.

python -m benchmarks.random_sentence_model FOLDER CHECKPOINT
    CHECKPOINT is a converted checkpoint, whose tokenizer.json is taken.
"""

import sys
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WIDTH, LAYERS, LONGEST = 64, 1, 256


def write_random_model(folder: Path, tokenizer_json: Path, seed: int = 0) -> None:
    """Write the model; equal seeds give equal weights."""
    torch.manual_seed(seed)
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<cls>", "sep_token": "<sep>", "mask_token": "<mask>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_json), **names)
    shape = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=LONGEST,
    )
    base = folder / "base"
    tokenizer.save_pretrained(base)
    BertModel(shape).save_pretrained(base)
    SentenceTransformer(modules=[Transformer(str(base), max_seq_length=LONGEST), Pooling(WIDTH)]).save(str(folder))


if __name__ == "__main__":
    write_random_model(Path(sys.argv[1]), Path(sys.argv[2]) / "tokenizer.json")

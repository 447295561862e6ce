"""What sentence-transformers reads in a converted checkpoint: its modules, and for retrieval models the prompts."""

from collections.abc import Mapping
from pathlib import Path

from mose.checkpoint.retrieval_prompts import DOCUMENT_PROMPT
from mose.files.atomic_file import write_json

CONFIG_NAME = "config_sentence_transformers.json"
TRANSFORMER_NAME = "sentence_bert_config.json"


def write_sentence_transformer(folder: Path, width: int, instructions: Mapping[str, str]) -> None:
    """Describe the folder: the model's last hidden state, its last token (`<cls>`), normalised.

    With `instructions` by prompt name, a text becomes `<sep>{instruction}<sep>{text}<cls>` also where the caller names none: the
    tokenizer puts the outer two, the prompt ends with the inner `<sep>`.
    """
    steps = ("Transformer", "Pooling", "Normalize")
    paths = ("", "1_Pooling", "2_Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{step}"}
        for i, (step, path) in enumerate(zip(steps, paths, strict=True))
    ]
    write_json(folder / "modules.json", modules)
    # Prompts end with `<sep>`, which the tokenizer takes for text unless it is asked not to; the model unpads rows itself.
    write_json(folder / TRANSFORMER_NAME, {"processor_kwargs": {"split_special_tokens": False}, "unpad_inputs": False})
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    prompts = {name: f"{instruction}<sep>" for name, instruction in instructions.items()}
    default = DOCUMENT_PROMPT if prompts else None
    values = {"prompts": prompts, "default_prompt_name": default, "similarity_fn_name": "cosine"}
    write_json(folder / CONFIG_NAME, values | {"model_type": "SentenceTransformer"})

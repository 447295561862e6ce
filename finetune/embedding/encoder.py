"""`Encoder`: a fine-tuned model that turns texts into vectors at any of its exits, as a Python class for users.

    encoder = Encoder.from_pretrained("FINE_TUNED", exit=9)
    codes = encoder.encode(["def f(): pass"], language="Python")  # [R, D] float32, normalised
    question = encoder.encode(["an empty function"], kind="query")

Letters: R rows (texts), D width, B rows of a batch.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.device import pick_device
from finetune.retrieval.forward import embed_rows
from finetune.retrieval.prompts import Prompt, code_prompt, encode_prompts, text_prompt
from mose.checkpoint.converted_checkpoint import load_retrieval, read_model_config
from mose.errors import MoseError
from mose.model.modeling_mose import ModularStarEncoderForRetrieval
from mose.tokenizer import Tokenizer, load_tokenizer

KINDS = (QUERY, CODE) = ("query", "code")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Tokens per forward pass. A CPU is fastest while what lies between the feed-forward layers fits its caches (docs/search.md).
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 1024, 32_768
Vectors = NDArray[np.float32]


class Encoder:
    """Embeds texts at one exit or at several in one pass; `from_pretrained` opens one."""

    def __init__(
        self,
        model: ModularStarEncoderForRetrieval,
        tokenizer: Tokenizer,
        exits: tuple[int, ...],
        device: torch.device,
        max_length: int,
        batch_tokens: int,
        threads: int = 0,
    ):
        self.model, self.tokenizer, self.exits = model, tokenizer, exits
        self.device, self.max_length, self.batch_tokens, self.threads = device, max_length, batch_tokens, threads

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        exit: int | Sequence[int] | None = None,  # noqa: A002  the word that users of a multi-exit model look for
        *,
        device: str = "auto",
        dtype: str = "float32",
        max_length: int = 0,
        batch_tokens: int = 0,
        threads: int = 0,
    ) -> "Encoder":
        """Open a converted retrieval checkpoint; layers above the deepest exit that is asked for are neither read nor kept.

        Args:
            folder: what `mose-finetune retrieval` or `mose-pretrain export` of a fine-tuned model wrote.
            exit: layer of the exit, or several layers; None takes the deepest exit.
            device: auto, or a device of torch.
            dtype: float32, or bfloat16 (half the memory; embeddings differ by about 1e-2).
            max_length: longest prompt in tokens, `<cls>` included; 0 takes the model's longest row. Longer texts are truncated.
            batch_tokens: tokens run through the model at once; 0 chooses by device.
            threads: torch's threads while encoding; 0 leaves torch's own number.

        Raises:
            MoseError: the folder is no retrieval checkpoint, or has no such exit; an option has a wrong value.
        """
        place = Path(folder)
        exits = chosen_exits(place, exit)
        if dtype not in DTYPES:
            raise MoseError(f"dtype: {dtype!r}, expected one of {', '.join(DTYPES)}")
        for name, value in (("max_length", max_length), ("batch_tokens", batch_tokens), ("threads", threads)):
            if value < 0:
                raise MoseError(f"{name}: {value}, expected 0 or more")
        chosen = pick_device(device)
        model = load_retrieval(place, exits[-1]).to(device=chosen, dtype=DTYPES[dtype])
        tokens = batch_tokens or (GPU_BATCH_TOKENS if chosen.type == "cuda" else CPU_BATCH_TOKENS)
        longest = max_length or int(model.config.max_position_embeddings)
        return cls(model, load_tokenizer(place), exits, chosen, longest, tokens, threads)

    def at(self, exits: tuple[int, ...]) -> "Encoder":
        """The same model at fewer exits: layers above the deepest of them do not run."""
        return Encoder(self.model, self.tokenizer, exits, self.device, self.max_length, self.batch_tokens, self.threads)

    @property
    def width(self) -> int:
        """Elements D of an embedding."""
        return int(self.model.config.hidden_size)

    def encode(
        self, texts: Sequence[str], kind: str = CODE, language: str | Sequence[str] = "", instruction: str | None = None
    ) -> Vectors:
        """Normalised embeddings [R, D] of texts at the deepest of the encoder's exits, in the order of the texts.

        Arguments and errors as in `encode_exits`.
        """
        return self.encode_exits(texts, kind, language, instruction)[self.exits[-1]]

    def encode_exits(
        self, texts: Sequence[str], kind: str = CODE, language: str | Sequence[str] = "", instruction: str | None = None
    ) -> dict[int, Vectors]:
        """Normalised embeddings [R, D] at each of the encoder's exits, by its layer, from one pass.

        Args:
            texts: any number of texts; an empty one is embedded as its instruction alone.
            kind: query (a description in plain words) or code; it decides the instruction in front.
            language: of code, one for all texts or one per text; empty: the instruction that names none.
            instruction: put in front in place of the model's own.

        Raises:
            MoseError: an argument has a wrong value, or an embedding is not a finite number.
        """
        return self.encode_prompts(make_prompts(texts, kind, language, instruction))

    def encode_prompts(self, prompts: Sequence[Prompt]) -> dict[int, Vectors]:
        """The same for texts that have their instructions already."""
        rows = encode_prompts(self.tokenizer, prompts, self.max_length) if prompts else []
        with self.limited_threads():
            found = embed_rows(self.model, rows, self.exits, self.batch_tokens, self.device)
        tables = dict(zip(self.exits, found, strict=True))
        for layer, table in tables.items():
            broken_R = ~np.isfinite(table).all(axis=1)
            if broken_R.any():
                raise MoseError(f"exit {layer}: the embedding of text {int(broken_R.argmax())} is not a finite number")
        return tables

    @contextlib.contextmanager
    def limited_threads(self) -> Iterator[None]:
        """Within the block torch uses the encoder's number of threads, which is the whole process's."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def make_prompts(
    texts: Sequence[str], kind: str = CODE, language: str | Sequence[str] = "", instruction: str | None = None
) -> list[Prompt]:
    """Texts with the instructions in front that training used; arguments and errors as in `Encoder.encode_exits`."""
    if isinstance(texts, str):
        raise MoseError("texts: one text, expected a list of texts")
    wrong = next((place for place, text in enumerate(texts) if not isinstance(text, str)), None)
    if wrong is not None:
        raise MoseError(f"texts: number {wrong} is of type {type(texts[wrong]).__name__}, expected text")
    if kind not in KINDS:
        raise MoseError(f"kind: {kind!r}, expected one of {', '.join(KINDS)}")
    languages = [language] * len(texts) if isinstance(language, str) else list(language)
    if len(languages) != len(texts):
        raise MoseError(f"language: {len(languages)} languages for {len(texts)} texts, expected one for all or one for each")
    if instruction is not None:
        return [Prompt(instruction, text) for text in texts]
    if kind == QUERY:
        return [text_prompt(text) for text in texts]
    return [code_prompt(text, each) for text, each in zip(texts, languages, strict=True)]


def chosen_exits(folder: Path, wanted: int | Sequence[int] | None) -> tuple[int, ...]:
    """The layers of the wanted exits, ascending; None is the deepest one.

    Raises:
        MoseError: the folder's model has no such exit, or the list is empty.
    """
    known = list(read_model_config(folder).computed_exit_layers)
    exits = [known[-1]] if wanted is None else [wanted] if isinstance(wanted, int) else list(wanted)
    if not exits:
        raise MoseError(f"exit: an empty list, expected some of {known}")
    for layer in exits:
        if layer not in known:
            raise MoseError(f"exits: {layer}: {folder} has exits {known}")
    return tuple(sorted(set(exits)))

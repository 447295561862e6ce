"""The input of the retrieval model: `<sep>{instruction}<sep>{text}<cls>`; truncation always keeps the `<cls>`."""

from collections.abc import Sequence
from dataclasses import dataclass

from mose.checkpoint.retrieval_prompts import CODE_INSTRUCTION, NO_LANGUAGE_INSTRUCTION, TEXT_INSTRUCTION
from mose.dataset.packed_sequence import TOKENS, assemble, packed_length
from mose.errors import MoseError
from mose.tokenizer import Tokenizer

# About that of code and English with a vocabulary of 49,152.
BYTES_PER_TOKEN = 3.3


@dataclass(frozen=True)
class Prompt:
    """One text to embed, and the instruction in front of it."""

    instruction: str
    text: str

    def estimated_tokens(self, max_length: int) -> int:
        """Its length in tokens, from its bytes: ranks share rows by it before each tokenizes its own."""
        size = len(self.instruction.encode()) + len(self.text.encode("utf-8", "surrogatepass"))
        return min(max_length, packed_length([0, 0]) + round(size / BYTES_PER_TOKEN))


def text_prompt(text: str) -> Prompt:
    """A natural-language query."""
    return Prompt(TEXT_INSTRUCTION, text)


def code_prompt(code: str, language: str) -> Prompt:
    """A code snippet; a pair without a language gets the instruction without one."""
    instruction = CODE_INSTRUCTION.format(language=language.lower()) if language else NO_LANGUAGE_INSTRUCTION
    return Prompt(instruction, code)


def encode_prompt(tokenizer: Tokenizer, instruction: str, text: str, max_length: int) -> TOKENS:
    """Token ids [T], T <= max_length; a longer text is truncated at its end, `<cls>` stays.

    Raises:
        MoseError: `max_length` leaves no room for a single token of text.
    """
    return encode_prompts(tokenizer, [Prompt(instruction, text)], max_length)[0]


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[Prompt], max_length: int) -> list[TOKENS]:
    """Token ids of each prompt, tokenised in one batch; errors as in `encode_prompt`."""
    wordings = list(dict.fromkeys(prompt.instruction for prompt in prompts))
    instructions = dict(zip(wordings, tokenizer.encode_batch(wordings), strict=True))
    texts = tokenizer.encode_batch([prompt.text for prompt in prompts])
    return [
        _enclose(tokenizer, instructions[prompt.instruction], text, max_length)
        for prompt, text in zip(prompts, texts, strict=True)
    ]


def _enclose(tokenizer: Tokenizer, instruction: TOKENS, text: TOKENS, max_length: int) -> TOKENS:
    room = max_length - packed_length([len(instruction), 0])
    if room < 1:
        raise MoseError(f"max_length: {max_length}, expected more than the {max_length - room} tokens of an empty prompt")
    kept = text[:room]
    return assemble([instruction, kept], tokenizer.special, packed_length([len(instruction), len(kept)]), tokenizer.dtype)

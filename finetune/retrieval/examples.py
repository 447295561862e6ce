"""The texts of one contrastive batch: queries, targets, and which texts are equal.

Letters: P pairs of a batch.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune.batches import BatchOrder
from finetune.retrieval.augmentation import augment
from finetune.retrieval.prompts import Prompt, code_prompt, text_prompt
from mose.dataset.pairs import Pair
from mose.seeding import generator


@dataclass(frozen=True)
class Example:
    """One query and its target, with a key of each text as it was mined (before augmentation).

    The description is that of both codes; a code-code example has it, too, although the model does not see it.
    """

    query: Prompt
    target: Prompt
    query_key: int
    target_key: int
    description_key: int


def text_key(text: str) -> int:
    """A signed 64-bit hash of a text; equal texts have equal keys, whatever their instruction."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little", signed=True)


class Examples:
    """The examples of each step: a pure function of the pairs, the seed and the step."""

    def __init__(self, pairs: Sequence[Pair], batch_pairs: int, augment_share: float, seed: int, generic_share: float = 0.0):
        """Plan batches of `batch_pairs` over `pairs`; `generic_share` of the codes get the instruction without a language.

        Errors as in `BatchOrder`.
        """
        self._pairs = pairs
        self._order = BatchOrder([bool(pair.code_b) for pair in pairs], batch_pairs, seed)
        self._augment_share, self._seed, self._generic_share = augment_share, seed, generic_share

    def at(self, step: int) -> list[Example]:
        """The P examples of batch `step`, counted from 0: text-code, then code-code."""
        items = self._order.at(step)
        text_code = [self._example(int(index), False, step) for index in items.text_code]
        return text_code + [self._example(int(index), True, step) for index in items.code_code]

    def _example(self, index: int, code_code: bool, step: int) -> Example:
        pair = self._pairs[index]
        draw = generator(self._seed, "retrieval example", step, index)
        first, second, description = (pair.code_a, pair.lang_a), (pair.code_b, pair.lang_b), text_key(pair.nl)
        if code_code:
            keys = text_key(first[0]), text_key(second[0]), description
            return Example(self._code(first, draw), self._code(second, draw), *keys)
        target = second if pair.code_b and draw.random() < 0.5 else first
        return Example(text_prompt(pair.nl), self._code(target, draw), description, text_key(target[0]), description)

    def _code(self, snippet: tuple[str, str], draw: np.random.Generator) -> Prompt:
        code, language = snippet
        augmented = augment(code, self._augment_share, draw)
        return code_prompt(augmented, "" if draw.random() < self._generic_share else language)

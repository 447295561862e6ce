"""A model behind an OpenAI-compatible embedding server, by URL and model name.

Letters: R rows (texts), D width.
"""

import http.client
import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.systems.system import Exit
from finetune.retrieval.prompts import Prompt
from mose.errors import MoseError, first_line
from mose.files.json_file import parse_json

_TEXTS_PER_REQUEST = 64
# Answers after which the same request may succeed: too many requests, and faults of the server itself.
_RETRIED = (429, 500, 502, 503, 504)


class ServerEmbedder:
    """Sends texts to `{url}/embeddings`. The key is read from the environment, so that no config or log holds it."""

    def __init__(self, url: str, model: str, *, key_variable: str, timeout_seconds: float, attempts: int, max_characters: int):
        """Keep the address; nothing is sent yet.

        Raises:
            MoseError: the address is not an http(s) URL, or no model is named.
        """
        if not url.startswith(("http://", "https://")) or not model:
            raise MoseError(f"models: {url}#{model}: expected server:http://HOST/v1#MODEL")
        self._url, self._model = f"{url.rstrip('/')}/embeddings", model
        self._key = os.environ.get(key_variable, "")
        self._timeout, self._attempts, self._max_characters = timeout_seconds, attempts, max_characters
        self._width: int | None = None
        self.fingerprint = f"{url} {model} max_characters {max_characters}"
        self.exits = [Exit()]

    def lengths(self, prompts: Sequence[Prompt]) -> Sequence[int]:
        """Characters."""
        return [len(prompt.text) for prompt in prompts]

    def embed(self, prompts: Sequence[Prompt], role: str) -> NDArray[np.float32]:
        """Normalised embeddings [1, R, D].

        Raises:
            MoseError: the server is down, too slow, refuses the request, or answers something else than one vector per text.
        """
        texts = [prompt.text[: self._max_characters] for prompt in prompts]
        parts = [texts[start : start + _TEXTS_PER_REQUEST] for start in range(0, len(texts), _TEXTS_PER_REQUEST)]
        table_RD = np.concatenate([self._vectors(part) for part in parts])
        norms_R = np.linalg.norm(table_RD, axis=1, keepdims=True)
        return (table_RD / np.where(norms_R > 0, norms_R, 1.0))[None].astype(np.float32)

    def _vectors(self, texts: Sequence[str]) -> NDArray[np.float64]:
        answer = self._ask({"model": self._model, "input": list(texts), "encoding_format": "float"})
        try:
            rows = sorted(answer["data"], key=lambda row: int(row["index"]))
            vectors = [row["embedding"] for row in rows]
            numbers = all(isinstance(number, int | float) for vector in vectors for number in vector)
        except (KeyError, TypeError, ValueError):
            raise MoseError(f"{self._url}: no embeddings in its answer, expected data with index and embedding") from None
        if [row["index"] for row in rows] != list(range(len(texts))):
            raise MoseError(f"{self._url}: {len(rows)} embeddings, expected one for each of {len(texts)} texts")
        widths = sorted({len(vector) for vector in vectors} | ({self._width} if self._width else set()))
        if len(widths) > 1 or not numbers or not widths[0]:
            found = " and ".join(str(width) for width in widths)
            raise MoseError(f"{self._url}: embeddings of {found} dimensions, expected vectors of numbers of one width")
        self._width = widths[0]
        return np.array(vectors, dtype=np.float64)

    def _ask(self, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        for attempt in range(1, self._attempts + 1):
            try:
                with urllib.request.urlopen(request, timeout=self._timeout) as response:
                    return parse_json(response.read())
            except urllib.error.HTTPError as error:
                message = f"answers {error.code} {first_line(Exception(error.reason))}"
                if error.code not in _RETRIED:
                    break
            except TimeoutError:
                message = f"no answer within {self._timeout:g} seconds"
            except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
                message = f"cannot be reached: {first_line(error)}"
            except ValueError as error:
                message = f"answers something that is not JSON: {first_line(error)}"
                break
            if attempt < self._attempts:
                time.sleep(math.ldexp(0.25, attempt))
        raise MoseError(f"{self._url}: {message}; expected an OpenAI-compatible embedding server")

"""Requests to an OpenAI-compatible server, by OpenAI's own client: one answer per call, failures by what to do about them."""

import asyncio
import os
from dataclasses import dataclass
from typing import Any

from data_prep.synthconl.translation.config import TranslateConfig
from mose.errors import MoseError, first_line
from mose.seeding import derive_key

_RETRIED = (408, 409, 425, 429)
# A sampling server would have to draw the same twelve words twice.
_PROBE = "Write twelve random English words, separated by spaces."
_PROBE_TOKENS = 48
_MODELS_SHOWN = 5


@dataclass(frozen=True)
class Answer:
    """What the server answered."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    model: str


class PassingError(Exception):
    """A failure that may be temporary; holds its name, e.g. `http_503`, and the server's Retry-After in seconds."""

    def __init__(self, name: str, retry_after: float = 0.0):
        super().__init__(name)
        self.name, self.retry_after = name, retry_after


class BadRequestError(Exception):
    """The server refuses this request, and would refuse it again: the prompt is longer than its context, for example."""


class Server:
    """A server and a model on it; use inside a running event loop."""

    def __init__(self, config: TranslateConfig):
        """Make the client; nothing is sent yet.

        Raises:
            MoseError: the client library is not installed.
        """
        try:
            # Takes a second, and no other command needs it.
            import openai
        except ImportError:
            raise MoseError("translate: the package openai is not installed, expected the extra `translate`") from None
        self._openai, self._config = openai, config
        self._seed = derive_key(config.seed, "server") % 2**31
        # Retries are ours: they are counted, and outlast a server that is being restarted.
        self._client: Any = openai.AsyncOpenAI(
            base_url=config.url,
            api_key=os.environ.get(config.key_variable) or "none",
            max_retries=0,
            timeout=config.timeout_seconds,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def check(self) -> None:
        """Check that the server is there, serves the model, and decodes greedily.

        Raises:
            PassingError: it is down or busy; may be tried again.
            MoseError: it serves other models, refuses greedy decoding, or does not decode greedily.
        """
        served = await self._call(self._models())
        model = self._config.model
        if served and model not in served:
            shown = ", ".join(served[:_MODELS_SHOWN])
            raise MoseError(f"{self._config.url}: model: the server has {shown}; expected it to have {model!r}")
        if not self._config.check_greedy:
            return
        try:
            first, second = [(await self.ask(_PROBE, _PROBE_TOKENS)).text for _ in range(2)]
        except BadRequestError as error:
            raise MoseError(f"{self._config.url}: refuses temperature 0 with a seed: {error}; expected greedy decoding") from None
        if first != second:
            raise MoseError(
                f"{self._config.url}: two answers to one request at temperature 0 differ; expected greedy decoding "
                "(--check_greedy false goes on all the same)"
            )

    async def ask(self, prompt: str, max_tokens: int) -> Answer:
        """The greedy answer to one prompt.

        Raises:
            PassingError: the request failed and may be repeated.
            BadRequestError: the server refuses this prompt.
            MoseError: every request would fail, or another model answered.
        """
        send = self._stream if self._config.stream else self._whole
        answer: Answer = await self._call(send(prompt, max_tokens))
        # Hosted models answer under the name of a dated version.
        if answer.model and answer.model != self._config.model and not answer.model.startswith(f"{self._config.model}-"):
            raise MoseError(f"{self._config.url}: model: {answer.model!r} answered, expected {self._config.model!r}")
        return answer

    def _request(self, prompt: str, max_tokens: int) -> dict[str, Any]:
        messages = [{"role": "user", "content": prompt}]
        return {"model": self._config.model, "messages": messages, "temperature": 0, "seed": self._seed, "max_tokens": max_tokens}

    async def _models(self) -> list[str]:
        try:
            return [model.id async for model in self._client.models.list()]
        except (self._openai.NotFoundError, TypeError, AttributeError, ValueError):
            # Some servers answer chats only.
            return []

    async def _whole(self, prompt: str, max_tokens: int) -> Answer:
        response: Any = await self._client.chat.completions.create(**self._request(prompt, max_tokens))
        choice, usage = response.choices[0], response.usage
        return Answer(
            _clean(choice.message.content),
            choice.finish_reason or "",
            usage.prompt_tokens if usage else 0,
            usage.completion_tokens if usage else 0,
            response.model or "",
        )

    async def _stream(self, prompt: str, max_tokens: int) -> Answer:
        request = self._request(prompt, max_tokens)
        parts, finish, model, tokens = [], "", "", (0, 0)
        options = {"include_usage": True}
        async with await self._client.chat.completions.create(**request, stream=True, stream_options=options) as chunks:
            async for chunk in chunks:
                model = chunk.model or model
                if chunk.usage:
                    tokens = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
                for choice in chunk.choices:
                    parts.append(choice.delta.content or "")
                    finish = choice.finish_reason or finish
        if not finish:
            # The connection ended in an orderly way, but the answer did not.
            raise PassingError("cut_stream")
        return Answer(_clean("".join(parts)), finish, *tokens, model)

    async def _call(self, work: Any) -> Any:
        """Await one request within the time-out, and turn its failure into one of the three kinds."""
        openai, url = self._openai, self._config.url
        try:
            # The client's own time-out begins anew with every byte: a server that drips would hold a worker for ever.
            return await asyncio.wait_for(work, self._config.timeout_seconds)
        except (asyncio.TimeoutError, openai.APITimeoutError):
            raise PassingError("timeout") from None
        except openai.APIStatusError as error:
            status, message = error.status_code, first_line(error)
            if status in _RETRIED or status >= 500:
                raise PassingError(f"http_{status}", _seconds(error.response.headers.get("retry-after"))) from None
            if status in (401, 403):
                raise MoseError(
                    f"{url}: answers {status}; expected a key in the environment variable {self._config.key_variable}"
                ) from None
            if status in (400, 413, 422):
                raise BadRequestError(message) from None
            raise MoseError(f"{url}: answers {status}: {message}; expected an OpenAI-compatible server") from None
        except openai.APIConnectionError as error:
            raise PassingError(f"connection ({first_line(error.__cause__ or error)})") from None
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError):
            raise PassingError("malformed_answer") from None
        except Exception as error:
            # A cut stream raises the errors of the client's own HTTP library, whose name depends on its version.
            if not type(error).__module__.partition(".")[0].startswith(("httpx", "httpcore", "h11")):
                raise
            raise PassingError("connection") from None


def _clean(text: str | None) -> str:
    """Text that UTF-8 can hold: a server may cut a character in two."""
    return (text or "").encode("utf-8", "replace").decode("utf-8")


def _seconds(value: str | None) -> float:
    """Retry-After in seconds; 0 where it is a date or missing."""
    return float(value) if value and value.isdigit() else 0.0

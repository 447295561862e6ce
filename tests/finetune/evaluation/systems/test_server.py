"""The embedding server's client against a real HTTP server on this machine: what it sends, and one line for each fault."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from finetune.evaluation.systems.server import ServerEmbedder
from finetune.retrieval.prompts import Prompt
from mose.errors import MoseError

Answer = tuple[int, bytes]


def vectors(body: dict[str, Any], width: int = 4) -> list[dict[str, Any]]:
    """An embedding of each text, last one first: the order of `data` means nothing, `index` does."""
    rows = [{"index": i, "embedding": [float(len(text)), 3.0, *[0.0] * (width - 2)]} for i, text in enumerate(body["input"])]
    return rows[::-1]


def good(body: dict[str, Any], request: int) -> Answer:
    return 200, json.dumps({"data": vectors(body)}).encode()


class Server:
    """Answers each request with `answer(body, number)` and keeps what was sent."""

    def __init__(self) -> None:
        self.answer: Callable[[dict[str, Any], int], Answer] = good
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.release = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.bodies.append(body | {"path": self.path})
                outer.keys.append(self.headers.get("Authorization"))
                status, content = outer.answer(body, len(outer.bodies))
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    thread = threading.Thread(target=found.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.release.set()
    found.http.shutdown()
    thread.join()
    found.http.server_close()


def embedder(url: str, **options: Any) -> ServerEmbedder:
    values = {"key_variable": "SOME_KEY", "timeout_seconds": 30.0, "attempts": 1, "max_characters": 100}
    return ServerEmbedder(url, "large", **(values | options))


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt("instruction", text) for text in texts]


def test_vectors_are_normalised_and_in_the_order_of_the_texts(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    texts = ["x" * (number % 5 + 1) for number in range(70)] + ["y" * 400]
    table = embedder(server.url + "/").embed(prompts(*texts), "query")
    assert table.shape == (1, 71, 4) and table.dtype == np.float32
    lengths = np.array([min(len(text), 100) for text in texts])
    assert table[0, :, 0] == pytest.approx(lengths / np.sqrt(lengths**2 + 9), rel=1e-6)
    assert [len(body["input"]) for body in server.bodies] == [64, 7] and set(server.keys) == {"Bearer secret"}
    assert server.bodies[0]["model"] == "large" and server.bodies[0]["path"] == "/v1/embeddings"


def test_a_busy_server_is_asked_again(server: Server) -> None:
    server.answer = lambda body, request: good(body, request) if request > 1 else (429, b"")
    assert embedder(server.url, attempts=2).embed(prompts("a"), "query").shape == (1, 1, 4)
    assert server.keys == [None, None]


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (lambda body, request: (401, b""), "answers 401 Unauthorized; expected an OpenAI-compatible embedding server"),
        (lambda body, request: (503, b""), "answers 503 Service Unavailable; expected an OpenAI-compatible"),
        (lambda body, request: (200, b"<html>"), "answers something that is not JSON: "),
        (lambda body, request: (200, b'{"data": [{"embedding": [NaN], "index": 0}]}'), "answers something that is not JSON: "),
        (lambda body, request: (200, b'{"error": "no such model"}'), "no embeddings in its answer, expected data with index and"),
        (lambda body, request: (200, b'{"data": []}'), "0 embeddings, expected one for each of 2 texts"),
        (
            lambda body, request: (200, b'{"data": [{"embedding": [1, 2], "index": 0}, {"embedding": [1], "index": 1}]}'),
            "embeddings of 1 and 2 dimensions, expected vectors of numbers of one width",
        ),
        (
            lambda body, request: (200, b'{"data": [{"embedding": ["a"], "index": 0}, {"embedding": ["b"], "index": 1}]}'),
            "embeddings of 1 dimensions, expected vectors of numbers of one width",
        ),
    ],
)
def test_faults_of_the_answer_are_one_line(answer: Any, line: str, server: Server) -> None:
    server.answer = answer
    with pytest.raises(MoseError, match=f"{server.url}/embeddings: {line}"):
        embedder(server.url).embed(prompts("a", "b"), "query")


def test_another_width_in_a_later_answer_is_one_line(server: Server) -> None:
    server.answer = lambda body, request: (200, json.dumps({"data": vectors(body, 4 if request == 1 else 6)}).encode())
    client = embedder(server.url)
    client.embed(prompts("a"), "query")
    with pytest.raises(MoseError, match="embeddings of 4 and 6 dimensions, expected vectors of numbers of one width"):
        client.embed(prompts("b"), "query")


def test_a_server_that_does_not_answer_in_time_is_one_line(server: Server) -> None:
    def wait(body: dict[str, Any], request: int) -> Answer:
        server.release.wait()
        return good(body, request)

    server.answer = wait
    with pytest.raises(MoseError, match="no answer within 0.2 seconds; expected an OpenAI-compatible embedding server"):
        embedder(server.url, timeout_seconds=0.2).embed(prompts("a"), "query")


def test_a_server_that_is_down_is_one_line() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(MoseError, match=f"{url}/embeddings: cannot be reached: .*refused.*; expected an OpenAI-compatible"):
        embedder(url).embed(prompts("a"), "query")


@pytest.mark.parametrize("url", ["localhost:8000", "file:///etc/passwd"])
def test_an_address_that_is_none_is_one_line(url: str) -> None:
    with pytest.raises(MoseError, match=f"models: {url}#large: expected server:http://HOST/v1#MODEL"):
        embedder(url)

"""A local HTTP server that speaks the OpenAI protocol and answers by a rule; it fails a seeded share of requests.

It is no model, and its answers are no translations: each is a function of the target language that parses, has the name of the
source's function, and holds the words of the source as strings. So everything around a model is tried, and nothing of one.

    python -m tests.data_prep.rule_server --port 8000 --share .1
"""

import argparse
import contextlib
import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mose.seeding import derive_key

MODEL = "rule-of-words"
TRANSPORT_FAULTS = ("503", "429", "500", "stall", "reset", "half", "malformed", "shape")
ANSWER_FAULTS = ("empty", "length", "prose", "refused", "wrong", "broken")
STALL_SECONDS = 1.5
_PROMPT = re.compile(r"\ATranslate the following (.+?) code to (.+?)\.\n.*?\n(`{3,})[^\n]*\n(.*)\n\3\n\Z", re.S)
_DEFINITION = re.compile(r"\b(?:def|func|function|fn|fun|static|int|void|const|public)\b[^\n(]*?(\w+)\s*(?:\(|=)")
_TEMPLATES = {
    "Python": "def {name}(values):\n    words = [{words}]\n    return words + values",
    "Go": "func {name}(values []string) []string {{\n\twords := []string{{{words}}}\n\treturn append(words, values...)\n}}",
    "Ruby": "def {name}(values)\n  words = [{words}]\n  words + values\nend",
    "Java": (
        "public static List<String> {name}(List<String> values) {{\n    values.addAll(List.of({words}));\n    return values;\n}}"
    ),
    "C++": (
        "std::vector<std::string> {name}(std::vector<std::string> values) {{\n"
        "    for (const char *word : {{{words}}}) values.push_back(word);\n    return values;\n}}"
    ),
    "PHP": "function {name}($values)\n{{\n    $words = [{words}];\n    return array_merge($words, $values);\n}}",
    "C": "const char *{name}(int place)\n{{\n    static const char *words[] = {{{words}}};\n    return words[place];\n}}",
    "JavaScript": "function {name}(values) {{\n  const words = [{words}];\n  return words.concat(values);\n}}",
}


def translation(prompt: str) -> tuple[str, str]:
    """Target language and code that answer a prompt of ours."""
    found = _PROMPT.match(prompt)
    if found is None:
        return "", "Apple chair river window."
    _, target, _, code = found.groups()
    name = definition.group(1) if (definition := _DEFINITION.search(code)) else "translated"
    words = list(dict.fromkeys(re.findall(r"[A-Za-z_]{3,}", code)))[:40]
    listed = ", ".join(f'"{word}"' for word in words or ["none"])
    return target, _TEMPLATES[target].format(name=re.sub(r"\W", "", name) or "translated", words=listed)


class RuleServer(ThreadingHTTPServer):
    """Answers chats; counts what was asked and what was answered, by prompt."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, share: float = 0.0, faults: Sequence[str] = TRANSPORT_FAULTS, seed: int = 0, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.share, self.faults, self.seed = share, faults, seed
        self.models = [MODEL]
        self.answers_as = MODEL
        self.samples = False
        """Gives another answer each time, as a server that ignores temperature 0."""
        self.refuses_temperature = False
        self.delay_seconds = 0.0
        self.asked: Counter[str] = Counter()
        """Requests of chats by prompt; those of the check before a run are not of our form and are left out."""
        self.answered: Counter[str] = Counter()
        """Whole answers by prompt: what a hosted server would charge for."""
        self.injected: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def fault(self, prompt: str) -> str:
        """The fault of this request, empty for none: of transport by prompt and number of requests, of answers by prompt alone.

        So an answer to the same prompt is the same each time, as that of a greedy model.
        """
        with self.lock:
            number = self.asked[prompt]
            self.asked[prompt] += 1
            answers = [name for name in self.faults if name in ANSWER_FAULTS]
            transport = [name for name in self.faults if name not in ANSWER_FAULTS]
            name = self._drawn(answers, prompt, 0) or self._drawn(transport, prompt, number)
            self.injected[name] += 1
        return name

    def _drawn(self, faults: Sequence[str], prompt: str, number: int) -> str:
        key = derive_key(self.seed, "fault", prompt, number)
        share = self.share * len(faults) / len(self.faults)
        return faults[key % len(faults)] if faults and (key >> 32) / 2**32 < share else ""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RuleServer

    def do_GET(self) -> None:
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "tests"} for name in self.server.models]
        self._send(200, json.dumps({"object": "list", "data": models}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        try:
            time.sleep(self.server.delay_seconds)
            self._chat(body)
        finally:
            with self.server.lock:
                self.server.at_once -= 1

    def _chat(self, body: dict[str, Any]) -> None:
        prompt = body["messages"][0]["content"]
        target, code = translation(prompt)
        if self.server.refuses_temperature and "temperature" in body:
            message = "temperature 0 is not supported with this model"
            self._send(400, json.dumps({"error": {"message": message}}).encode())
            return
        fault = self.server.fault(prompt) if target else ""
        if fault.isdigit():
            self._send(int(fault), b'{"error": {"message": "overloaded"}}', {"Retry-After": "0"})
        elif fault == "stall":
            time.sleep(STALL_SECONDS)
            self.close_connection = True
        elif fault == "reset":
            # Lingering for no time makes the kernel send RST.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif fault in ("malformed", "shape"):
            self._send(200, b'{"choices": [' if fault == "malformed" else b'{"choices": null, "detail": "none"}')
        else:
            self._answer(body, prompt, fault, target, code)

    def _answer(self, body: dict[str, Any], prompt: str, fault: str, target: str, code: str) -> None:
        text = f"Here it is:\n\n```{target.lower()}\n{code}\n```\n" if target else code
        if self.server.samples:
            text += str(time.monotonic_ns())
        text = {
            "empty": "",
            "prose": "This function reads a table and gives it back.",
            "refused": "I'm sorry, but I can't help with that.",
            "wrong": "```lua\nlocal x = 1\n```",
            "broken": f"```{target.lower()}\n{code[: len(code) // 2]} ((( {{{{\n```",
        }.get(fault, text)
        finish = "length" if fault == "length" else "stop"
        usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": len(text) // 4, "total_tokens": 0}
        base = {"id": "x", "created": 0, "model": self.server.answers_as}
        if body.get("stream"):
            self._stream(base, text, finish, usage, fault)
        else:
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": finish}
            whole = {**base, "object": "chat.completion", "choices": [choice], "usage": usage}
            self._send(200, json.dumps(whole).encode(), half=fault == "half")
        if fault != "half" and target:
            with self.server.lock:
                self.server.answered[prompt] += 1

    def _stream(self, base: dict[str, Any], text: str, finish: str, usage: dict[str, int], fault: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        middle = len(text) // 2
        parts: list[dict[str, Any]] = [
            {"index": 0, "delta": {"content": part}, "finish_reason": None} for part in (text[:middle], text[middle:])
        ]
        chunks = [{**base, "object": "chat.completion.chunk", "choices": [part]} for part in parts]
        last = {"index": 0, "delta": {}, "finish_reason": finish}
        chunks += [{**base, "object": "chat.completion.chunk", "choices": [last]}]
        chunks += [{**base, "object": "chat.completion.chunk", "choices": [], "usage": usage}]
        for chunk in chunks[:1] if fault == "half" else chunks:
            self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        if fault != "half":
            self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, half: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if half else body)
        self.close_connection = half

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@contextlib.contextmanager
def rule_server(share: float = 0.0, faults: Sequence[str] = TRANSPORT_FAULTS, seed: int = 0) -> Iterator[RuleServer]:
    """A running `RuleServer`."""
    server = RuleServer(share, faults, seed)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--share", type=float, default=0.0, help="share of requests that fail")
    options = parser.parse_args()
    server = RuleServer(options.share, (*TRANSPORT_FAULTS, *ANSWER_FAULTS), port=options.port)
    print(f"{server.address} serves {MODEL}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()

"""The options of `mose-data translate`."""

from dataclasses import dataclass
from pathlib import Path

from data_prep.synthconl.translation.prompt import PROMPT_VERSION, TARGETS
from mose.config import require
from mose.dataset.languages import LANGUAGES
from mose.files.atomic_file import file_sha256


@dataclass(frozen=True)
class TranslateConfig:
    """Which seeds are translated, by which model, and with which limits."""

    seeds: str
    """Parquet file of `mose-data seeds`, or any pairs file with the columns nl, code_a, lang_a."""
    output: str
    """Folder of the journals; the same command resumes."""
    url: str
    """Address of an OpenAI-compatible server, e.g. http://127.0.0.1:8000/v1 of `vllm serve`."""
    model: str = "Qwen/Qwen2.5-Coder-7B-Instruct"
    """Name under which the server knows the model."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the server's key, where it wants one."""
    targets: tuple[str, ...] = TARGETS
    """Languages to translate into; each function gets one of them, other than its own."""
    seed: int = 0
    """Draws the target languages; also sent to the server."""
    max_tokens: int = 2048
    """Longest answer in tokens; doubled at each retry of a truncated one."""
    max_code_characters: int = 20_000
    """Functions with more characters are not translated but counted."""
    tries: int = 3
    """Answers per function: a rejected one is asked for again, with the reason in the prompt, until so many were given."""
    max_concurrency: int = 64
    """Concurrent requests. The next function is read only when one is finished, so that memory stays bounded."""
    attempts: int = 8
    """Requests per answer before this run gives it up; repeated after 429, 5xx, time-outs and damaged bodies."""
    timeout_seconds: float = 300.0
    """Time-out of one request, answer included."""
    backoff_seconds: float = 0.5
    """Longest wait after the first failure; doubles per failure up to max_backoff_seconds. The wait is random below it."""
    max_backoff_seconds: float = 60.0
    """Upper bound of the wait; the server's own Retry-After counts up to this bound."""
    stream: bool = False
    """Have answers sent token by token: proxies that end silent connections need it; costs this process more."""
    check_greedy: bool = True
    """Ask the server twice for the same random words, and stop where the answers differ: it does not decode greedily."""
    input_price: float = 0.0
    """Price of a million prompt tokens, in any currency; the cost is shown if a price is given."""
    output_price: float = 0.0
    """Price of a million answer tokens."""
    hourly_price: float = 0.0
    """Price of an hour of the server, e.g. of its GPU."""
    task: int = 0
    """Number of this task, from 0; several processes can translate one seeds file, each with a journal of its own."""
    num_tasks: int = 1
    """Number of tasks N; task I translates the rows whose number modulo N is I."""

    def __post_init__(self) -> None:
        for name in ("seeds", "output", "model"):
            require(getattr(self, name) != "", f"{name}: is empty, expected a name")
        require(
            self.url.startswith(("http://", "https://")), f"url: is {self.url!r}, expected a URL such as http://127.0.0.1:8000/v1"
        )
        known = {language.name for language in LANGUAGES}
        for name in self.targets:
            require(name in known, f"targets: {name!r} has no grammar; expected some of {', '.join(TARGETS)}")
        require(
            len(set(self.targets)) == len(self.targets) > 1, f"targets: {', '.join(self.targets)}; expected two or more languages"
        )
        require(0 <= self.task < self.num_tasks, f"task: is {self.task} of {self.num_tasks}, expected 0 to num_tasks - 1")
        for name in ("max_tokens", "max_code_characters", "tries", "max_concurrency", "attempts"):
            require(getattr(self, name) > 0, f"{name}: is {getattr(self, name)}, expected 1 or more")
        for name in ("timeout_seconds", "backoff_seconds", "max_backoff_seconds"):
            require(getattr(self, name) > 0, f"{name}: is {getattr(self, name)}, expected more than 0")
        for name in ("input_price", "output_price", "hourly_price"):
            require(getattr(self, name) >= 0, f"{name}: is {getattr(self, name)}, expected 0 or more")

    @property
    def journal(self) -> Path:
        """The journal of this task."""
        return Path(self.output) / f"journal-{self.task:05d}-of-{self.num_tasks:05d}.jsonl"

    def identity(self) -> dict[str, str]:
        """What must be equal for a journal to be continued, by field; the server's address and the limits may change.

        Raises:
            OSError: the seeds file cannot be read.
        """
        return {
            "seeds": file_sha256(Path(self.seeds))[:16],
            "model": self.model,
            "prompt_version": PROMPT_VERSION,
            "targets": ", ".join(self.targets),
            "seed": str(self.seed),
            "max_tokens": str(self.max_tokens),
            "task": f"{self.task} of {self.num_tasks}",
        }

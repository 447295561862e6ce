"""What a translation did, and what is left: rows, answers, tokens, time and cost."""

import time
from collections import Counter
from dataclasses import dataclass, field

from data_prep.synthconl.translation.answer import OK
from data_prep.synthconl.translation.config import TranslateConfig
from data_prep.synthconl.translation.journal import Entry

_PRICED_TOKENS = 1e6


@dataclass
class TranslationCounts:
    """The counts of one run."""

    rows: int = 0
    """Rows of this task that were read so far."""
    total: int = 0
    """Rows of this task."""
    done_before: int = 0
    """Rows that need no further answer according to the journal."""
    repeated: int = 0
    """Rows that are equal to an earlier one."""
    huge: int = 0
    """Functions above max_code_characters."""
    first_huge: str = ""
    """Row and size of the first of them."""
    translated: int = 0
    """Rows that this run finished with a translation."""
    exhausted: Counter[str] = field(default_factory=Counter)
    """Rows whose last try was rejected, by its reason."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Answers of this run that were rejected, by reason."""
    given_up: Counter[str] = field(default_factory=Counter)
    """Rows that the server did not answer, by the last failure; the next run asks again."""
    retries: Counter[str] = field(default_factory=Counter)
    """Requests that were repeated, by the failure before."""
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    began: float = field(default_factory=time.monotonic)

    def answered(self, entry: Entry) -> None:
        """Count one answer that is in the journal."""
        self.prompt_tokens += entry.prompt_tokens
        self.completion_tokens += entry.completion_tokens
        if entry.outcome != OK:
            self.rejected[entry.outcome] += 1

    @property
    def finished(self) -> int:
        """Rows of this run that need no further answer."""
        return self.translated + sum(self.exhausted.values())

    def accounted(self) -> int:
        """Rows that were dealt with, in whatever way."""
        return self.done_before + self.repeated + self.huge + self.finished + sum(self.given_up.values())

    def cost(self, config: TranslateConfig) -> float:
        """Cost of this run so far, in the currency of the prices; 0 without prices."""
        tokens = self.prompt_tokens * config.input_price + self.completion_tokens * config.output_price
        return tokens / _PRICED_TOKENS + config.hourly_price * (time.monotonic() - self.began) / 3600

    def line(self, config: TranslateConfig) -> str:
        """Tokens per second, outcomes, estimated end and cost, for a line of progress."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        parts = [
            f"{self.completion_tokens / seconds:,.0f} answer tokens/s",
            f"{self.translated:,} translated",
            f"{sum(self.rejected.values()):,} answers rejected",
            f"{sum(self.retries.values()):,} retries",
        ]
        left = self.total - self.accounted()
        share = self.finished / max(self.finished + left, 1)
        if self.finished and left:
            ends = time.localtime(time.time() + seconds * left / self.finished)
            parts.append(f"ends about {time.strftime('%Y-%m-%d %H:%M', ends)}")
        if cost := self.cost(config):
            parts.append(f"cost {cost:,.2f}" + (f" of about {cost / share:,.2f}" if share else ""))
        return ", ".join(parts)

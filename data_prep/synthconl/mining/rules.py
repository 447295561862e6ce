"""CodeSearchNet's rules (Husain et al. 2019, section 2): which documented functions are kept, and the reason of each drop."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from data_prep.synthconl.mining.functions import DocumentedFunction
from mose.config import require

KEPT = "kept"
REPEATED_DOCUMENTATION = "repeated_documentation"
REPEATED_CODE = "repeated_code"
# CodeSearchNet drops documentation that is not English; the share of non-ASCII characters approximates that.
MAX_NON_ASCII_SHARE = 0.1
# Constructors, destructors and what a language's standard library expects of a class, by name.
_STANDARD = frozenset(
    {"constructor", "initialize", "init", "new", "New", "dispose", "Dispose", "finalize", "toString", "ToString", "to_s"}
    | {"inspect", "equals", "Equals", "hashCode", "GetHashCode", "hash", "compareTo", "clone", "Clone", "String", "Error"}
    | {"fmt", "eq", "ne", "drop", "default", "main"}
)
_ACCESSOR = re.compile(r"(?:get|set|is|has|Get|Set|Is|Has)[_A-Z0-9]")
_BRACES = re.compile(r"[\s{}()\[\];,]*(?:end)?[\s{}()\[\];,]*")


@dataclass(frozen=True)
class RulesConfig:
    """Limits of the rules; the defaults are CodeSearchNet's, with CodeXGLUE's upper limit of the documentation."""

    min_documentation_words: int = 3
    """Drop functions whose documentation has fewer words in its first paragraph."""
    max_documentation_words: int = 256
    """Drop functions whose documentation has more words in its first paragraph."""
    min_code_lines: int = 3
    """Drop functions with fewer lines of code, without blank lines and the docstring."""
    max_code_characters: int = 20_000
    """Drop functions with more characters: no model translates them in one answer."""

    def __post_init__(self) -> None:
        for name in ("min_documentation_words", "min_code_lines"):
            require(getattr(self, name) >= 0, f"{name}: is {getattr(self, name)}, expected 0 or more")
        require(
            self.max_documentation_words >= max(1, self.min_documentation_words),
            f"max_documentation_words: is {self.max_documentation_words}, expected min_documentation_words or more",
        )
        require(self.max_code_characters > 0, f"max_code_characters: is {self.max_code_characters}, expected 1 or more")


def is_dunder(name: str) -> bool:
    """`__len__` and its kind."""
    return name[:2] == name[-2:] == "__"


def is_foreign(summary: str) -> bool:
    """Whether more than a tenth of the characters is outside ASCII."""
    return sum(not character.isascii() for character in summary) > MAX_NON_ASCII_SHARE * len(summary)


def num_code_lines(code: str) -> int:
    """Lines that are not blank."""
    return sum(bool(line.strip()) for line in code.split("\n"))


def is_constructor(function: DocumentedFunction) -> bool:
    """A constructor, a destructor, or a standard method such as `__str__` or `toString`."""
    name = function.name
    is_magic = is_dunder(name) or (function.language == "PHP" and name.startswith("__"))
    return is_magic or name in _STANDARD or name == function.owner or name.startswith("~")


def is_accessor(function: DocumentedFunction) -> bool:
    """A getter or setter: named so, and with at most one line between its signature and its end."""
    if not _ACCESSOR.match(function.name):
        return False
    lines = [line for line in function.code.split("\n") if line.strip() and not _BRACES.fullmatch(line)]
    return len(lines) <= 2


Rule = Callable[[DocumentedFunction, RulesConfig], bool]
# The registry: the first rule that matches drops a function and gives the reason of the count.
RULES: tuple[tuple[str, Rule], ...] = (
    ("undocumented", lambda function, _: not function.summary),
    ("inseparable_docstring", lambda function, _: not function.code),
    ("test", lambda function, _: "test" in function.name.lower()),
    ("constructor_or_standard_method", lambda function, _: is_constructor(function)),
    ("getter_or_setter", lambda function, _: is_accessor(function)),
    ("short_documentation", lambda function, config: len(function.summary.split()) < config.min_documentation_words),
    ("long_documentation", lambda function, config: len(function.summary.split()) > config.max_documentation_words),
    ("foreign_documentation", lambda function, _: is_foreign(function.summary)),
    ("short_code", lambda function, config: num_code_lines(function.code) < config.min_code_lines),
    ("unparsable_code", lambda function, _: function.has_error),
    ("huge_code", lambda function, config: len(function.code) > config.max_code_characters),
)
REASONS = (*(reason for reason, _ in RULES), REPEATED_DOCUMENTATION, REPEATED_CODE)


def judge(function: DocumentedFunction, config: RulesConfig) -> str:
    """The reason for which a function is dropped, or `kept`."""
    return next((reason for reason, drops in RULES if drops(function, config)), KEPT)


class SeenTexts:
    """Documentation and code met so far, in any repository.

    A repeated text would be a second right answer in retrieval, or leak between splits.
    """

    def __init__(self) -> None:
        # 64 bits of each: at ten million functions, the chance of one false match is .00001.
        self._marks: set[int] = set()

    def repeated(self, summary: str, code: str) -> str:
        """The reason of the repetition, empty if both are new; remembers both. White space in code does not count."""
        marks = (_mark("nl", summary), _mark("code", " ".join(code.split())))
        known = [mark in self._marks for mark in marks]
        self._marks.update(marks)
        return REPEATED_DOCUMENTATION if known[0] else REPEATED_CODE if known[1] else ""


def _mark(kind: str, text: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{kind} {text}".encode(), digest_size=8).digest(), "little")

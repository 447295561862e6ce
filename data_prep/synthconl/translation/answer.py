"""The code in a model's answer, or the reason why the answer is rejected."""

import re
from dataclasses import dataclass

from mose.dataset.functions import FunctionReader
from mose.dataset.languages import LANGUAGES, Language

OK = "ok"
EMPTY, TRUNCATED, REFUSED, PROSE = "empty", "truncated", "refused", "prose"
WRONG_LANGUAGE, UNPARSABLE, BAD_REQUEST = "wrong_language", "unparsable", "bad_request"
REASONS = (EMPTY, TRUNCATED, REFUSED, PROSE, WRONG_LANGUAGE, UNPARSABLE, BAD_REQUEST)
# A block may lack its end where the model stopped early by itself.
_BLOCK = re.compile(r"^(?P<fence>`{3,}|~{3,})[ \t]*(?P<tag>[\w+#.-]*)[^\n]*\n(?P<code>.*?)(?:^(?P=fence)[ \t]*$|\Z)", re.M | re.S)
_REFUSAL = re.compile(r"\b(?:I(?:'m| am) sorry|I (?:can(?:no|')t|am unable|won't)|As an AI|cannot assist)", re.IGNORECASE)
_TAGS = {language.name.lower(): language.name for language in LANGUAGES} | {
    "py": "Python",
    "python3": "Python",
    "golang": "Go",
    "js": "JavaScript",
    "node": "JavaScript",
    "ts": "TypeScript",
    "cpp": "C++",
    "cxx": "C++",
    "cc": "C++",
    "rb": "Ruby",
    "rs": "Rust",
    "cs": "C#",
    "csharp": "C#",
    "kt": "Kotlin",
    "sh": "Shell",
    "bash": "Shell",
}
# The first of TypeScript's two grammars is the one without JSX.
_BY_NAME: dict[str, Language] = {language.name: language for language in reversed(LANGUAGES)}
# A function alone is no file of its language: methods stand in a class, and PHP begins with its tag.
_FRAMES = {
    "PHP": ("<?php\n{}\n", "<?php\nclass A {{\n{}\n}}\n"),
    "Java": ("{}", "class A {{\n{}\n}}\n"),
    "C#": ("{}", "class A {{\n{}\n}}\n"),
    "JavaScript": ("{}", "class A {{\n{}\n}}\n"),
    "TypeScript": ("{}", "class A {{\n{}\n}}\n"),
    "C++": ("{}", "class A {{\n{}\n}};\n"),
}


@dataclass(frozen=True)
class Verdict:
    """What an answer holds."""

    outcome: str
    """`ok` or the reason of the rejection."""
    code: str = ""


class AnswerCheck:
    """Judges answers; keeps one parser per language."""

    def __init__(self) -> None:
        self._reader = FunctionReader()

    def judge(self, text: str, finish_reason: str, target: str, source: str, source_code: str) -> Verdict:
        """The code of an answer in `target`, or why there is none.

        Raises:
            MoseError: the grammar of a language is not installed.
        """
        if finish_reason == "length":
            return Verdict(TRUNCATED)
        if finish_reason == "content_filter":
            return Verdict(REFUSED)
        if not text.strip():
            return Verdict(EMPTY)
        block = _chosen_block(text, target)
        if block is None:
            # Some models answer with bare code; prose parses in no language but by accident, so it must hold a bracket, too.
            if self.parses(text, target) and re.search(r"[({]", text) and not _REFUSAL.search(text):
                block = ("", text)
            else:
                return Verdict(REFUSED if _REFUSAL.search(text) else PROSE)
        tag, code = block[0], block[1].strip("\n")
        if not code.strip():
            return Verdict(EMPTY)
        tagged = _TAGS.get(tag.lower(), target)
        # C is tagged for C++ now and then, and nearly all of it is C++.
        if (tagged != target and (tagged, target) != ("C", "C++")) or code.split() == source_code.split():
            return Verdict(WRONG_LANGUAGE)
        if not self.parses(code, target):
            return Verdict(WRONG_LANGUAGE if self.parses(code, source) else UNPARSABLE)
        return Verdict(OK, code)

    def parses(self, code: str, language: str) -> bool:
        """Whether the grammar takes the code without an error, alone or as the body of a class, and it is not all comment.

        A language without grammar takes nothing.
        """
        if language not in _BY_NAME:
            return False
        parser = self._reader.parser(_BY_NAME[language])
        frames = _FRAMES.get(language, ("{}",))
        frames = ("{}",) if language == "PHP" and "<?php" in code else frames
        for number, frame in enumerate(frames):
            root = parser.parse(frame.format(code).encode("utf-8", "replace")).root_node
            if number == 0 and all(_says_nothing(child.type) for child in root.named_children):
                return False
            if not root.has_error:
                return True
        return False


def _says_nothing(kind: str) -> bool:
    # `text` is what stands outside PHP's tags.
    return "comment" in kind or kind in ("php_tag", "text")


def _chosen_block(text: str, target: str) -> tuple[str, str] | None:
    """Tag and code of the first block in the target language, or of the first one without a tag, or of the first."""
    blocks = [(found["tag"], found["code"]) for found in _BLOCK.finditer(text)]
    right = [block for block in blocks if _TAGS.get(block[0].lower()) == target]
    bare = [block for block in blocks if not block[0]]
    return next(iter(right + bare + blocks), None)

"""The text of a comment or docstring without its marks, and the first paragraph of it."""

import ast
import inspect
import re
import warnings

# Delimiters of comments: `/** */`, `/* */`, `//`, `///`, `//!`, `#`, `--`, and the stars down the left side of a block.
_OPENING = re.compile(r"^\s*(?:/\*[*!]*|//[/!]*|--\[\[|--+|#+)")
_CLOSING = re.compile(r"\s*(?:\*+/|\]\])\s*$")
_STAR = re.compile(r"^\s*\*(?!/)+")
# A paragraph ends where a list of parameters begins: Javadoc, Doxygen, reST and XML documentation name them so.
_TAG = re.compile(r"^\s*(?:[@\\][a-zA-Z]+|:[a-z]+[^:]*:|</?(?:param|returns|remarks|example|exception)\b)")
# Markup inside a sentence: `{@link Table}` is Table, `<summary>` and `<p>` are nothing.
_INLINE_TAG = re.compile(r"\{@\w+\s+([^}]*)\}")
_MARKUP = re.compile(r"</?(?:summary|p|br|code|b|i|em|tt|c|para|see|paramref)\b[^>]*>", re.IGNORECASE)


def docstring_text(literal: str) -> str:
    """The text of a Python docstring given its source, e.g. `'''Adds.'''`; empty where it is no plain string.

    Indentation is removed as `inspect.getdoc` does.
    """
    try:
        with warnings.catch_warnings():
            # Old code has escapes such as \d, of which Python warns.
            warnings.simplefilter("ignore")
            value = ast.literal_eval(f"({literal})")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    return inspect.cleandoc(value) if isinstance(value, str) else ""


def comment_text(comment: str) -> str:
    """The text of the comment lines above a function, without delimiters and markup."""
    lines = []
    for line in comment.split("\n"):
        bare = _STAR.sub("", _CLOSING.sub("", _OPENING.sub("", line)))
        lines.append(_MARKUP.sub("", _INLINE_TAG.sub(r"\1", bare)))
    return "\n".join(lines).strip("\n")


def first_paragraph(text: str) -> str:
    """The first paragraph on one line: up to an empty line, as CodeSearchNet cuts it."""
    return " ".join(text.strip().split("\n\n")[0].split())


def summary_of_comment(text: str) -> str:
    """The first paragraph of a comment's text; a list of parameters ends it, too, and text that begins with one has none."""
    kept: list[str] = []
    for line in text.strip().split("\n"):
        if not line.strip() or _TAG.match(line):
            break
        kept.append(line)
    return " ".join(" ".join(kept).split())

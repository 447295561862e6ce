"""The functions of a source file, by tree-sitter: names, places, and code without the docstring, the question of training.

A syntax tree is walked without recursion, so that no file can exhaust the stack.
"""

import importlib
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mose.dataset.languages import BY_SUFFIX, Language
from mose.errors import MoseError

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

# Larger files are generated or minified; a parser would spend seconds on each.
LARGEST_SOURCE_BYTES = 1_000_000
_LONGEST_SIGNATURE = 300
_FUNCTION_VALUES = ("function_expression", "arrow_function", "generator_function", "function_definition", "function")
_BODIES = ("function_body", "block")


@dataclass(frozen=True)
class SourceFunction:
    """One function or method of a source file."""

    name: str
    """With the class, module or namespace in front: `Table.read`."""
    signature: str
    """What stands before the body, on one line."""
    code: str
    """Whole source, decorators included, without a Python docstring; dedented."""
    language: str
    line: int
    """Line of the definition, counted from 1; decorators stand above it."""
    doc: str
    """Docstring, or the comment lines directly above; empty where there are none."""
    lines: tuple[int, int] = (0, 0)
    """First and last line that `code` was taken from, counted from 1, without comments at its end."""
    doc_lines: tuple[int, int] | None = None
    """First and last line of a docstring that `code` leaves out."""
    has_error: bool = False
    """Whether the grammar could not read part of it."""


class FunctionReader:
    """Finds functions in source files; keeps one parser per grammar."""

    def __init__(self) -> None:
        self._parsers: dict[tuple[str, str], Parser] = {}

    def read(self, source: bytes, suffix: str) -> list[SourceFunction]:
        """The functions of a file whose name ends with `suffix`, in their order; functions inside functions are left out.

        A suffix of no known language, or a file above `LARGEST_SOURCE_BYTES`, has none. Broken code gives what can be parsed.

        Raises:
            MoseError: the grammar of the language is not installed.
        """
        language = BY_SUFFIX.get(suffix)
        if language is None or len(source) > LARGEST_SOURCE_BYTES:
            return []
        source = source.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        tree = self.parser(language).parse(source)
        return [_function(source, language, name, node, outer) for name, node, outer in _definitions(tree.root_node, language)]

    def parser(self, language: Language) -> "Parser":
        """The parser of a language; errors as in `read`."""
        key = (language.package, language.grammar)
        if key not in self._parsers:
            try:
                tree_sitter: Any = importlib.import_module("tree_sitter")
                grammar = getattr(importlib.import_module(language.package), language.grammar)()
            except ImportError:
                name = language.package.replace("_", "-")
                raise MoseError(
                    f"{language.name}: the package {name} is not installed, expected those of `data` or `finetune`"
                ) from None
            self._parsers[key] = tree_sitter.Parser(tree_sitter.Language(grammar))
        return self._parsers[key]


def _definitions(root: "Node", language: Language) -> Iterator[tuple[str, "Node", "Node"]]:
    """Name, definition, and the node that holds it with its decorators, of each function that stands in no other."""
    waiting = [(root, "", root)]
    while waiting:
        node, prefix, outer = waiting.pop()
        if node.type in language.functions:
            if _body(node) is not None:
                yield prefix + _name(node), node, outer
            continue
        if node.type in language.named_values and (value := _function_value(node)) is not None:
            if _body(value) is not None:
                yield prefix + _name(node), node, outer
            continue
        if node.type in language.containers and (name := _name(node)):
            prefix = f"{prefix}{name}."
        # `const f = ..., g = ...` is one statement of two functions: neither is the whole of it.
        keeps = node.type in language.wrappers and sum("declarator" in child.type for child in node.named_children) < 2
        held_by = outer if outer.type in language.wrappers and keeps else node
        waiting += [(child, prefix, held_by if keeps else child) for child in reversed(node.named_children)]


def _name(node: "Node") -> str:
    """The name of a definition; of C's, the innermost declarator: `*f(int)` is f."""
    for field in ("name", "key", "left"):
        if (found := node.child_by_field_name(field)) is not None:
            return _text(found)
    if node.type == "impl_item":
        implemented = node.child_by_field_name("type")
        return "" if implemented is None else _text(implemented)
    while (inner := node.child_by_field_name("declarator")) is not None:
        node = inner
    if node.type == "assignment_statement":
        node = node.named_children[0]
    # What is left of a reference's declarator is `& f(int)`.
    return _text(node).partition("(")[0].strip("&* ")


def _body(node: "Node") -> "Node | None":
    """The body of a function; None where there is only a declaration."""
    holder = _function_value(node) or node
    named = holder.child_by_field_name("body")
    # Kotlin's grammar gives the body no field, and an empty one of Lua is left out.
    return named or next((child for child in holder.children if child.type in (*_BODIES, "end")), None)


def _function_value(node: "Node") -> "Node | None":
    value = node.child_by_field_name("value") or node.child_by_field_name("right")
    if value is None and node.type == "assignment_statement":
        value = node.named_children[-1]
    if value is not None and value.type == "expression_list" and value.named_child_count == 1:
        value = value.named_children[0]
    return value if value is not None and value.type in _FUNCTION_VALUES else None


def _function(source: bytes, language: Language, name: str, node: "Node", outer: "Node") -> SourceFunction:
    body = _body(node)
    signature_end = body.start_byte if body is not None else node.end_byte
    signature = " ".join(source[node.start_byte : signature_end].decode("utf-8", "replace").split()).rstrip(" {:=>").rstrip()
    docstring = _docstring(body) if language.name == "Python" else None
    left_out = docstring if docstring is not None and _stands_alone(source, body, docstring) else None
    doc = _comments_above(outer) if docstring is None else _text(docstring)
    return SourceFunction(
        name,
        signature[:_LONGEST_SIGNATURE],
        _code(source, outer, left_out),
        language.name,
        node.start_point[0] + 1,
        doc,
        (outer.start_point[0] + 1, _last_line(outer)),
        None if left_out is None else (left_out.start_point[0] + 1, left_out.end_point[0] + 1),
        bool(outer.has_error),
    )


def _last_line(node: "Node") -> int:
    """The line on which the code of a node ends; grammars count a comment below the last statement to its block."""
    while code := [child for child in node.children if not _is_comment(child)]:
        node = code[-1]
    return int(node.end_point[0]) + 1


def _docstring(body: "Node | None") -> "Node | None":
    """The string that is the first statement of a Python function."""
    first = next((child for child in body.named_children if child.type != "comment"), None) if body is not None else None
    if first is None or first.type != "expression_statement" or first.named_child_count != 1:
        return None
    return first if first.named_children[0].type in ("string", "concatenated_string") else None


def _stands_alone(source: bytes, body: "Node | None", docstring: "Node") -> bool:
    """Whether whole lines can be left out and a statement still follows, on a line below."""
    statements = [child for child in body.named_children if not _is_comment(child)] if body is not None else []
    later = next((child for child in statements if child.start_byte >= docstring.end_byte), None)
    before = source[_line_start(source, docstring.start_byte) : docstring.start_byte]
    return later is not None and later.start_point[0] > docstring.end_point[0] and not before.strip()


def _code(source: bytes, outer: "Node", left_out: "Node | None") -> str:
    """The source of a node from the start of its line, without the lines of `left_out`."""
    start = _line_start(source, outer.start_byte)
    start = start if not source[start : outer.start_byte].strip() else outer.start_byte
    kept = source[start : outer.end_byte]
    if left_out is not None:
        cut, line_end = _line_start(source, left_out.start_byte), source.find(b"\n", left_out.end_byte)
        kept = source[start:cut] + source[line_end + 1 : outer.end_byte]
    return textwrap.dedent(kept.decode("utf-8", "replace"))


def _line_start(source: bytes, position: int) -> int:
    return source.rfind(b"\n", 0, position) + 1


def _comments_above(outer: "Node") -> str:
    lines: list[str] = []
    # Ruby's grammar puts the first method of a class into a body that the comment stands before.
    while outer.prev_sibling is None and outer.parent is not None and outer.parent.start_byte == outer.start_byte:
        outer = outer.parent
    below, above = outer, outer.prev_sibling
    while above is not None and (_is_comment(above) or above.type == "attribute_item") and _touches(above, below):
        if _is_comment(above):
            lines.append(_text(above).rstrip("\n"))
        below, above = above, above.prev_sibling
    return "\n".join(reversed(lines))


def _is_comment(node: "Node") -> bool:
    return "comment" in node.type


def _touches(above: "Node", below: "Node") -> bool:
    """Whether no line stands between two nodes; a comment of Rust ends at the start of the next line."""
    return bool(below.start_point[0] - above.end_point[0] <= 1)


def _text(node: "Node") -> str:
    return (node.text or b"").decode("utf-8", "replace")

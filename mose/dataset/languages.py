"""The programming languages whose functions can be found: the grammar of each, and what its syntax tree calls a function."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Language:
    """One language: its name as training data has it, the grammar's package, and the node types that matter."""

    name: str
    package: str
    suffixes: tuple[str, ...]
    functions: frozenset[str]
    """Definitions with a name and a body."""
    containers: frozenset[str] = frozenset()
    """What gives its name to the functions inside: classes, modules, namespaces."""
    named_values: frozenset[str] = frozenset()
    """What gives a name to a function that has none: `const f = () => 1`."""
    wrappers: frozenset[str] = frozenset()
    """What belongs to the definition inside: decorators, `export`, `template`."""
    grammar: str = "language"
    """Function of the package that returns the grammar."""


def _of(*names: str) -> frozenset[str]:
    return frozenset(names)


_SCRIPT: dict[str, Any] = {
    "functions": _of("function_declaration", "generator_function_declaration", "method_definition"),
    "containers": _of("class_declaration", "abstract_class_declaration", "internal_module"),
    "named_values": _of("variable_declarator", "assignment_expression", "pair", "public_field_definition", "field_definition"),
    "wrappers": _of("export_statement", "lexical_declaration", "variable_declaration"),
}
_C_FUNCTION = _of("function_definition")

# Packages of the tree-sitter project where it has one; each is a wheel that holds its grammar and downloads nothing.
LANGUAGES = (
    Language(
        "Python",
        "tree_sitter_python",
        (".py", ".pyi"),
        _C_FUNCTION,
        _of("class_definition"),
        wrappers=_of("decorated_definition"),
    ),
    Language(
        "Java",
        "tree_sitter_java",
        (".java",),
        _of("method_declaration", "constructor_declaration"),
        _of("class_declaration", "interface_declaration", "enum_declaration", "record_declaration"),
    ),
    Language("JavaScript", "tree_sitter_javascript", (".js", ".mjs", ".cjs", ".jsx"), **_SCRIPT),
    Language("TypeScript", "tree_sitter_typescript", (".ts", ".mts", ".cts"), **_SCRIPT, grammar="language_typescript"),
    Language("TypeScript", "tree_sitter_typescript", (".tsx",), **_SCRIPT, grammar="language_tsx"),
    Language("Go", "tree_sitter_go", (".go",), _of("function_declaration", "method_declaration")),
    Language("Rust", "tree_sitter_rust", (".rs",), _of("function_item"), _of("impl_item", "trait_item", "mod_item")),
    Language("C", "tree_sitter_c", (".c", ".h"), _C_FUNCTION),
    Language(
        "C++",
        "tree_sitter_cpp",
        (".cpp", ".cc", ".cxx", ".hpp", ".hh", ".hxx", ".cu"),
        _C_FUNCTION,
        _of("class_specifier", "struct_specifier", "namespace_definition"),
        wrappers=_of("template_declaration"),
    ),
    Language(
        "C#",
        "tree_sitter_c_sharp",
        (".cs",),
        _of("method_declaration", "constructor_declaration"),
        _of("class_declaration", "struct_declaration", "interface_declaration", "record_declaration"),
    ),
    Language(
        "PHP",
        "tree_sitter_php",
        (".php",),
        _of("function_definition", "method_declaration"),
        _of("class_declaration", "trait_declaration", "interface_declaration"),
        grammar="language_php",
    ),
    Language("Ruby", "tree_sitter_ruby", (".rb",), _of("method", "singleton_method"), _of("class", "module")),
    Language(
        "Kotlin",
        "tree_sitter_kotlin",
        (".kt", ".kts"),
        _of("function_declaration"),
        _of("class_declaration", "object_declaration"),
    ),
    Language(
        "Scala",
        "tree_sitter_scala",
        (".scala",),
        _of("function_definition"),
        _of("class_definition", "object_definition", "trait_definition"),
    ),
    Language("Shell", "tree_sitter_bash", (".sh", ".bash"), _C_FUNCTION),
    Language("Lua", "tree_sitter_lua", (".lua",), _of("function_declaration"), named_values=_of("assignment_statement")),
)
BY_SUFFIX = {suffix: language for language in LANGUAGES for suffix in language.suffixes}

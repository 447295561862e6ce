"""The miner in ten languages: documentation without marks, its first paragraph, code that follows it."""

import pytest

from data_prep.synthconl.mining.documentation import comment_text, docstring_text, summary_of_comment
from data_prep.synthconl.mining.functions import functions_of
from mose.dataset.functions import FunctionReader

BLOCK = "/**\n * Adds two {@link Number}s.\n * Never fails.\n *\n * More of it.\n * @param a the first\n */\n"
LINES = "// Adds two Numbers.\n// Never fails.\n//\n// More of it.\n"
SOURCES = {
    "Python": (
        "a.py",
        'def add(a, b):\n    """Adds two Numbers.\n    Never fails.\n\n    M."""\n    c = a\n    return c\n',
    ),
    "Java": ("A.java", f"class A {{\n{BLOCK}int add(int a, int b) {{\n  return a + b;\n}}\n}}\n"),
    "JavaScript": ("a.js", f"{BLOCK}function add(a, b) {{\n  return a + b;\n}}\n"),
    "TypeScript": ("a.ts", f"{BLOCK}function add(a: number, b: number) {{\n  return a + b;\n}}\n"),
    "PHP": ("a.php", f"<?php\n{BLOCK}function add($a, $b) {{\n  return $a + $b;\n}}\n"),
    "Go": ("a.go", f"package a\n\n{LINES}func add(a int, b int) int {{\n  return a + b\n}}\n"),
    "C": ("a.c", f"{BLOCK}int add(int a, int b) {{\n  return a + b;\n}}\n"),
    "C++": ("a.cpp", f"{LINES}int add(int a, int b) {{\n  return a + b;\n}}\n"),
    "Rust": ("a.rs", f"{LINES.replace('//', '///')}fn add(a: i32, b: i32) -> i32 {{\n  a + b\n}}\n"),
    "Ruby": ("a.rb", f"{LINES.replace('//', '#')}def add(a, b)\n  a + b\nend\n"),
    "C#": (
        "A.cs",
        "class A {\n/// <summary>\n/// Adds two Numbers.\n/// Never fails.\n/// </summary>\n"
        '/// <param name="a">x</param>\nint Add(int a, int b) {\n  return a + b;\n}\n}\n',
    ),
}


@pytest.mark.parametrize("language", SOURCES)
def test_the_summary_in_each_language(language: str) -> None:
    path, source = SOURCES[language]
    (function,) = functions_of(source, path, language, FunctionReader())
    assert function.summary == "Adds two Numbers. Never fails."
    assert function.name.lower() == "add"
    assert "Numbers" not in function.code
    assert not function.has_error


def test_the_language_decides_where_the_suffix_fits_several() -> None:
    source = "// Adds one to it.\ntemplate <class T> T add(T a) {\n  return a + 1;\n}\n"
    (function,) = functions_of(source, "a.h", "C++", FunctionReader())
    assert (function.language, function.has_error) == ("C++", False)


def test_a_language_without_grammar_and_broken_python_have_none() -> None:
    assert list(functions_of("x", "a.hs", "Haskell", FunctionReader())) == []
    assert list(functions_of("print 'x'\ndef f(a):\n    '''Say it.'''\n    return a\n", "a.py", "Python", FunctionReader())) == []


@pytest.mark.parametrize(
    ("literal", "text"),
    [
        ('"""One\n    two."""', "One\ntwo."),
        (r"'a\nb'", "a\nb"),
        ("'a' 'b'", "ab"),
        ("b'a'", ""),
        ("f'{1}'", ""),
        ("'broken", ""),
        ("1", ""),
    ],
)
def test_the_value_of_a_docstring(literal: str, text: str) -> None:
    assert docstring_text(literal) == text


@pytest.mark.parametrize(
    ("comment", "summary"),
    [
        ("/* One line. */", "One line."),
        ("//! Rust's own.", "Rust's own."),
        ("/// <summary>Sum of <c>all</c>.</summary>", "Sum of all."),
        ("/** @param a first\n * text */", ""),
        ("/**\n * First.\n * \\param a text\n */", "First."),
        ("# a\n#\n# b", "a"),
        ("", ""),
    ],
)
def test_marks_and_tags_of_comments(comment: str, summary: str) -> None:
    assert summary_of_comment(comment_text(comment)) == summary

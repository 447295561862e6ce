"""Functions of source files in each language: names, signatures, lines, code, documentation, and hostile files."""

import pytest

from mose.dataset.functions import LARGEST_SOURCE_BYTES, FunctionReader
from mose.dataset.languages import BY_SUFFIX, LANGUAGES

SOURCES = {
    ".py": ("class T:\n    @d\n    async def f(self):\n        '''Doc.'''\n        return 1\n\ndef g(): pass\n", ["T.f", "g"]),
    ".java": ("class A {\n  /** Doc. */\n  int f(int x) { return x; }\n  A() {}\n  interface I { void g(); }\n}", ["A.f", "A.A"]),
    ".js": (
        "// Doc.\nexport function f(x) { function inner() {} return x }\nconst g = (x) => { return x };\n"
        "class A { m() { return 1 } }\nexports.h = function(x) { return x };\nconst o = { k: function() { return 1 } };",
        ["f", "g", "A.m", "exports.h", "k"],
    ),
    ".ts": (
        "export function f(x: number): number { return x }\nclass A { m(): void {} }\ndeclare function g(): void;",
        ["f", "A.m"],
    ),
    ".tsx": ("const View = (x: number) => <b>{x}</b>;", ["View"]),
    ".go": ("package m\n// Doc.\nfunc F(x int) int { return x }\nfunc (t *T) G() {}\n", ["F", "G"]),
    ".rs": ("impl T { fn f(&self) -> i32 { 1 } }\nmod m { /// Doc.\n #[test]\n fn h() {} }\ntrait X { fn y(); }", ["T.f", "m.h"]),
    ".c": ("static int f(int x) { return x; }\n/* Doc. */\nchar *g(void) { return 0; }\nint h(int);", ["f", "g"]),
    ".cpp": (
        "int A::f(int x) { return x; }\nnamespace n { class B { int g() { return 1; } }; }\n"
        "template<class T> T h(T x) { return x; }",
        ["A::f", "n.B.g", "h"],
    ),
    ".cs": ("class A { int F(int x) { return x; } int G() => 1; }", ["A.F", "A.G"]),
    ".php": ("<?php function f($x) { return $x; } class A { public function g() { return 1; } }", ["f", "A.g"]),
    ".rb": ("class A\n  # Doc.\n  def f(x)\n    x\n  end\n  def self.g\n    1\n  end\nend\n", ["A.f", "A.g"]),
    ".kt": ("class A {\n    fun f(x: Int): Int {\n        return x\n    }\n}\nfun h() = 1\n", ["A.f", "h"]),
    ".scala": ("object A {\n  def f(x: Int): Int = { x }\n}\n", ["A.f"]),
    ".sh": ("f() { echo 1; }\nfunction g { echo 2; }\n", ["f", "g"]),
    ".lua": ("function f(x) return x end\nlocal function g() end\nM.k = function() return 1 end\n", ["f", "g", "M.k"]),
}


@pytest.mark.parametrize("suffix", SOURCES)
def test_functions_of_each_language(suffix: str) -> None:
    source, names = SOURCES[suffix]
    found = FunctionReader().read(source.encode(), suffix)
    assert [function.name for function in found] == names
    lines = source.split("\n")
    for function in found:
        assert function.language == BY_SUFFIX[suffix].name
        assert function.name.rpartition(".")[2].rpartition("::")[2] in lines[function.line - 1]
        assert "\n" not in function.signature and "{" not in function.signature and function.signature[-1] not in ":= "
        assert "Doc." not in function.code
    if "Doc." in source:
        assert ["Doc." in function.doc for function in found].count(True) == 1


def test_every_language_is_tried() -> None:
    assert len({language.name for language in LANGUAGES}) >= 15
    assert {language.suffixes[0] for language in LANGUAGES} == set(SOURCES)


def test_code_has_its_decorators_and_indentation() -> None:
    (method, _), reader = FunctionReader().read(SOURCES[".py"][0].encode(), ".py"), FunctionReader()
    assert method.code == "@d\nasync def f(self):\n    return 1"
    assert method.signature == "async def f(self)" and method.line == 3 and method.doc == "'''Doc.'''"
    (exported, *_) = reader.read(SOURCES[".js"][0].encode(), ".js")
    assert exported.code.startswith("export function f(x)")
    (template,) = reader.read(b"template<class T>\nT h(T x) { return x; }", ".cpp")
    assert template.code.startswith("template<class T>\n") and template.line == 2


@pytest.mark.parametrize("suffix", SOURCES)
def test_no_file_breaks_the_reader(suffix: str) -> None:
    """Cut, nested, binary and empty files: what can be parsed, and never an error."""
    source, reader = SOURCES[suffix][0].encode(), FunctionReader()
    for size in range(0, len(source), 7):
        reader.read(source[:size], suffix)
        reader.read(source[size:], suffix)
    assert reader.read(b"", suffix) == []
    reader.read(b"\xff\x00\xfe\r\r\n" * 50, suffix)
    reader.read(b"(" * 20_000, suffix)
    reader.read(b"class A {" * 3_000, suffix)
    assert reader.read(source + b"\n" * LARGEST_SOURCE_BYTES, suffix) == []


def test_another_suffix_has_no_functions() -> None:
    assert FunctionReader().read(b"def f(): pass", ".txt") == []

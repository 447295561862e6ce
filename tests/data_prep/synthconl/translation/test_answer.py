"""Code in answers, and why answers are rejected; the prompt and the draw of its target."""

from collections import Counter

import pytest

from data_prep.synthconl.translation.answer import AnswerCheck, Verdict
from data_prep.synthconl.translation.prompt import TARGETS, draw_target, prompt_of
from tests.data_prep.rule_server import translation

SOURCE = "def f(a):\n    b = a\n    return b"
GO = "func f(a int) int {\n\treturn a\n}"


def judge(text: str, target: str = "Go", finish: str = "stop") -> Verdict:
    return AnswerCheck().judge(text, finish, target, "Python", SOURCE)


@pytest.mark.parametrize(
    "text",
    [
        f"```go\n{GO}\n```",
        f"Sure:\n\n```golang\n{GO}\n```\nIt returns its argument.",
        f"```\n{GO}\n```",
        f"~~~go\n{GO}\n~~~",
        f"````go\n{GO}\n````",
        f"```go\n{GO}",
        f"```python\n{SOURCE}\n```\nbecomes\n```go\n{GO}\n```",
        GO,
    ],
)
def test_the_code_is_found(text: str) -> None:
    assert judge(text) == Verdict("ok", GO)


@pytest.mark.parametrize(
    ("text", "finish", "outcome"),
    [
        ("", "stop", "empty"),
        (" \n", "stop", "empty"),
        ("```go\n\n```", "stop", "empty"),
        (f"```go\n{GO}\n```", "length", "truncated"),
        ("", "content_filter", "refused"),
        ("I'm sorry, but I can't help with that.", "stop", "refused"),
        ("It returns its argument (in Go).", "stop", "prose"),
        (f"```python\n{SOURCE}\n```", "stop", "wrong_language"),
        (f"```go\n{SOURCE}\n```", "stop", "wrong_language"),
        ("```rust\nfn f() {}\n```", "stop", "wrong_language"),
        ("```go\nfunc f( {{{\n```", "stop", "unparsable"),
        ("```go\n// only a comment\n```", "stop", "unparsable"),
    ],
)
def test_the_reason_of_a_rejection(text: str, finish: str, outcome: str) -> None:
    assert judge(text, finish=finish).outcome == outcome


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("Java", "public int f(int a) {\n    return a;\n}"),
        ("Java", '@Override\npublic String f() {\n    return "{}";\n}'),
        ("PHP", "public function f($a)\n{\n    return $a;\n}"),
        ("PHP", "<?php\nfunction f($a) {\n    return $a;\n}"),
        ("JavaScript", "async f(a) {\n  return a;\n}"),
        ("C++", "int f(int a) const {\n    return a;\n}"),
        ("C++", "template <class T> T f(T a) { return a; }"),
        ("C", "static int f(int *a)\n{\n    return *a;\n}"),
        ("Ruby", "def f(a)\n  a\nend"),
        ("Python", "def f(a):\n    return {a: '{}'}"),
    ],
)
def test_functions_and_methods_alone_parse(target: str, code: str) -> None:
    assert judge(f"```\n{code}\n```", target) == Verdict("ok", code)


def test_c_tagged_for_cpp_is_taken_and_unknown_tags_too() -> None:
    assert judge("```c\nint f(int a) { return a; }\n```", "C++").outcome == "ok"
    assert judge(f"```text\n{GO}\n```").outcome == "ok"


def test_half_of_a_surrogate_pair_and_many_fences_end() -> None:
    assert judge('```go\nfunc f() string {\n\treturn "\ufffd"\n}\n```').outcome == "ok"
    assert judge("```\n" * 20_000).outcome in ("empty", "unparsable")


@pytest.mark.parametrize("source", ["Python", "Kotlin"])
def test_targets_are_drawn_evenly_and_never_the_source(source: str) -> None:
    drawn = Counter(draw_target(0, f"{i:016x}", source, TARGETS) for i in range(4000))
    expected = 4000 / len(set(TARGETS) - {source})
    assert set(drawn) == set(TARGETS) - {source}
    assert all(abs(number - expected) < 0.2 * expected for number in drawn.values())


def test_the_draw_depends_on_seed_and_function_only() -> None:
    assert draw_target(3, "abc", "Go", TARGETS) == draw_target(3, "abc", "Go", TARGETS)
    assert len({draw_target(seed, "abc", "Go", TARGETS) for seed in range(50)}) > 1


def test_the_prompt_names_both_languages_and_fences_the_code() -> None:
    prompt = prompt_of('print("Hello World")', "Python", "Rust")
    assert prompt.startswith("Translate the following Python code to Rust.\n")
    assert '```python\nprint("Hello World")\n```' in prompt
    assert "````python" in prompt_of("# ```\nx", "Python", "Rust")


def test_a_retry_says_what_was_wrong() -> None:
    assert prompt_of("x", "Python", "Rust", "wrong_language") != prompt_of("x", "Python", "Rust")
    twice = [prompt_of("x", "Python", "Rust", "prose", number) for number in (2, 3, 4)]
    assert len(set(twice)) == 3
    assert "not valid Rust" in prompt_of("x", "Python", "Rust", "unparsable")


@pytest.mark.parametrize("target", TARGETS)
def test_the_rule_of_the_test_server_gives_code_of_each_target(target: str) -> None:
    source = "Go" if target == "Python" else "Python"
    asked, code = translation(prompt_of(SOURCE, source, target))
    assert asked == target
    assert AnswerCheck().parses(code, target)

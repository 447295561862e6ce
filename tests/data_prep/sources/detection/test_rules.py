"""The faster ways of matching give the answers of `re`: RE2 for contents and paths, plain texts for marks of generators."""

import random
import re
from collections.abc import Iterator

import pytest

from data_prep.sources.detection import generated, rules
from data_prep.sources.detection.rules import PathRules, bytes_pattern, contents_pattern, linear_pattern, load_rules

SPACES = ("\n", " ", "\t", "\v", "\r\n", "", "\f", "\n\n")


def all_checks() -> list[tuple[str, ...]]:
    blocks = load_rules().heuristics.values()
    return sorted({tuple(texts) for block in blocks for rule in block for _, texts in rule["checks"]})


def texts_like(pattern: str, number: int) -> Iterator[bytes]:
    """Texts of the words and signs of a pattern in its order, with parts left out, other spaces, and line ends between."""
    draw = random.Random(pattern)
    words = re.findall(r"\w+|[^\w\s\\]", re.sub(r"\\[a-zA-Z]", " ", pattern)) or [" "]
    for _ in range(number):
        parts = [word for word in words if draw.random() < 0.8]
        yield "".join(part + draw.choice(SPACES) for part in parts).encode() * draw.choice((1, 2))
        start = draw.randrange(len(words))
        yield (draw.choice(("", "é", "x\n", "\v")) + " ".join(words[start : start + 3]) + draw.choice(SPACES)).encode()


def test_contents_match_as_in_python() -> None:
    hits = 0
    for texts in all_checks():
        fast, slow = contents_pattern(texts), [bytes_pattern(text) for text in texts]
        for content in texts_like("".join(texts), 12):
            expected = any(pattern.search(content) for pattern in slow)
            assert bool(fast.search(content)) == expected, (texts, content)
            hits += expected
    assert hits > 900


def test_most_contents_are_searched_in_one_pass() -> None:
    """A pattern that RE2 refuses costs its old time; few do."""
    checks = all_checks()
    assert sum(linear_pattern(texts, "(?m)") is None for texts in checks) <= 10
    assert len(checks) > 250


@pytest.mark.parametrize("pattern", [r"a{,2}b", r"[[:alpha:]]", r"[a\S]", r"(?=a)", r"(a)\1", r"a\Z"])
def test_what_the_engines_read_otherwise_stays_with_python(pattern: str) -> None:
    assert linear_pattern([pattern]) is None


@pytest.mark.parametrize("group", [load_rules().vendored, load_rules().documentation, generated._NAMES])
def test_paths_match_as_in_python(group: PathRules) -> None:
    hits = 0
    for _, pattern in group.patterns:
        # The first of each class, and no operator.
        plain = re.sub(r"\(\^\|/\)|\[(\w)[^\]]*\]|\(\?\w*:|[()?*+^$\\]|\|.*", r"\1", pattern.pattern)
        for path in (plain, f"a/{plain}", f"{plain}x", f"é/{plain}", f"{plain}\n", f"a/{plain}/b.c", plain.upper(), plain[1:]):
            expected = any(one.search(path) for _, one in group.patterns)
            assert group.match(path) == expected, path
            hits += expected
    assert hits > len(group.patterns)


@pytest.mark.parametrize("mark", [mark for mark in generated._MARKS if mark.literal], ids=lambda mark: mark.literal[:20].decode())
def test_a_plain_mark_is_found_as_its_pattern_would_be(mark: generated._Mark) -> None:
    draw = random.Random(mark.literal)
    found = 0
    for _ in range(60):
        lines = [
            draw.choice((b"", b"x", mark.literal, b" " + mark.literal, mark.literal[1:])) for _ in range(draw.randrange(1, 8))
        ]
        content = b"\n" * draw.choice((0, 0, 0, max(0, mark.end - 4))) + b"\n".join(lines)
        ranged = content.split(b"\n", generated._HEAD_LINES)
        expected = len(ranged) >= mark.min_lines and any(map(mark.pattern.search, ranged[mark.first : mark.end]))
        assert mark.is_in(content) == expected, content
        found += expected
    assert 0 < found < 60


def test_a_rule_without_words_still_matches() -> None:
    assert contents_pattern((r"\A\Z",)).search(b"")
    assert not contents_pattern((r"\A\Z",)).search(b"a")
    assert rules.PathRules(()).match("a") is False

"""Covers MinHash signatures: a document's signature is its own, estimates are unbiased, and as good as datasketch's."""

import numpy as np
import pytest
from datasketch import MinHash

from data_prep.dedup.minhash.shingles import BATCH_CHARACTERS, normalize, shingle_set, shingles_of
from data_prep.dedup.minhash.signatures import EMPTY, Method, classic, estimate, one_permutation, signatures_of
from tests.data_prep.dedup.documents import changed, code, shingles, similarity

METHODS: tuple[Method, ...] = ("one_permutation", "classic")
PLACES = 256


def pairs(words: int, number: int = 40) -> list[tuple[str, str]]:
    """Pairs of a text of `words` words and a copy in which up to a third of them are changed."""
    return [(text := code(seed, words), changed(text, 1 + seed % max(words // 3, 1), seed)) for seed in range(1, number + 1)]


@pytest.mark.parametrize("method", METHODS)
def test_a_signature_does_not_depend_on_the_batch(method: Method) -> None:
    texts = [code(1), "", "abc", code(2, 5), "é" * 20, code(3), "\u0100bcde fghi", "x" * (BATCH_CHARACTERS + 100)]
    together = signatures_of(shingles_of(texts), PLACES, method)
    for number, text in enumerate(texts):
        assert np.array_equal(together[number], signatures_of(shingles_of([text]), PLACES, method)[0])
    assert (together[1] == EMPTY).all()
    assert not (together[[0, 2, 3, 4, 5, 6, 7]] == EMPTY).any()


@pytest.mark.parametrize("method", METHODS)
def test_a_signature_depends_on_the_set_alone(method: Method) -> None:
    first, second = "abcdefgh abcdefgh abcdefgh", "abcdefgh abcdefgh"
    assert shingles(first) == shingles(second)
    signatures = signatures_of(shingles_of([first, second]), PLACES, method)
    assert np.array_equal(signatures[0], signatures[1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("words", [2, 4, 12, 60, 400])
def test_estimates_are_as_good_as_independent_draws(method: Method, words: int) -> None:
    """256 independent places have a standard error of sqrt(J (1 - J) / 256); so has a signature of any length of text."""
    found = []
    for first, second in pairs(words):
        wanted = similarity(first, second)
        signatures = signatures_of(shingles_of([first, second]), PLACES, method)
        spread = max(np.sqrt(wanted * (1 - wanted) / PLACES), 1e-9)
        found.append((estimate(signatures[0], signatures[1]) - wanted) / spread)
    errors = np.array(found)[np.abs(found) > 0]
    # Of very short texts all draws fall on the same few shingles after the rounds are over, so that the spread may be larger.
    bound = 1.35 if words > 4 else 2.2
    assert np.sqrt(np.mean(errors**2)) < bound
    assert abs(errors.mean()) < 0.6


def test_errors_are_those_of_datasketch() -> None:
    """The oracle: datasketch's estimate of the same pairs has the same error, within sampling noise."""
    ours, theirs = [], []
    for first, second in pairs(100, 30):
        wanted = similarity(first, second)
        signatures = one_permutation(shingles_of([first, second]), PLACES)
        ours.append(estimate(signatures[0], signatures[1]) - wanted)
        minhashes = [MinHash(num_perm=PLACES, seed=1) for _ in range(2)]
        for minhash, text in zip(minhashes, (first, second), strict=True):
            minhash.update_batch([shingle.encode() for shingle in shingles(text)])
        theirs.append(minhashes[0].jaccard(minhashes[1]) - wanted)
    assert np.std(ours) < 1.5 * np.std(theirs) < 2.5 * np.std(ours) + 0.01


def test_values_are_the_least_of_the_hashes() -> None:
    """The signature of a union is the place-wise minimum, as MinHash is defined; only where no place was empty."""
    text = normalize(code(9, 2000))
    half = len(text) // 2
    parts = shingles_of([text[: half + 4], text[half:], text])
    for signatures in (one_permutation(parts, PLACES), classic(parts, PLACES)):
        assert np.array_equal(np.minimum(signatures[0], signatures[1]), signatures[2])
    assert len(shingle_set(text)) > 10 * PLACES


def test_a_planted_fault_in_the_densification_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty places that all share one constant would make unrelated short texts alike."""
    from data_prep.dedup.minhash import signatures as module

    texts = [code(1, 3), code(2, 3)]
    assert estimate(*one_permutation(shingles_of(texts), PLACES)) < 0.2
    monkeypatch.setattr(module, "ROUNDS", 1)
    monkeypatch.setattr(module, "_filled_from_the_right", lambda table: table)
    assert estimate(*one_permutation(shingles_of(texts), PLACES)) > 0.5

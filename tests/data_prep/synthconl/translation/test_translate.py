"""`mose-data translate` against a local server: rows, faults of transport and of answers, and each refusal as one line."""

import errno
import gc
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_prep.synthconl.mining.seed_file import Seed, SeedWriter, read_seeds
from data_prep.synthconl.translation.answer import AnswerCheck
from data_prep.synthconl.translation.command import print_counts, translate
from data_prep.synthconl.translation.config import TranslateConfig
from data_prep.synthconl.translation.counts import TranslationCounts
from data_prep.synthconl.translation.journal import Entry, Journal, read_entries
from data_prep.synthconl.translation.prompt import TARGETS, draw_target, prompt_of
from data_prep.synthconl.translation.translator import backoff_seconds
from mose.errors import MoseError
from tests.data_prep.rule_server import ANSWER_FAULTS, MODEL, TRANSPORT_FAULTS, RuleServer, rule_server, translation

SEEDS = 24


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    return write_seeds(tmp_path / "seeds.parquet", SEEDS)


def write_seeds(path: Path, number: int) -> Path:
    with SeedWriter(path) as writer:
        for i in range(number):
            code = f"def f{i}(x):\n    value{i} = x\n    return value{i}"
            writer.add(Seed(f"Give thing {i} back.", code, "Python", f"owner/r{i % 7}", f"/{i}.py"))
    return path


def config_of(server: RuleServer, seeds: Path, **more: Any) -> TranslateConfig:
    quick = {"backoff_seconds": 0.001, "max_backoff_seconds": 0.002, "timeout_seconds": 20.0, "max_concurrency": 4}
    places = {"seeds": str(seeds), "output": str(seeds.parent / "out"), "url": server.address, "model": MODEL}
    return TranslateConfig(**{**places, **quick, **more})  # type: ignore[arg-type]


def results(config: TranslateConfig) -> dict[str, tuple[str, str, str]]:
    return {entry.id: (entry.target, entry.outcome, entry.code) for _, entry in read_entries(config.journal)}


@pytest.fixture
def expected(seeds: Path) -> dict[str, tuple[str, str, str]]:
    targets = {seed: draw_target(0, seed.id, seed.lang_a, TARGETS) for seed in read_seeds(seeds)}
    codes = {seed: translation(prompt_of(seed.code_a, seed.lang_a, target))[1] for seed, target in targets.items()}
    return {seed.id: (target, "ok", codes[seed]) for seed, target in targets.items()}


def test_every_seed_is_translated_once(
    seeds: Path, expected: dict[str, tuple[str, str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    with rule_server() as server:
        config = config_of(server, seeds, input_price=1.0)
        counts = translate(config)
    assert results(config) == expected
    assert counts.translated == SEEDS
    assert set(server.asked.values()) == {1}
    assert len(server.asked) == SEEDS
    assert all(AnswerCheck().parses(code, target) for target, _, code in expected.values())
    print_counts(config, counts)
    out = capsys.readouterr().out
    assert "24 functions: 24 translated now" in out
    assert "answer tokens/s" in out
    assert "cost 0.00" in out


def test_requests_are_greedy(seeds: Path) -> None:
    with rule_server() as server:
        translate(config_of(server, seeds))
    assert {body["temperature"] for body in server.bodies} == {0}
    assert len({body["seed"] for body in server.bodies}) == 1
    assert {body["model"] for body in server.bodies} == {MODEL}


def test_no_more_requests_at_once_than_asked_for(seeds: Path) -> None:
    with rule_server() as server:
        server.delay_seconds = 0.02
        translate(config_of(server, seeds, max_concurrency=3))
    assert server.most_at_once == 3


def test_a_second_run_asks_nothing(seeds: Path) -> None:
    with rule_server() as server:
        config = config_of(server, seeds)
        translate(config)
        before, bodies = config.journal.read_bytes(), len(server.bodies)
        counts = translate(config)
        assert (counts.done_before, counts.requests, len(server.bodies)) == (SEEDS, 0, bodies)
    assert config.journal.read_bytes() == before


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", [name for name in TRANSPORT_FAULTS if name != "stall"])
def test_faults_of_transport_pass(seeds: Path, expected: dict[str, tuple[str, str, str]], fault: str, stream: bool) -> None:
    with rule_server(0.4, (fault,)) as server:
        config = config_of(server, seeds, attempts=30, stream=stream)
        counts = translate(config)
    assert server.injected[fault] > 0
    assert sum(counts.retries.values()) == server.injected[fault]
    assert results(config) == expected
    assert set(server.answered.values()) == {1}


def test_a_server_that_stalls_is_asked_again(seeds: Path, expected: dict[str, tuple[str, str, str]]) -> None:
    with rule_server(0.1, ("stall",), seed=2) as server:
        config = config_of(server, seeds, attempts=30, timeout_seconds=0.5, max_concurrency=8)
        counts = translate(config)
    assert 0 < server.injected["stall"] <= counts.retries["timeout"]
    assert results(config) == expected


@pytest.mark.parametrize("fault", ANSWER_FAULTS)
def test_rejected_answers_are_asked_for_again_with_the_reason(seeds: Path, fault: str) -> None:
    with rule_server(0.5, (fault,)) as server:
        config = config_of(server, seeds, tries=4)
        counts = translate(config)
    reason = {"length": "truncated", "wrong": "wrong_language", "broken": "unparsable"}.get(fault, fault)
    assert set(counts.rejected) == {reason}
    assert counts.rejected[reason] == server.injected[fault] > 0
    assert counts.translated + counts.exhausted[reason] == SEEDS
    numbers = Counter(entry.number for _, entry in read_entries(config.journal))
    assert numbers[1] == SEEDS
    assert max(numbers) <= 4
    # With the reason in it, each retry is another prompt to a greedy model.
    retried = [body for body in server.bodies if "The last answer" in body["messages"][0]["content"]]
    assert bool(retried) == (reason != "refused")
    if reason == "truncated":
        assert {body["max_tokens"] for body in retried} >= {4096}


def test_after_the_last_try_a_seed_is_left(seeds: Path) -> None:
    with rule_server(1.0, ("prose",)) as server:
        config = config_of(server, seeds, tries=2)
        counts = translate(config)
        assert counts.exhausted == {"prose": SEEDS}
        assert translate(config).requests == 0
        server.share = 0.0
        assert translate(config_of(server, seeds, tries=3)).translated == SEEDS
        # The third answer was asked for, not the first one again.
        assert set(server.asked.values()) == {1}
        assert len(server.asked) == 3 * SEEDS


def test_a_server_that_answers_in_prose_is_left(seeds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.synthconl.translation.translator.MAX_REJECTED_AT_FIRST", 10)
    with rule_server(1.0, ("prose",)) as server:
        refused(server, seeds, r"model: no answer to the first 10 functions is accepted \(10 prose\)", tries=2)
        assert sum(server.answered.values()) < 2 * SEEDS


def test_tasks_share_the_rows(seeds: Path, expected: dict[str, tuple[str, str, str]]) -> None:
    found: dict[str, tuple[str, str, str]] = {}
    with rule_server() as server:
        for task in range(3):
            config = config_of(server, seeds, task=task, num_tasks=3)
            translate(config)
            found |= results(config)
    assert found == expected


def test_huge_functions_and_repeated_rows_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = tmp_path / "seeds.parquet"
    with SeedWriter(seeds) as writer:
        for seed in (Seed("Say it.", "x = 1", "Python"), Seed("Say it.", "x = 1", "Python"), Seed("Huge.", "y" * 200, "Python")):
            writer.add(seed)
    with rule_server() as server:
        config = config_of(server, seeds, max_code_characters=100)
        counts = translate(config)
    assert (counts.translated, counts.repeated, counts.huge) == (1, 1, 1)
    print_counts(config, counts)
    assert "1 not translated: more than 100 characters, first row 2 with 200" in capsys.readouterr().out


def refused(server: RuleServer, seeds: Path, message: str, **more: Any) -> None:
    config = config_of(server, seeds, **more)
    with pytest.raises(MoseError, match=message) as failure:
        translate(config)
    assert "\n" not in str(failure.value)


def test_a_server_that_is_down(seeds: Path) -> None:
    with rule_server() as server:
        pass
    refused(server, seeds, "url: no answer to 3 requests, the last failure: connection", attempts=3)


def test_a_server_that_is_slow(seeds: Path) -> None:
    with rule_server() as server:
        server.delay_seconds = 0.4
        refused(server, seeds, "url: no answer to 2 requests, the last failure: timeout", attempts=2, timeout_seconds=0.1)


def test_a_server_of_another_model(seeds: Path) -> None:
    with rule_server() as server:
        server.models = ["other"]
        refused(server, seeds, f"model: the server has other; expected it to have '{MODEL}'")
        server.models, server.answers_as = [MODEL], "other"
        refused(server, seeds, f"model: 'other' answered, expected '{MODEL}'")


def test_a_server_without_greedy_decoding(seeds: Path) -> None:
    with rule_server() as server:
        server.samples = True
        refused(server, seeds, "two answers to one request at temperature 0 differ; expected greedy decoding")
        assert translate(config_of(server, seeds, check_greedy=False)).translated == SEEDS
    with rule_server() as server:
        server.refuses_temperature = True
        refused(server, seeds, "refuses temperature 0 with a seed", output=str(seeds.parent / "other"))


def test_a_server_that_goes_away(seeds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.synthconl.translation.translator.MAX_FAILURES_IN_A_ROW", 5)
    with rule_server(1.0, ("503",)) as server:
        refused(server, seeds, "no answer to 5 functions in a row, the last failure: http_503", attempts=2)


def test_rows_without_an_answer_are_asked_for_by_the_next_run(seeds: Path, expected: dict[str, tuple[str, str, str]]) -> None:
    with rule_server(0.3, ("500",)) as server:
        config = config_of(server, seeds, attempts=1)
        counts = translate(config)
        assert counts.given_up["http_500"] == SEEDS - counts.translated > 0
        server.share = 0.0
        translate(config)
    assert results(config) == expected


def test_two_translations_on_one_journal(seeds: Path) -> None:
    with rule_server() as server:
        server.delay_seconds = 0.3
        config = config_of(server, seeds, max_concurrency=1)
        thread = threading.Thread(target=translate, args=(config,))
        thread.start()
        while not config.journal.exists():
            time.sleep(0.01)
        refused(server, seeds, "works on it; expected one `mose-data translate` per journal")
        server.delay_seconds = 0.0
        thread.join()
    assert len(results(config)) == SEEDS


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(
    seeds: Path,
    expected: dict[str, tuple[str, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    append, calls = Journal.append, [0]

    def full(self: Journal, entries: list[Entry]) -> None:
        calls[0] += 1
        if calls[0] > 3:
            raise OSError(errno.ENOSPC, "No space left on device", "journal")
        append(self, entries)

    with rule_server() as server:
        config = config_of(server, seeds, max_concurrency=8)
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "append", full)
            with pytest.raises(OSError, match="No space left on device"):
                translate(config)
        gc.collect()
        # The traceback of a future that nobody awaited would come here.
        assert caplog.records == []
        known = len(results(config))
        assert 0 < known < SEEDS
        assert translate(config).done_before == known
    assert results(config) == expected
    assert calls[0] == 4


def test_a_journal_of_another_config(seeds: Path) -> None:
    with rule_server() as server:
        config = config_of(server, seeds)
        translate(config)
        before = config.journal.read_bytes()
        refused(server, seeds, "seed: begun with '0', now '1'", seed=1)
        write_seeds(seeds, SEEDS + 1)
        refused(server, seeds, "seeds: begun with")
    assert config.journal.read_bytes() == before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"url": "localhost:8000"}, "url"),
        ({"model": ""}, "model"),
        ({"targets": ("Go",)}, "targets"),
        ({"targets": ("Go", "Latin")}, "'Latin' has no grammar"),
        ({"task": 1}, "task"),
        ({"tries": 0}, "tries"),
        ({"timeout_seconds": 0.0}, "timeout_seconds"),
        ({"hourly_price": -1.0}, "hourly_price"),
    ],
)
def test_values_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(MoseError, match=message):
        TranslateConfig(**{"seeds": "s", "output": "o", "url": "http://x/v1", **values})


def test_the_wait_doubles_up_to_its_bound_and_heeds_the_server() -> None:
    config = TranslateConfig(seeds="s", output="o", url="http://x/v1", backoff_seconds=1.0, max_backoff_seconds=8.0)
    for attempt in range(1, 50):
        assert 0 <= backoff_seconds(config, "x", attempt, 0.0) <= min(8.0, 2.0 ** (attempt - 1))
    assert backoff_seconds(config, "x", 1, 5.0) == 5.0
    assert backoff_seconds(config, "x", 1, 500.0) == 8.0


def test_progress_names_rates_end_and_cost() -> None:
    config = TranslateConfig(seeds="s", output="o", url="http://x/v1", output_price=10.0)
    counts = TranslationCounts(total=100, translated=25, completion_tokens=1_000_000, began=time.monotonic() - 10)
    line = counts.line(config)
    assert "answer tokens/s" in line
    assert "ends about 2" in line
    assert "cost 10.00 of about 40.00" in line

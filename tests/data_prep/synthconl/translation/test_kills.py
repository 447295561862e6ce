"""`mose-data translate` killed at random moments and resumed: the same rows, and nothing paid twice but what was in flight.

`MOSE_KILLS_RESULT=FILE make soak` also writes what the kills hit to FILE.
"""

import datetime
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from data_prep.synthconl.mining.seed_file import Seed, SeedWriter, read_seeds
from data_prep.synthconl.translation.command import translate
from data_prep.synthconl.translation.config import TranslateConfig
from data_prep.synthconl.translation.journal import Entry, read_entries
from data_prep.synthconl.translation.prompt import prompt_of
from mose.config import save_config
from mose.files.atomic_file import write_json
from mose.seeding import generator
from tests.data_prep.rule_server import ANSWER_FAULTS, MODEL, RuleServer, rule_server

FAULTS = ("503", "reset", "half", "malformed", *ANSWER_FAULTS)
CONCURRENCY = 8
RUN_SECONDS = 300.0


@dataclass
class Killed:
    """What was done to one journal, and what came out."""

    kills: int = 0
    runs: int = 0
    torn_lines: int = 0
    """Kills that left a line without its end."""
    asked_again: list[str] = field(default_factory=list)
    """Prompts that a run sent although their answer was in the journal when it began."""


def write_seeds(path: Path, number: int) -> None:
    with SeedWriter(path) as writer:
        for i in range(number):
            code = f"def f{i}(x):\n    value{i} = x\n    return value{i}"
            writer.add(Seed(f"Give thing {i} back.", code, "Python", f"owner/r{i % 7}", f"/{i}.py"))


def config_of(server: RuleServer, seeds: Path, output: Path) -> TranslateConfig:
    return TranslateConfig(
        seeds=str(seeds),
        output=str(output),
        url=server.address,
        model=MODEL,
        max_concurrency=CONCURRENCY,
        attempts=50,
        backoff_seconds=0.01,
        max_backoff_seconds=0.02,
    )


def entries_of(config: TranslateConfig) -> list[Entry]:
    return [entry for _, entry in read_entries(config.journal)] if config.journal.exists() else []


def prompts_of(config: TranslateConfig) -> set[str]:
    """The prompts whose answers are in the journal."""
    seeds = {seed.id: seed for seed in read_seeds(Path(config.seeds))}
    last: dict[str, str] = {}
    found = set()
    for entry in entries_of(config):
        seed = seeds[entry.id]
        found.add(prompt_of(seed.code_a, seed.lang_a, entry.target, last.get(entry.id, ""), entry.number))
        last[entry.id] = entry.outcome
    return found


def run_and_kill(config: TranslateConfig, server: RuleServer, more: int | None, killed: Killed) -> None:
    """Run the command; kill it once it has appended `more` answers, or let it end where that is None."""
    known, before = prompts_of(config), len(server.bodies)
    start = len(entries_of(config))
    path = Path(config.output).parent / "translate.yaml"
    save_config(config, path)
    command = [sys.executable, "-m", "data_prep.cli", "translate", "--config", str(path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        killed.runs += 1
        deadline = time.monotonic() + RUN_SECONDS
        while process.poll() is None:
            assert time.monotonic() < deadline
            if more is not None and len(entries_of(config)) >= start + more:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        _, errors = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), errors
    killed.kills += process.returncode == -signal.SIGKILL
    killed.torn_lines += not config.journal.read_bytes().endswith(b"\n")
    sent = {body["messages"][0]["content"] for body in server.bodies[before:]}
    killed.asked_again += sorted(sent & known)


def outcome(config: TranslateConfig) -> dict[str, tuple[str, int, str, str]]:
    return {entry.id: (entry.target, entry.number, entry.outcome, entry.code) for entry in entries_of(config)}


def kill_and_resume(folder: Path, seeds: int, kills: int) -> dict[str, Any]:
    """The counts of one journal killed `kills` times, after checking it against one that was never stopped."""
    write_seeds(folder / "seeds.parquet", seeds)
    with rule_server(0.25, FAULTS, seed=3) as server:
        config = config_of(server, folder / "seeds.parquet", folder / "whole")
        translate(config)
        expected, uninterrupted = outcome(config), sum(server.answered.values())
    killed, draw = Killed(), generator(0, "translate kills")
    with rule_server(0.25, FAULTS, seed=3) as server:
        config = config_of(server, folder / "seeds.parquet", folder / "killed")
        while killed.kills < kills:
            left = uninterrupted - len(entries_of(config))
            run_and_kill(config, server, int(draw.integers(1, max(2, 2 * left // (kills - killed.kills + 1)))), killed)
        run_and_kill(config, server, None, killed)
        paid, prompts = sum(server.answered.values()), len(server.answered)
    assert outcome(config) == expected
    assert killed.asked_again == []
    assert paid - prompts <= killed.kills * CONCURRENCY
    return {
        "seeds": seeds,
        "kills": killed.kills,
        "runs": killed.runs,
        "concurrency": CONCURRENCY,
        "torn_lines": killed.torn_lines,
        "rows_equal_to_an_uninterrupted_run": True,
        "translated": sum(found[2] == "ok" for found in expected.values()),
        "answers_of_an_uninterrupted_run": uninterrupted,
        "answers_paid": paid,
        "paid_twice_because_in_flight": paid - prompts,
        "in_flight_at_most": killed.kills * CONCURRENCY,
        "asked_again_although_in_the_journal": len(killed.asked_again),
        "injected_faults": dict(sorted((name, number) for name, number in server.injected.items() if name)),
    }


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def test_killed_once_and_resumed(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, seeds=60, kills=1)


@pytest.mark.soak
def test_killed_twenty_times_and_resumed(tmp_path: Path) -> None:
    began = time.monotonic()
    counts = kill_and_resume(tmp_path, seeds=400, kills=20)
    assert counts["kills"] == 20
    if "MOSE_KILLS_RESULT" in os.environ:
        hardware = f"{os.cpu_count()} CPU cores ({platform.machine()}), shared with other work"
        values = {"date": datetime.date.today().isoformat(), "hardware": hardware, "seed": 0, **counts}
        write_json(Path(os.environ["MOSE_KILLS_RESULT"]), {**values, "seconds": round(time.monotonic() - began)})

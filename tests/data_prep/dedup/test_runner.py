"""Covers whole runs: what is removed and why, and the same files whatever the tasks, workers, memory and interruptions."""

import dataclasses
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.dedup import candidates, cut, grouping, phase, runner, signatures, verification
from data_prep.dedup.config import DedupConfig, EvaluationConfig
from data_prep.dedup.phase import PHASES, Run
from data_prep.dedup.runner import deduplicate
from data_prep.execution.lease import Lease, TaskHeldError
from data_prep.sources.registry import SourcesConfig
from mose.config import save_config
from mose.errors import MoseError
from tests.data_prep.dedup.documents import changed, code, similarity
from tests.data_prep.dedup.runs import checksums, make_config, planted_rows, read_table


def test_what_is_removed_and_why(tmp_path: Path) -> None:
    config = make_config(tmp_path, chains="remove")
    report = deduplicate(config)
    rows = planted_rows()
    entries = {entry["id"]: entry for entry in read_table(config, "groups")}
    assert {number: entry["group"] for number, entry in entries.items()} == {
        **dict.fromkeys((0, 10, 20, 30), 0),
        **dict.fromkeys((5, 6, 7, 12), 5),
    }
    reasons = {number: entry["reason"] for number, entry in entries.items()}
    assert {n for n, reason in reasons.items() if reason == "kept"} == {0, 5}
    assert (reasons[6], reasons[12]) == ("exact_duplicate", "linked_duplicate")
    assert [reasons[n] for n in (7, 10, 20, 30)] == ["near_duplicate"] * 4
    for number in (10, 20, 30):
        entry = entries[number]
        assert entry["jaccard"] == similarity(rows[0]["a"], rows[number]["a"]) >= 0.7
        assert (entry["kept_id"], entry["column"], entry["kept"]) == (0, "a", False)
    assert entries[7]["column"] == "b" and entries[12]["jaccard"] < 0.7
    assert (entries[30]["file"], entries[30]["row"]) == (str(tmp_path / "two.parquet"), 7)
    assert read_table(config, "rows") == [row for row in rows if row["number"] not in (6, 7, 10, 12, 20, 30)]
    assert report is not None
    assert (report["rows"], report["kept"], report["removed"], report["groups"]) == (40, 34, 6, 2)
    assert report["phases"]["signatures"]["empty_texts"] == 2


@pytest.mark.parametrize("threshold", [0.55, 0.7, 0.85])
def test_groups_are_those_of_all_pairs(tmp_path: Path, threshold: float) -> None:
    """With bands that make a candidate of every similar pair, only the exact similarity decides."""
    texts = [changed(code(base, 80), words, words) for base in range(5) for words in (0, 2, 5, 8, 12, 18)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "texts.parquet")
    inputs = (str(tmp_path / "texts.parquet"),)
    config = DedupConfig(str(tmp_path / "out"), inputs, ("text",), threshold=threshold, bands=64, rows_per_band=4, num_tasks=2)
    report = deduplicate(config)
    expected, near = list(range(len(texts))), set[tuple[int, int]]()
    for first, second in itertools.combinations(range(len(texts)), 2):
        if similarity(texts[first], texts[second]) >= threshold:
            near |= {(first, second), (second, first)}
            joined = {expected[first], expected[second]}
            expected = [min(joined) if group in joined else group for group in expected]
    entries = {entry["id"]: entry for entry in read_table(config, "groups")}
    assert [entries[n]["group"] if n in entries else n for n in range(len(texts))] == expected
    kept = {n for n in range(len(texts)) if n not in entries or entries[n]["kept"]}
    assert not any((first, second) in near for first in kept for second in kept)
    removed = set(entries) - kept
    assert removed and all(entries[n]["kept_id"] in kept and (n, entries[n]["kept_id"]) in near for n in removed)
    assert report is not None and report["phases"]["verify"]["below_threshold"] > 0


def test_rows_linked_by_chains_stay(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    deduplicate(config)
    entries = {entry["id"]: entry for entry in read_table(config, "groups")}
    assert (entries[12]["reason"], entries[12]["kept"], entries[12]["kept_id"]) == ("kept", True, None)
    removed = {6, 7, 10, 20, 30}
    assert {row["number"] for row in read_table(config, "rows")} == set(range(40)) - removed


def test_the_longest_is_kept(tmp_path: Path) -> None:
    config = make_config(tmp_path, keep="longest")
    deduplicate(config)
    rows = planted_rows()
    longest = max((0, 10, 20, 30), key=lambda n: len(rows[n]["a"]) + len(rows[n]["b"]))
    assert [entry["id"] for entry in read_table(config, "groups") if entry["kept"] and entry["group"] == 0] == [longest]


@pytest.mark.parametrize("more", [{"num_tasks": 1}, {"num_tasks": 7}, {"method": "classic"}])
def test_the_result_does_not_depend_on_tasks_or_method(tmp_path: Path, more: dict[str, Any]) -> None:
    config, other = make_config(tmp_path), make_config(tmp_path, output=str(tmp_path / "other"), **more)
    deduplicate(config)
    deduplicate(other)
    assert read_table(config, "groups") == read_table(other, "groups")
    assert read_table(config, "rows") == read_table(other, "rows")


def test_little_memory_gives_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, other = make_config(tmp_path), make_config(tmp_path, output=str(tmp_path / "other"))
    deduplicate(config)
    monkeypatch.setattr(signatures, "_BYTES_PER_PAIR", 1 << 24)
    monkeypatch.setattr(signatures, "_BATCH_ROWS", 3)
    monkeypatch.setattr(candidates, "_PAIR_BYTES", 1 << 17)
    monkeypatch.setattr(verification.Similarities, "__init__", _small_cache)
    monkeypatch.setattr(verification, "_DECIDED_BYTES", 1 << 28)
    monkeypatch.setattr(grouping, "_BYTES_PER_EDGE", 1 << 28)
    monkeypatch.setattr(cut, "_BATCH_ROWS", 3)
    deduplicate(other)
    assert len(phase.Run(other, run_of(other).fingerprint).markers("signatures")[0].segments) > 1
    assert read_table(config, "groups") == read_table(other, "groups")


def _small_cache(self: verification.Similarities, texts: Any, memory_bytes: int) -> None:
    from collections import OrderedDict

    self._texts, self._memory_bytes, self._sets, self._held_bytes = texts, 1, OrderedDict(), 0


def run_of(config: DedupConfig) -> Run:
    """The run that `deduplicate` makes of a config."""
    return phase.run_of(config, runner.plan_inputs(config))


def test_worker_processes_and_an_array_write_the_same_files(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    deduplicate(config)
    expected = checksums(config)
    array = make_config(tmp_path, output=str(tmp_path / "array"))
    for name in PHASES:
        for task in [0] if name == "groups" else [2, 0, 1]:
            deduplicate(array, name, task)
    deduplicate(array)
    assert checksums(array) == expected
    # Starting processes costs seconds of import, so one phase stands for all: they share the pool.
    workers = make_config(tmp_path, output=str(tmp_path / "workers"), num_workers=2)
    deduplicate(workers, "signatures")
    deduplicate(dataclasses.replace(workers, num_workers=1))
    assert checksums(workers) == expected


def test_a_run_that_ends_anywhere_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted before and after the marker of each task in turn; the last run completes the same files."""
    config = make_config(tmp_path)
    deduplicate(config)
    expected = checksums(config)
    other = make_config(tmp_path, output=str(tmp_path / "other"))
    finish = Run.finish
    interrupted = 0
    for is_after in (False, True) * 13:

        def end(self: Run, *values: Any, is_after: bool = is_after) -> None:
            if is_after:
                finish(self, *values)
            raise KeyboardInterrupt

        monkeypatch.setattr(Run, "finish", end)
        try:
            deduplicate(other)
        except KeyboardInterrupt:
            interrupted += 1
    monkeypatch.setattr(Run, "finish", finish)
    deduplicate(other)
    assert interrupted == 26
    assert checksums(other) == expected


@pytest.mark.soak
def test_kills_at_random_moments(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    deduplicate(config)
    expected = checksums(config)
    other = make_config(tmp_path, output=str(tmp_path / "other"), num_workers=2)
    save_config(other, tmp_path / "dedup.yaml")
    command = [sys.executable, "-m", "data_prep.cli", "dedup", "--config", str(tmp_path / "dedup.yaml")]
    kills, generator = 0, random.Random(3)
    while kills < 20:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
        time.sleep(generator.uniform(0.5, 12))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        error = process.communicate()[1]
        if process.returncode == 0:
            assert checksums(other) == expected
            subprocess.run(["rm", "-r", other.output], check=True)
        else:
            assert process.returncode == -signal.SIGKILL, error
    subprocess.run(command, check=True)
    assert checksums(other) == expected


def test_evaluation_texts_remove_their_near_duplicates_only(tmp_path: Path) -> None:
    rows = planted_rows()
    (tmp_path / "set.jsonl").write_text(
        "".join(
            f'{{"code": "{text}", "id": "x"}}\n' for text in (changed(rows[10]["a"], 2), changed(rows[25]["b"], 1), code(5000))
        )
    )
    config = make_config(tmp_path, evaluation=EvaluationConfig((str(tmp_path / "set.jsonl"),), ("code",)))
    report = deduplicate(config)
    entries = {entry["id"]: entry for entry in read_table(config, "groups")}
    removed = {number: entry["evaluation"] for number, entry in entries.items() if entry["reason"] == "evaluation"}
    near = [n for n in (0, 10, 20, 30) if similarity(rows[n]["a"], changed(rows[10]["a"], 2)) >= 0.7]
    assert removed == {**dict.fromkeys(near, "set.jsonl example 0"), 25: "set.jsonl example 1"}
    assert entries[25]["jaccard"] == similarity(rows[25]["b"], changed(rows[25]["b"], 1))
    assert report is not None and report["phases"]["signatures"]["evaluation_texts"] == 3
    assert {row["number"] for row in read_table(config, "rows")}.isdisjoint(removed)
    assert report["rows"] == 40


def test_files_of_repositories(tmp_path: Path) -> None:
    texts = {"one/a.py": code(1), "one/b.py": code(2), "two/copy.py": changed(code(1), 3), "two/c.py": code(3), "two/d.bin": "\0"}
    for name, text in texts.items():
        (tmp_path / "all" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "all" / name).write_text(text.replace(" ", "\n"))
    config = DedupConfig(output=str(tmp_path / "out"), sources=SourcesConfig(directories=(str(tmp_path / "all"),)), num_tasks=2)
    report = deduplicate(config)
    assert report is not None and (report["rows"], report["removed"]) == (4, 1)
    kept, removed = read_table(config, "groups")
    assert (kept["file"], kept["path"], kept["kept"]) == ("one", "/a.py", True)
    assert (removed["file"], removed["path"], removed["reason"]) == ("two", "/copy.py", "near_duplicate")
    assert len(removed["blob_id"]) == 40


def test_an_incomplete_phase_and_a_held_task_are_named(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    deduplicate(config, "signatures", 1)
    with pytest.raises(MoseError, match="signatures: 2 of 3 tasks have not finished.*--phase signatures --array=0,2$"):
        deduplicate(config, "bands", 0)
    with Lease(run_of(config).folder("signatures"), 0), pytest.raises(TaskHeldError, match="task 0: process"):
        deduplicate(config, "signatures", 0)
    with pytest.raises(MoseError, match="task: is 3, expected 0 to 2 in the phase cut"):
        deduplicate(config, "cut", 3)
    with pytest.raises(MoseError, match="task: is 0 without a phase; expected --phase, one of signatures, "):
        deduplicate(config, None, 0)


def test_planted_damage(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    deduplicate(config)
    expected, run = checksums(config), run_of(config)
    # A file of another size than its marker says: its task runs again.
    pairs = run.part("bands", 1, "pairs")
    pairs.write_bytes(pairs.read_bytes()[:-8])
    (Path(config.output) / "groups" / "part-000002.parquet").unlink()
    deduplicate(config)
    assert checksums(config) == expected
    texts = run.part("signatures", 0, "texts")
    texts.write_bytes(bytes([255]) * texts.stat().st_size)
    for name in ("verify", "groups", "cut"):
        for marker in (run.folder(name) / "tasks").glob("*.json"):
            marker.unlink()
    with pytest.raises(MoseError, match=r"part-000000.texts: document \d+ cannot be read: .*; remove the marker of task 0"):
        deduplicate(config)
    assert "cannot be read" in (run.folder("verify") / "tasks" / "task-000000.failed.json").read_text()
    (run.folder("signatures") / "tasks" / "task-000000.json").write_text("{}")
    with pytest.raises(MoseError, match="task-000000.json: not a marker of a finished task: task: missing; remove it"):
        deduplicate(config)


def test_another_run_is_refused(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    deduplicate(config)
    before = checksums(config)
    with pytest.raises(MoseError, match=r"config.yaml: threshold: is 0.7 there, 0.8 was asked for; expected the same, or"):
        deduplicate(make_config(tmp_path, threshold=0.8))
    rows = planted_rows()
    rows[0]["a"] = "other"
    from tests.data_prep.dedup.runs import write_inputs

    write_inputs(tmp_path, rows)
    with pytest.raises(MoseError, match=r"task-000000.json: is of another run \(.*\); expected another output"):
        deduplicate(config)
    assert checksums(config) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(MoseError, match="full: output: holds files but no config.yaml; expected a new folder or"):
        deduplicate(make_config(tmp_path, output=str(tmp_path / "full")))

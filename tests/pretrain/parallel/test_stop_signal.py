"""Covers SIGUSR1 and SIGTERM: finish the step, save, exit 75; the resumed run ends with the undisturbed run's bytes.

The runs skip steps as outliers on the way, so that what decides about those is seen to survive the stop, too. Also what a run
leaves about skipped steps, that it gives up after too many, and that `mose-pretrain rows` names the rows that were logged.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from mose.command import DIVERGED, STOPPED
from mose.config import load_config, save_config
from mose.run_directory import RunDirectory
from pretrain.checkpoints.files import checkpoint_folders, read_checkpoint_manifest, step_of
from pretrain.config.run import PretrainConfig
from pretrain.parallel.stop_signal import StopSignal
from tests.commands import environment, launcher_line, run_well
from tests.pretrain.cells import GLOBAL_ROWS, loader_of, tiny_config
from tests.pretrain.forked import ACCUMULATION, Trouble, refuses, run_forked, succeeds
from tests.pretrain.test_kills import assert_same_end, words

# Every loss above the running mean is then an outlier; at so low a rate the loss only varies, so there are some.
SLOW = ("--schedule.peak_learning_rate", 1e-6)
TOUCHY = (*SLOW, "--stability.loss_outlier_sigmas", 1e-9, "--stability.warmup_steps", 2, "--stability.max_skipped_in_a_row")
MICRO_BATCHES = 4


def saved_steps(output: Path) -> list[int]:
    return [step_of(path) for path in checkpoint_folders(RunDirectory(output).checkpoints)]


def skipped_lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in RunDirectory(output).skipped.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def config(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("signal") / "config.yaml"
    save_config(tiny_config(dataset, micro_batch_rows=GLOBAL_ROWS // MICRO_BATCHES), path)
    return path


def test_stopped_in_the_middle_of_accumulation_and_resumed_ends_with_the_same_bytes(config: Path, tmp_path: Path) -> None:
    calm, stopped = tmp_path / "calm", tmp_path / "stopped"
    succeeds(*words(config, calm, 10), *TOUCHY, 0)
    loader = loader_of(load_config(PretrainConfig, config), 0, 1)
    micro_batches = [len(loader.share(step * GLOBAL_ROWS)) for step in range(5)]
    assert micro_batches[4] > 2
    trouble = Trouble(ACCUMULATION, passing=sum(micro_batches[:4]) + 2, signal=signal.SIGUSR1)
    outcome = run_forked(*words(config, stopped, 10), *TOUCHY, 0, trouble=trouble)
    assert outcome.code == STOPPED, outcome.output[-2000:]
    assert "stopped by a signal after step 5" in outcome.output
    assert saved_steps(stopped)[-1] == 5
    succeeds(*words(config, stopped, 10), *TOUCHY, 0)
    assert_same_end(calm, stopped)
    skipped = skipped_lines(calm)
    assert skipped_lines(stopped) == skipped
    assert {line["step"] > 5 for line in skipped} == {True, False}


def test_a_run_gives_up_after_too_many_skipped_steps_and_tells_their_rows(config: Path, tmp_path: Path) -> None:
    outcome = run_forked(*words(config, tmp_path, 20), *TOUCHY, 2)
    assert outcome.code == DIVERGED, outcome.output[-2000:]
    skipped = skipped_lines(tmp_path)
    last = skipped[-1]
    assert [line["step"] for line in skipped[-2:]] == [last["step"] - 1, last["step"]]
    assert (last["reason"], last["skipped"], last["gradient_norm"]) == ("loss outlier", True, None)
    assert last["loss"] > last["loss_mean"]
    assert f"step {last['step']}: 2 steps in a row were skipped" in outcome.output
    assert saved_steps(tmp_path)[-1] < last["step"]
    # No checkpoint lies inside a streak, and the newest is the state before the last one: the same rows are offered again.
    states = [read_checkpoint_manifest(path)["progress"] for path in checkpoint_folders(RunDirectory(tmp_path).checkpoints)]
    assert {state["health"]["skipped_in_a_row"] for state in states} == {0}
    assert states[-1]["step"] == last["step"] - 2
    assert run_forked(*words(config, tmp_path, 20), *TOUCHY, 2).code == DIVERGED
    assert skipped_lines(tmp_path) == skipped
    listed = succeeds("rows", tmp_path, "--step", last["step"]).splitlines()
    rows = {int(line.split("\t")[0]) for line in listed if not line.startswith("#")}
    assert len(rows) == GLOBAL_ROWS
    # Emptied rows take part in no step.
    assert set(last["rows_by_data_rank"][0]) == rows - {3, 50}
    assert "expected 1 to 20" in refuses("rows", tmp_path, "--step", 21)


def test_a_signal_only_sets_a_flag_inside_the_block() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    with StopSignal() as stop:
        assert not stop.requested
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR1)
        assert stop.requested
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


def test_ctrl_c_asks_once_and_ends_the_process_the_second_time() -> None:
    code = "\n".join(
        [
            "import os, signal",
            "from pretrain.parallel.stop_signal import StopSignal",
            # As in a terminal, also where the tests run under nohup or in the background.
            "signal.signal(signal.SIGHUP, signal.SIG_DFL)",
            "signal.signal(signal.SIGINT, signal.default_int_handler)",
            "with StopSignal() as stop:",
            "    os.kill(os.getpid(), signal.SIGHUP)",
            "    print(stop.requested)",
            "    os.kill(os.getpid(), signal.SIGINT)",
            "    print(stop.reason, flush=True)",
            "    os.kill(os.getpid(), signal.SIGINT)",
            "    print('still here')",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == -signal.SIGINT
    assert done.stdout.splitlines() == ["True", "by a signal"]
    assert done.stderr == "Ctrl-C: this step is finished and a checkpoint saved; again: ends at once\n"


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.soak
def test_one_of_two_ranks_is_told_and_the_launcher_ends_with_75(config: Path, tmp_path: Path) -> None:
    calm, stopped = tmp_path / "calm", tmp_path / "stopped"
    run_well(launcher_line(2, *words(config, calm, 30)))
    process = subprocess.Popen(
        launcher_line(2, *words(config, stopped, 30)), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not RunDirectory(stopped).read_metrics() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    ranks = [child for child in psutil.Process(process.pid).children(recursive=True) if "pretrain.cli" in child.cmdline()]
    second = next(child for child in ranks if child.environ().get("RANK") == "1" and "train" in child.cmdline())
    second.send_signal(signal.SIGUSR1)
    assert process.wait(240) == STOPPED
    assert 0 < saved_steps(stopped)[-1] < 30
    run_well(launcher_line(2, *words(config, stopped, 30)))
    assert_same_end(calm, stopped)

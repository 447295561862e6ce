"""A run's own records: metrics.jsonl, TensorBoard's two x-axes and its purge on resume, the console line, the picture."""

import io
import math
from pathlib import Path

import pytest
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mose.errors import MoseError
from mose.run_directory import RunDirectory
from pretrain.analysis.plot import exit_layers, plot_losses
from pretrain.monitoring.metrics import BY_TOKENS, TIMING_KEYS, MetricWriter, console_line

VALUES = {
    "loss/total": 3.9123,
    "loss/exit_01/mlm": 4.5,
    "loss/exit_01/icc": 0.6931,
    "loss/exit_04/mlm": 3.25,
    "loss/exit_04/icc": 0.5,
    "accuracy/exit_04/mlm": 0.4,
    "optimizer/learning_rate": 6e-4,
    "optimizer/gradient_norm": 1.234,
    "throughput/tokens_per_second_per_device": 1234.4,
    "throughput/data_wait_fraction": 0.0012,
}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    return directory


def write_steps(run: RunDirectory, first: int, last: int, scale: float = 1.0, resume: bool = False) -> str:
    stream = io.StringIO()
    done = first - 1 if resume else 0
    with MetricWriter(run, 300, done, 1000 * done, stream) as writer:
        for step in range(first, last + 1):
            writer.write(step, 1000 * step, {**VALUES, "loss/total": scale / step})
            writer.advance(step)
    return stream.getvalue()


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_console_line_of_training() -> None:
    assert console_line(20, 300, VALUES) == (
        "step 20/300 loss 3.912 exit_01 4.500/0.693 exit_04 3.250/0.500 lr 6.0e-04 norm 1.23 tok/s 1,234 wait 0.1%"
    )


def test_console_line_of_validation() -> None:
    values = {"validation/loss/exit_04/mlm": 3.5, "validation/loss/exit_04/icc": 0.7, "validation/accuracy/exit_04/mlm": 0.1}
    assert console_line(20, 300, values) == "step 20/300 validation exit_04 3.500/0.700"


def test_one_line_an_interval_where_there_is_no_terminal(run: RunDirectory) -> None:
    printed = write_steps(run, 1, 3).splitlines()
    assert [line.split()[1] for line in printed] == ["1/300", "2/300", "3/300"]
    assert "\x1b" not in "".join(printed)


def test_a_note_ends_the_console_line_and_is_kept_nowhere(run: RunDirectory) -> None:
    stream = io.StringIO()
    with MetricWriter(run, 300, stream=stream) as writer:
        writer.write(1, 1000, VALUES, "straggler rank 3 (node01) 1.45x")
    assert stream.getvalue() == f"{console_line(1, 300, VALUES)} straggler rank 3 (node01) 1.45x\n"
    assert "straggler" not in run.metrics.read_text()


def test_a_terminal_gets_a_bar_and_the_same_lines(run: RunDirectory) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with MetricWriter(run, 300, stream=stream) as writer:
        writer.write(1, 1000, VALUES)
        writer.advance(150)
    assert "150/300" in stream.getvalue()
    assert console_line(1, 300, VALUES) in stream.getvalue()


def test_metrics_hold_every_scalar_under_its_name(run: RunDirectory) -> None:
    write_steps(run, 1, 1)
    (line,) = run.read_metrics()
    assert line == {"step": 1, "consumed_tokens": 1000, **VALUES, "loss/total": 1.0}


def test_without_timing_two_runs_are_bit_equal(run: RunDirectory, tmp_path: Path) -> None:
    other = RunDirectory(tmp_path / "other")
    other.create()
    for directory, rate in ((run, 10.0), (other, 20.0)):
        with MetricWriter(directory, 5, stream=io.StringIO()) as writer:
            writer.write(1, 10, {**VALUES, "throughput/tokens_per_second_per_device": rate, "memory/peak_gib": rate})
    lines = [directory.read_metrics()[0] for directory in (run, other)]
    assert lines[0] != lines[1]
    stripped = [{name: value for name, value in line.items() if name not in TIMING_KEYS} for line in lines]
    assert stripped[0] == stripped[1]


def test_tensorboard_has_both_axes(run: RunDirectory) -> None:
    write_steps(run, 1, 3)
    assert [step for step, _ in scalars(run.tensorboard, "loss/total")] == [1, 2, 3]
    by_tokens = scalars(run.tensorboard / BY_TOKENS, "by_tokens/loss/total")
    assert [step for step, _ in by_tokens] == [1000, 2000, 3000]
    assert math.isclose(by_tokens[1][1], 0.5)


def test_resume_replaces_what_was_written_after_the_checkpoint(run: RunDirectory) -> None:
    write_steps(run, 1, 6)
    write_steps(run, 4, 8, scale=2.0, resume=True)
    lines = run.read_metrics()
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["loss/total"] for line in lines[2:5]] == [1 / 3, 2 / 4, 2 / 5]
    for folder, tag, unit in ((run.tensorboard, "loss/total", 1), (run.tensorboard / BY_TOKENS, "by_tokens/loss/total", 1000)):
        points = scalars(folder, tag)
        assert [step for step, _ in points] == [unit * step for step in range(1, 9)]
        assert math.isclose(points[4][1], 2 / 5, rel_tol=1e-6)


def test_picture_of_a_run(run: RunDirectory, tmp_path: Path) -> None:
    write_steps(run, 1, 5)
    run.append_metrics({"step": 5, "validation/loss/exit_01/mlm": 4.0, "validation/loss/exit_01/icc": 0.7})
    run.append_metrics({"step": 6, "loss/exit_01/mlm": math.nan})
    assert exit_layers(run.read_metrics()) == [1, 4]
    plot_losses(run, tmp_path / "losses.png")
    picture = imread(tmp_path / "losses.png")
    assert picture.shape[0] > 500
    assert picture[..., :3].std() > 0.05


def test_picture_of_a_run_without_losses_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(MoseError, match=r"metrics\.jsonl: no line with a loss of an exit"):
        plot_losses(run, tmp_path / "losses.png")
    assert not (tmp_path / "losses.png").exists()

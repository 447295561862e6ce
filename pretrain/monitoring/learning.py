"""Warns when a run does not learn: masked tokens stay at the unigram level, a task stays at chance or fits the training
repositories alone, or steps are too large.

Letters: V vocabulary.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mose.array_types import INT64_ARRAY
from mose.run_directory import VALIDATION, exit_scalar
from pretrain.config.objective import NONE
from pretrain.config.run import PretrainConfig
from pretrain.data.micro_batch import MicroBatch
from pretrain.model.terms.registry import COLUMNS
from pretrain.step import StepResult

UPDATE_RATIO = "optimizer/update_ratio/"
# Nats below the unigram entropy from which masked tokens count as predicted from their neighbours.
UNIGRAM_MARGIN = 0.1
# Rows after the warm-up from which the accuracy of the task on whole rows is judged: its interval is then +-2.2 points wide.
ROWS_TO_JUDGE = 2000
# Steps in a row that must all be clipped, and the share by which one step may change a group's weights, after the warm-up.
CLIPPED_STEPS, LARGEST_RATIO = 20, 0.03
# Nats above a coin's loss from which the task counts as fitted to the training repositories: more than 128 rows vary by chance.
HELD_OUT_MARGIN = 0.05
# Sampled values per weight matrix: a sample of a 1B-parameter model takes about 4 MB, so that reading it costs next to nothing.
_VALUES_PER_WEIGHT = 4096
_NORMAL_QUANTILE = 1.959964


def unigram_entropy(counts_V: INT64_ARRAY) -> float:
    """Nats per token of a text with these counts, with the correction of Miller (1955) for few tokens; 0 without any."""
    total = int(counts_V.sum())
    if not total:
        return 0.0
    present = counts_V[counts_V > 0]
    return float(-(present * np.log(present / total)).sum() / total) + (len(present) - 1) / (2 * total)


def layer_groups(names: Sequence[str], exit_layers: Sequence[int]) -> dict[str, str]:
    """The group of each parameter: embedding, heads, or the exit that its layer leads to, e.g. `exit_04`."""
    groups = {}
    for name in names:
        if ".layers." in name:
            layer = int(name.split(".layers.")[1].split(".")[0]) + 1
            groups[name] = f"exit_{next(end for end in exit_layers if layer <= end):02d}"
        else:
            groups[name] = "embedding" if "embed_tokens" in name else "heads"
    return groups


class UpdateRatios:
    """RMS of one step's change over RMS of the weights, for each layer group, from some values of each matrix of this rank.

    Weights are read as the model holds them: in bf16 a change below their rounding (.2-.4 %) looks larger than it is.
    """

    def __init__(self, module: nn.Module, exit_layers: Sequence[int]):
        """Watch the matrices of `module`; under ZeRO 3 this rank's parts of them."""
        matrices = {name: p for name, p in module.named_parameters() if len(getattr(p, "ds_shape", p.shape)) > 1}
        self._matrices, self._groups = matrices, layer_groups(list(matrices), exit_layers)
        self._before: dict[str, Tensor] | None = None

    @torch.no_grad()
    def remember(self) -> None:
        """Call it before a step whose change is to be measured."""
        self._before = {name: _some_values(parameter) for name, parameter in self._matrices.items()}

    @torch.no_grad()
    def read(self) -> dict[str, float]:
        """The scalars of the step since `remember`; none without it."""
        before, self._before = self._before, None
        if before is None:
            return {}
        squares: dict[str, Tensor] = {}
        for name, parameter in self._matrices.items():
            now = _some_values(parameter)
            pair = torch.stack(((now - before[name]).square().sum(), now.square().sum()))
            squares[self._groups[name]] = squares.get(self._groups[name], 0) + pair
        found = {group: pair.tolist() for group, pair in squares.items()}
        return {UPDATE_RATIO + group: math.sqrt(moved / whole) for group, (moved, whole) in found.items() if whole > 0}


def _some_values(parameter: nn.Parameter) -> Tensor:
    values: Tensor = getattr(parameter, "ds_tensor", parameter).detach().flatten()
    stride = max(1, values.numel() // _VALUES_PER_WEIGHT)
    return values[::stride].float().clone()


@dataclass
class _TaskRows:
    """The task on whole rows since the warm-up, or since it was judged; labels are those of this rank's rows."""

    rows: int = 0
    correct: float = 0.0
    labelled: int = 0
    mixed: int = 0

    def add(self, rows: int, correct: float, batches: Sequence[MicroBatch]) -> None:
        labels = [label for batch in batches for label in batch.mixed_B.tolist() if label >= 0]
        self.rows, self.correct = self.rows + rows, self.correct + correct
        self.labelled, self.mixed = self.labelled + len(labels), self.mixed + sum(labels)

    @property
    def chance(self) -> float:
        """The share of the more frequent label."""
        share = self.mixed / max(self.labelled, 1)
        return max(share, 1 - share)


@dataclass
class _Window:
    """Sums over steps since it was emptied."""

    steps: int = 0
    mlm: float = 0.0
    clipped: int = 0

    def add(self, mlm: float, clipped: bool) -> None:
        self.steps, self.mlm, self.clipped = self.steps + 1, self.mlm + mlm, self.clipped + clipped


class LearningWatch:
    """Rank 0's sums over steps and the warnings from them; the state is not saved, so that a resumed run starts from zero."""

    def __init__(self, config: PretrainConfig, module: nn.Module, is_main: bool = True):
        """Watch the run of a resolved `config` over this rank's `module`; only the main rank does anything."""
        self._config, self._is_main = config, is_main
        self._ratios = UpdateRatios(module, config.model.exit_layers)
        self._counts_V: INT64_ARRAY = np.zeros(config.model.vocabulary_size, dtype=np.int64)
        self._window, self._task = _Window(), _TaskRows()
        self._printed: set[str] = set()

    def before(self, is_logged: bool) -> None:
        """Call it before a step, with whether it ends an interval of the log."""
        if is_logged and self._is_main:
            self._ratios.remember()

    def add(self, step: int, result: StepResult, batches: Sequence[MicroBatch]) -> None:
        """Add the result of a step, after which `step` steps are done; a skipped step counts nothing."""
        if result.skipped or not self._is_main:
            return
        for batch in batches:
            self._counts_V += np.bincount(batch.labels_M.cpu().numpy(), minlength=len(self._counts_V))
        deepest = dict(zip(COLUMNS, result.sums[-1].tolist(), strict=True))
        clipping = self._config.optimizer.gradient_clipping
        self._window.add(deepest["mlm"] / result.denominators.masked_tokens, 0 < clipping < result.gradient_norm)
        if step > self._config.schedule.warmup_steps:
            self._task.add(result.denominators.rows, deepest["task_correct"], batches)

    def read(self, step: int) -> dict[str, float]:
        """The scalars of the last step; prints the warnings on standard error."""
        ratios = self._ratios.read()
        for line in self.lines(step, ratios):
            print(f"step {step}: {line}", file=sys.stderr, flush=True)
        return ratios

    def read_validation(self, step: int, values: Mapping[str, float]) -> None:
        """Print the warning about the scalars of a validation on standard error: once, and again at the end of the run."""
        task = self._config.objective.sequence_task
        loss = values.get(VALIDATION + exit_scalar("loss", self._config.model.exit_layers[-1], task))
        line = fitted_task_warning(task, loss) if loss is not None and self._is_main else ""
        if line and ("held_out" not in self._printed or step >= self._config.max_steps):
            self._printed.add("held_out")
            print(f"step {step}: {line}", file=sys.stderr, flush=True)

    def lines(self, step: int, ratios: Mapping[str, float]) -> list[str]:
        """The warnings after `step` steps: each kind once, and again at the end of the run."""
        window, last = self._window, step >= self._config.max_steps
        if step <= self._config.schedule.warmup_steps or not window.steps:
            return []
        lines = {"mlm": self._masked_tokens(window), "task": self._whole_rows(last), "ratio": large_steps_warning(ratios)}
        if window.steps >= CLIPPED_STEPS or last:
            lines["clipping"] = self._clipping(window)
            self._window = _Window()
        fresh = {kind: line for kind, line in lines.items() if line and (last or kind not in self._printed)}
        self._printed |= fresh.keys()
        return list(fresh.values())

    def _masked_tokens(self, window: _Window) -> str:
        return masked_tokens_warning(window.mlm / window.steps, unigram_entropy(self._counts_V))

    def _whole_rows(self, last: bool) -> str:
        task, rows, name = self._task, self._task.rows, self._config.objective.sequence_task
        if name == NONE or not rows or (rows < ROWS_TO_JUDGE and not last):
            return ""
        # At the end the rows since the last look may be few: those before it count, too.
        self._task = _TaskRows() if rows >= 2 * ROWS_TO_JUDGE else task
        return task_warning(name, task.correct / rows, rows, task.chance)

    def _clipping(self, window: _Window) -> str:
        return clipping_warning(window.clipped, window.steps, self._config.optimizer.gradient_clipping)


def masked_tokens_warning(loss: float, level: float) -> str:
    """What to look at where masked tokens are not predicted better than by their frequencies (`level`, nats); else empty."""
    if loss < level - UNIGRAM_MARGIN:
        return ""
    return (
        f"not learnt: masked tokens at {loss:.2f} nats, token frequencies alone give {level:.2f} (unigram entropy); look at "
        f"schedule.peak_learning_rate, optimizer.vocabulary_learning_rate_factor, model.initializer_range and {UPDATE_RATIO}*"
    )


def half_interval(rows: int) -> float:
    """Half of the 95 % interval of an accuracy near one half over so many rows."""
    return _NORMAL_QUANTILE * 0.5 / math.sqrt(rows)


def task_warning(name: str, accuracy: float, rows: int, chance: float) -> str:
    """What to look at where the task on whole rows is not above `chance`, the share of the more frequent label; else empty."""
    half = half_interval(rows)
    if accuracy - half > chance:
        return ""
    return (
        f"not learnt: {name} accuracy {accuracy:.3f} +- {half:.3f} over {rows:,} rows, chance is {chance:.3f}; look at "
        "the row length and how many chunks a row has (packing.*), objective.task_weight, and the rows still to come"
    )


def fitted_task_warning(name: str, held_out_loss: float) -> str:
    """What to look at where the task on whole rows is predicted worse than by a coin on held-out rows; else empty."""
    coin = math.log(2)
    if held_out_loss <= coin + HELD_OUT_MARGIN:
        return ""
    return (
        f"fitted, not learnt: {name} loss {held_out_loss:.2f} nats on held-out rows, a coin has {coin:.2f}; the training "
        "repositories are too few to distinguish new ones; look at `mose-data stats` and objective.task_weight"
    )


def clipping_warning(clipped: int, steps: int, limit: float) -> str:
    """What to look at where each of `steps` steps was clipped at `limit`; else empty."""
    if clipped < steps:
        return ""
    return (
        f"clipped at each of {steps} steps: the gradient norm never fell below optimizer.gradient_clipping {limit:g}; "
        "look at optimizer/gradient_norm: rare peaks are what it is for"
    )


def large_steps_warning(ratios: Mapping[str, float]) -> str:
    """What to look at where one step changes the weights of a group by too large a share; else empty."""
    name, ratio = max(ratios.items(), key=lambda item: item[1], default=("", 0.0))
    if ratio <= LARGEST_RATIO:
        return ""
    return (
        f"large steps: one step changes the weights of {name.removeprefix(UPDATE_RATIO)} by {ratio:.1%}; look at "
        f"schedule.peak_learning_rate (0 takes one that fits the width) and {UPDATE_RATIO}*"
    )

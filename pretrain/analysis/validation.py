"""Held-out losses and accuracies of every exit, over all data ranks.

Letters: E exits, C columns of sums.
"""

from collections.abc import Iterable, Sequence

import torch

from mose.run_directory import VALIDATION
from pretrain.config.objective import PAPER, ObjectiveConfig
from pretrain.data.micro_batch import MicroBatch
from pretrain.model.terms.registry import COLUMNS
from pretrain.model.terms.term import Denominators
from pretrain.parallel.context import ParallelContext
from pretrain.parallel.engine import Engine
from pretrain.step import exit_metrics

# The sums do not depend on the denominators; the forward pass also returns a share of the loss, which is not used here.
UNIT = Denominators(1, 1)


@torch.no_grad()
def validate(
    engine: Engine,
    batches: Iterable[MicroBatch],
    exit_layers: Sequence[int],
    context: ParallelContext,
    objective: ObjectiveConfig = PAPER,
) -> dict[str, float]:
    """Mean loss and accuracy of each exit, named `validation/loss/exit_04/mlm` and so on; every rank calls it.

    Each data rank must have the same number of micro-batches, since tensor and ZeRO 3 ranks communicate in every forward pass.
    """
    engine.train(False)
    totals = torch.zeros(len(exit_layers) * len(COLUMNS) + 2, dtype=torch.float64, device=context.device)
    for batch in batches:
        _, sums = engine(batch.to(context.device), UNIT)
        totals[:-2] += sums.flatten()
        totals[-2] += batch.num_masked
        totals[-1] += batch.num_rows
    engine.train(True)
    *_, masked, rows = context.sum_over_data(totals).tolist()
    sums_EC = totals[:-2].view(len(exit_layers), len(COLUMNS)).cpu()
    return exit_metrics(sums_EC, Denominators(int(masked), int(rows)), exit_layers, objective, VALIDATION)

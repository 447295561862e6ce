"""skipped.jsonl: one line per step that went wrong, with the rows and the loss of each data rank."""

from collections.abc import Sequence

from mose.run_directory import RunDirectory, finite_or_none
from pretrain.checkpoints.run_state import Health
from pretrain.data.micro_batch import MicroBatch
from pretrain.parallel.context import ParallelContext
from pretrain.step import StepResult


def log_step(
    run: RunDirectory,
    step: int,
    reason: str,
    result: StepResult,
    batches: Sequence[MicroBatch],
    before: Health,
    context: ParallelContext,
) -> None:
    """Append one line about step number `step` (counted from 1); every rank calls it, rank 0 writes.

    `rows_by_data_rank` are row numbers of the training split (of a mixture: of its concatenated sources); the loss of each data
    rank shows where a value that is not finite came from. `mose-pretrain rows` gives the same rows as a list that
    `mose-data lineage` reads.
    """
    own = (context.data_rank, context.tensor_rank, row_numbers(batches), result.own_loss)
    parts = sorted(part for part in context.gather(own) if part[1] == 0)
    if context.is_main:
        line = {
            "step": step,
            "reason": reason,
            "skipped": result.skipped,
            "loss": result.loss,
            "loss_mean": before.loss.mean,
            "loss_deviation": before.loss.deviation,
            "gradient_norm": result.gradient_norm,
            "gradient_norm_mean": before.norm.mean,
            "gradient_norm_deviation": before.norm.deviation,
            "loss_by_data_rank": [finite_or_none(loss) for _, _, _, loss in parts],
            "rows_by_data_rank": [rows for _, _, rows, _ in parts],
        }
        run.append_skipped(line)


def row_numbers(batches: Sequence[MicroBatch]) -> list[int]:
    """The row numbers of micro-batches, without placeholders."""
    return [row for batch in batches for row in batch.row_numbers_B.tolist() if row >= 0]

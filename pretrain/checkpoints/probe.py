"""Two fixed rows whose exit states are stored with every checkpoint, so that an export can be compared with the live model."""

import torch
from torch import Tensor

from mose.seeding import generator
from pretrain.config.run import PretrainConfig
from pretrain.data.micro_batch import MicroBatch
from pretrain.parallel.context import ParallelContext
from pretrain.parallel.engine import Engine

PROBE_LENGTHS = (48, 17)


def probe_batch(vocabulary_size: int, max_length: int) -> MicroBatch:
    """Two rows of random tokens, unpadded, nothing masked; the same for every run with this vocabulary."""
    lengths = [min(length, max_length) for length in PROBE_LENGTHS]
    ids = generator("probe", vocabulary_size).integers(0, vocabulary_size, sum(lengths))
    positions = torch.cat([torch.arange(length) for length in lengths])
    bounds = torch.tensor([0, lengths[0], sum(lengths)], dtype=torch.int32)
    nothing, rows = torch.zeros(0, dtype=torch.int64), torch.zeros(len(lengths), dtype=torch.int64)
    return MicroBatch(
        input_ids_N=torch.from_numpy(ids),
        positions_N=positions,
        cu_seqlens=bounds,
        max_length=max(lengths),
        masked_N_indices=nothing,
        labels_M=nothing,
        mixed_B=rows,
        row_numbers_B=rows,
        padded_slots=0,
    )


@torch.no_grad()
def run_probe(engine: Engine, config: PretrainConfig, context: ParallelContext) -> dict[str, Tensor]:
    """Inputs and exit states of the probe rows in evaluation mode, on the CPU; every rank calls it."""
    batch = probe_batch(config.model.vocabulary_size, config.model.max_length)
    engine.train(False)
    states = engine(batch.to(context.device), None)
    engine.train(True)
    tensors = {"input_ids_N": batch.input_ids_N, "positions_N": batch.positions_N, "cu_seqlens": batch.cu_seqlens}
    tensors |= {f"exit_{layer:02d}": state.float().cpu() for layer, state in zip(config.model.exit_layers, states, strict=True)}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}

"""Which raw DeepSpeed options a config may pass through, and why it may not pass the others.

DeepSpeed ignores names that it does not know, so that a misspelt option would silently do nothing: names are checked here,
before any rank starts.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from mose.config import require

ZERO = "zero_optimization"
# Options that only look or tidy up: no number depends on them.
WITHOUT_EFFECT_ON_NUMBERS: dict[str, type] = {
    "comms_logger": dict,
    "flops_profiler": dict,
    "wall_clock_breakdown": bool,
    "memory_breakdown": bool,
    "dump_state": bool,
    "disable_python_gc": bool,
    "steps_per_print": int,
    "timers": dict,
}
# How gradients and parameters travel: sums in another order at most. deepspeed/runtime/zero/config.py
ZERO_OPTIONS: dict[str, type] = {
    "overlap_comm": bool,
    "contiguous_gradients": bool,
    "reduce_scatter": bool,
    "reduce_bucket_size": int,
    "use_multi_rank_bucket_allreduce": bool,
    "allgather_partitions": bool,
    "allgather_bucket_size": int,
    "sub_group_size": int,
    "memory_efficient_linear": bool,
    "log_trace_cache_warnings": bool,
    "enable_sanity_checks": bool,
    "stage3_prefetch_bucket_size": int,
    "stage3_param_persistence_threshold": int,
    "stage3_model_persistence_threshold": int,
    "stage3_max_live_parameters": int,
    "stage3_max_reuse_distance": int,
    "stage3_module_granularity_threshold": int,
    "stage3_use_all_reduce_for_fetch_params": bool,
}
_LAYOUT = "the config lays the run out: parallel.*"
_ROWS = "the data path decides which rows are read, and when: data.*"
_PRECISION = "the config decides it: parallel.precision"
_OTHER_MODEL = "it would train another model than the config describes"
_SCALE = "the loss is scaled for a plain mean over data ranks"
_SET_BY_US = "the engine sets it"
_CHECKPOINTS = "checkpoints would hold a state that no other layout can read"
# Options that DeepSpeed knows and that contradict what the config says elsewhere, by dotted name.
REFUSED: dict[str, str] = {
    "train_batch_size": "the config decides it: batch.global_rows",
    "train_micro_batch_size_per_gpu": "the config decides it: batch.micro_batch_rows, batch.micro_batch_tokens",
    "gradient_accumulation_steps": "ranks have as many micro-batches as their rows need",
    "managed_gradient_accumulation": "the engine says which micro-batch is the last, and then communication can overlap",
    "gradient_clipping": "the config decides it: optimizer.gradient_clipping",
    "optimizer": "the config decides it: optimizer.*",
    "scheduler": "the learning rate is a function of the step: schedule.*",
    "bf16": _PRECISION,
    "bfloat16": _PRECISION,
    "fp16": _PRECISION,
    "amp": _PRECISION,
    "torch_autocast": _PRECISION,
    "communication_data_type": "the config decides it: parallel.gradient_communication",
    "data_types": "DeepSpeed would take another optimiser class, whose checkpoints are not read here",
    "gradient_allreduce_op": _SCALE,
    "prescale_gradients": _SCALE,
    "gradient_predivide_factor": _SCALE,
    "zero_allow_untested_optimizer": _SET_BY_US,
    "zero_force_ds_cpu_optimizer": _SET_BY_US,
    "checkpoint": "the run's own checkpoints set it when it resumes",
    "activation_checkpointing": "the model's layers are checkpointed by the model",
    "compile": "the model is compiled by its own option, if at all",
    "sequence_parallel_size": _LAYOUT,
    "tensor_parallel": _LAYOUT,
    "expert_parallel": _LAYOUT,
    "pipeline": _LAYOUT,
    "elasticity": "a run resumes at any number of ranks without it",
    "data_efficiency": _ROWS,
    "curriculum_learning": _ROWS,
    "dataloader_drop_last": _ROWS,
    "sparse_gradients": _OTHER_MODEL,
    "sparse_attention": _OTHER_MODEL,
    "compression_training": _OTHER_MODEL,
    "weight_quantization": _OTHER_MODEL,
    "progressive_layer_drop": _OTHER_MODEL,
    "hybrid_engine": _OTHER_MODEL,
    "autotuning": "it starts runs of its own",
    "tensorboard": "the run directory has one series of its own",
    "wandb": "the run directory has one series of its own",
    "csv_monitor": "the run directory has one series of its own",
    "comet": "the run directory has one series of its own",
    f"{ZERO}.stage": "the config decides it: parallel.zero_stage",
    f"{ZERO}.offload_optimizer": "it wants DeepSpeed's own Adam; with tensor parallelism the 1B model fits without",
    f"{ZERO}.offload_param": "it wants DeepSpeed's own Adam; with tensor parallelism the 1B model fits without",
    f"{ZERO}.zenflow": "it delays updates, and numbers would no longer be those of another layout",
    f"{ZERO}.compute_grad_norm": "the norm is clipped and reported",
    f"{ZERO}.elastic_checkpoint": _CHECKPOINTS,
    f"{ZERO}.load_from_fp32_weights": _CHECKPOINTS,
    f"{ZERO}.round_robin_gradients": _CHECKPOINTS,
    f"{ZERO}.parameter_alignment": _CHECKPOINTS,
    f"{ZERO}.zero_hpz_partition_size": _CHECKPOINTS,
    f"{ZERO}.zero_quantized_weights": _OTHER_MODEL,
    f"{ZERO}.zero_quantized_gradients": _OTHER_MODEL,
    f"{ZERO}.ignore_unused_parameters": "every parameter gets a gradient; one that does not is a fault",
}
_KINDS = {bool: "true or false", int: "a whole number", dict: "a mapping"}
KNOWN: dict[str, type] = {
    **WITHOUT_EFFECT_ON_NUMBERS,
    ZERO: dict,
    **{f"{ZERO}.{name}": kind for name, kind in ZERO_OPTIONS.items()},
}


def check_deepspeed_options(options: Mapping[str, Any]) -> None:
    """Check a `deepspeed:` block.

    Raises:
        MoseError: an option contradicts the rest of the config, is unknown, or has a value of another type.
    """
    for name, value in options.items():
        _check(name, value)
    for name, value in options.get(ZERO, {}).items():
        _check(f"{ZERO}.{name}", value)


def _check(name: str, value: Any) -> None:
    require(name not in REFUSED, f"deepspeed.{name}: cannot be given here, because {REFUSED.get(name)}")
    section = [known for known in KNOWN if known.rpartition(".")[0] == name.rpartition(".")[0]]
    close = ", ".join(difflib.get_close_matches(name, section, n=3, cutoff=0.6) or section)
    require(name in KNOWN, f"deepspeed.{name}: no option that can be passed through, expected one of: {close}")
    wanted = KNOWN[name]
    right = type(value) is wanted or (wanted is int and isinstance(value, float) and value.is_integer())
    require(right, f"deepspeed.{name}: {value!r}, expected {_KINDS[wanted]}")


def merged(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """`ours` with `theirs` on top; mappings inside are merged, everything else is replaced."""
    both = dict(ours)
    for name, value in theirs.items():
        inner = both.get(name)
        both[name] = merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return both

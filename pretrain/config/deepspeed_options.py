"""Which raw DeepSpeed options a config may pass through: an allow-list, since a run's numbers must follow from its own config.

DeepSpeed ignores names that it does not know, so a misspelt option would silently do nothing. Names are therefore checked
here, before any rank starts.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from mose.config import require

ZERO = "zero_optimization"
# Options for diagnostics and clean-up: no number depends on them.
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
# How gradients and parameters are communicated; they change the order of sums at most (deepspeed/runtime/zero/config.py).
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
# Where the config itself decides what an option would set; the message sends the reader there.
DECIDED_BY: dict[str, str] = {
    "train_batch_size": "batch.global_rows",
    "train_micro_batch_size_per_gpu": "batch.micro_batch_rows, batch.micro_batch_tokens",
    "gradient_clipping": "optimizer.gradient_clipping",
    "optimizer": "optimizer.*",
    "scheduler": "schedule.*",
    **dict.fromkeys(("bf16", "bfloat16", "fp16", "amp", "torch_autocast"), "parallel.precision"),
    "communication_data_type": "parallel.gradient_communication",
    "activation_checkpointing": "parallel.activation_checkpointing",
    "compile": "parallel.compile",
    "sequence_parallel_size": "parallel.sequence_parallel",
    "tensor_parallel": "parallel.tensor_parallel_size",
    f"{ZERO}.stage": "parallel.zero_stage",
}
# All other options are refused because they are on no list. Among those left out on purpose: prescale_gradients and its like (the
# loss is scaled for a plain mean over data ranks), offload_* (needs DeepSpeed's own Adam), round_robin_gradients,
# zero_hpz_partition_size and elastic_checkpoint (no other layout could read the checkpoints), zenflow and quantised or sparse
# communication (other numbers), data_efficiency (the data path decides which rows are read), elasticity (a run resumes at any
# number of ranks without it).
_REASON = "only options that change no number, or the order of sums at most, are passed through"
_KINDS = {bool: "true or false", int: "a whole number", dict: "a mapping"}
KNOWN: dict[str, type] = {
    **WITHOUT_EFFECT_ON_NUMBERS,
    ZERO: dict,
    **{f"{ZERO}.{name}": kind for name, kind in ZERO_OPTIONS.items()},
}


def check_deepspeed_options(options: Mapping[str, Any]) -> None:
    """Check a `deepspeed:` block.

    Raises:
        MoseError: an option is decided elsewhere in the config, is on no list, or has a value of another type.
    """
    for name, value in options.items():
        _check(name, value)
    for name, value in options.get(ZERO, {}).items():
        _check(f"{ZERO}.{name}", value)


def check_reduced_over_all(options: Mapping[str, Any]) -> None:
    """Check that gradients are reduced by all-reduces of whole buckets, as `parallel.zero_partition_ranks` needs it.

    Raises:
        MoseError: an option chooses another way.
    """
    for name in ("reduce_scatter", "use_multi_rank_bucket_allreduce", "contiguous_gradients"):
        value = options.get(ZERO, {}).get(name, True)
        require(value is True, f"deepspeed.{ZERO}.{name}: {value} with parallel.zero_partition_ranks, expected true")


def _check(name: str, value: Any) -> None:
    elsewhere = f"deepspeed.{name}: cannot be given here, because the config decides it: {DECIDED_BY.get(name)}"
    require(name not in DECIDED_BY, elsewhere)
    section = [known for known in KNOWN if known.rpartition(".")[0] == name.rpartition(".")[0]]
    close = ", ".join(difflib.get_close_matches(name, section, n=3, cutoff=0.6) or section)
    require(name in KNOWN, f"deepspeed.{name}: no option that can be passed through, expected one of: {close} ({_REASON})")
    wanted = KNOWN[name]
    right = type(value) is wanted or (wanted is int and isinstance(value, float) and value.is_integer())
    require(right, f"deepspeed.{name}: {value!r}, expected {_KINDS[wanted]}")


def merged(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """`ours` updated with `theirs`; nested mappings are merged, everything else is replaced."""
    both = dict(ours)
    for name, value in theirs.items():
        inner = both.get(name)
        both[name] = merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return both

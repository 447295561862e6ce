"""The DeepSpeed configuration of a run: a pure function from our config to their dictionary."""

from typing import Any

from pretrain.config.deepspeed_options import merged
from pretrain.config.run import Layout, PretrainConfig


def deepspeed_config(config: PretrainConfig, layout: Layout) -> dict[str, Any]:
    """The argument of `deepspeed.initialize`: our settings, updated with the config's raw ones.

    Batch sizes are nominal: ranks may differ in their numbers of micro-batches, and `Engine.backward` says which one is the last.
    One accumulation step, so that DeepSpeed does not divide gradients by it: our loss is already divided by global counts.
    """
    stage, half = config.parallel.zero_stage, config.parallel.precision == "bf16"
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        # Partition every parameter: by default DeepSpeed keeps small ones whole, and a tiny model would not exercise stage 3.
        zero |= {"stage3_param_persistence_threshold": 0}
    settings: dict[str, Any] = {
        "train_batch_size": layout.zero_ranks,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optimizer.gradient_clipping,
        "zero_optimization": zero,
        "bf16": {"enabled": half},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 60,
        "wall_clock_breakdown": False,
        # It synchronises the device before each forward pass, and its numbers are not read.
        "timers": {"throughput": {"enabled": False}},
    }
    if half:
        # float32 by default: a sum of bf16 gradients over 512 ranks would keep eight bits.
        settings["communication_data_type"] = config.parallel.gradient_communication
        if stage >= 2:
            # Each micro-batch is reduced by itself, and the owner of a partition adds them up.
            settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return merged(settings, config.deepspeed)


def accumulates_in_fp32(config: PretrainConfig, layout: Layout) -> bool:
    """Whether a rank's gradients have to be float32, so that its micro-batches do not add up in bf16.

    Only at ZeRO 1, where they add up before they are reduced, and where there are several. DeepSpeed's own option for this,
    `grad_accum_dtype`, switches to another optimiser class at this stage, which does not overlap communication.
    """
    return config.parallel.precision == "bf16" and config.parallel.zero_stage == 1 and layout.micro_batches > 1


STATE_TAG = "state"

"""The optimiser of the retrieval stage: which parameter learns at which rate, and the rate of each step."""

import math

import torch

from finetune.config import COSINE, LINEAR, RetrievalConfig
from mose.errors import MoseError

EMBEDDING, HEADS, LOGIT_SCALES = "embed_tokens", "projection_heads", "log_logit_scales_E"
LARGEST_LOGIT_SCALE = 100.0


def build_optimizer(model: torch.nn.Module, config: RetrievalConfig) -> torch.optim.AdamW:
    """AdamW; biases and LayerNorms do not decay. Each group's `factor` is its rate as a multiple of the layers'."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((_factor(name, config), decay), []).append(parameter)
    plain = [
        {"params": parameters, "weight_decay": decay, "factor": factor, "lr": config.learning_rate * factor}
        for (factor, decay), parameters in groups.items()
    ]
    return torch.optim.AdamW(plain, lr=config.learning_rate)


def _factor(name: str, config: RetrievalConfig) -> float:
    parts = name.split(".")
    if EMBEDDING in parts:
        return config.embedding_learning_rate_factor
    if LOGIT_SCALES in parts:
        return config.logit_scale_learning_rate_factor
    return config.head_learning_rate_factor if HEADS in parts else 1.0


def learning_rate(step: int, config: RetrievalConfig) -> float:
    """The layers' learning rate in optimiser step `step`, counted from 0: no step has a rate of 0.

    Warm-up step s has peak * (s + 1) / warmup_steps; a decay ends at 0 after the last step.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    passed = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    shares = {LINEAR: 1 - passed, COSINE: (1 + math.cos(math.pi * passed)) / 2}
    return config.learning_rate * shares.get(config.decay, 1.0)


def optimizer_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int, config: RetrievalConfig) -> float:
    """Clip, set the rates of step `step`, update and clear the gradients; returns the gradient's norm before clipping.

    Raises:
        MoseError: the norm is not finite; the weights are left as they were.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if not math.isfinite(norm):
        raise MoseError(
            f"step {step + 1}: the gradient's norm is {float(norm)}; look at learning_rate and logit_scale; weights of the last "
            "checkpoint are kept"
        )
    if config.gradient_clipping:
        torch.nn.utils.clip_grads_with_norm_(parameters, config.gradient_clipping, norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, config) * group["factor"]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if config.logit_scale_learning_rate_factor:
        with torch.no_grad():
            model.get_parameter(LOGIT_SCALES).clamp_(max=math.log(LARGEST_LOGIT_SCALE))
    return float(norm)

"""Where fine-tuning and evaluation run, and in which precision."""

import contextlib
import os
from collections.abc import Iterator

import torch

from mose.errors import MoseError, first_line
from mose.model.attention_mose import AUTOMATIC, BACKEND_VARIABLE, TORCH_VARLEN, choose_backend


def pick_device(name: str) -> torch.device:
    """`auto` is this process's GPU where there is one, else the CPU; any other name is torch's.

    Raises:
        MoseError: torch does not know the name, or has no such device here.
    """
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MoseError(f"device: {name!r} cannot be used here ({first_line(error)}); expected auto, cpu or cuda") from None
    return device


def precision(device: torch.device, bf16: bool) -> contextlib.AbstractContextManager[None]:
    """bfloat16 autocast on a GPU with `bf16`, otherwise plain float32; weights stay float32 in both cases."""
    if device.type != "cuda" or not bf16:
        return contextlib.nullcontext()
    return torch.autocast("cuda", dtype=torch.bfloat16)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw dropout masks from `seed` inside the block; the outer generators keep their state."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def check_attention_dropout(dropout: float, device: torch.device, bf16: bool) -> None:
    """Refuse attention dropout where the environment forces the one kernel that has none.

    Raises:
        MoseError: `dropout` is above 0, and MOSE_ATTENTION_BACKEND asks for torch's varlen kernel on a GPU.
    """
    dtype = torch.bfloat16 if bf16 and device.type == "cuda" else torch.float32
    if dropout and choose_backend(device, dtype, dropout) == TORCH_VARLEN:
        raise MoseError(
            f"config.json: attention_dropout: {dropout}, which torch's varlen attention does not have; expected 0, or "
            f"{BACKEND_VARIABLE}={AUTOMATIC}"
        )

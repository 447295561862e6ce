"""Bidirectional attention over unpadded rows: one function, four back ends that give the same numbers.

Letters: N real tokens of all rows, H query heads, G key-value heads, K head width, B rows.
"""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FLASH_ATTENTION = "flash_attention"
TORCH_VARLEN = "torch_varlen"
TORCH_FLASH = "torch_flash"
SDPA = "sdpa"
# What each back end needs, the fastest first.
_MODULES = {FLASH_ATTENTION: "flash_attn", TORCH_VARLEN: "torch.nn.attention.varlen", TORCH_FLASH: "torch", SDPA: "torch"}
BACKEND_VARIABLE, AUTOMATIC = "MOSE_ATTENTION_BACKEND", "auto"
# Mean tokens per row up to which one padded, masked call beats a loop over rows on CPU: 33 ms against 112 for 128 rows of
# 40-60 tokens, slower from 200 tokens on (docs/decisions.md).
PADDED_BELOW = 128


def choose_backend(device: torch.device, dtype: torch.dtype, dropout: float = 0.0) -> str:
    """The back end for this device and type: flash-attn if installed, else torch's varlen kernel, else SDPA.

    torch's varlen function has no dropout; with `dropout`, the kernel below it is taken, which has. Only SDPA knows the CPU and
    float32. Elsewhere the environment variable MOSE_ATTENTION_BACKEND can force one of the four, for comparisons.

    Raises:
        ValueError: the variable names none of them, or one that is not installed.
    """
    half_on_gpu = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    return _backend_on_gpu(dropout > 0) if half_on_gpu else SDPA


# torch.compile cannot trace a look at the environment; asked once while tracing, the answer becomes part of the graph.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _backend_on_gpu(with_dropout: bool) -> str:
    wanted = os.environ.get(BACKEND_VARIABLE, AUTOMATIC)
    backend = _available_backend(wanted)
    return TORCH_FLASH if with_dropout and backend == TORCH_VARLEN and wanted == AUTOMATIC else backend


@functools.cache
def _available_backend(wanted: str) -> str:
    installed = [name for name, module in _MODULES.items() if _is_installed(module)]
    if wanted != AUTOMATIC and wanted not in installed:
        expected = ", ".join([AUTOMATIC, *installed])
        raise ValueError(f"{BACKEND_VARIABLE}: {wanted!r} is not known or not installed, expected one of: {expected}")
    return installed[0] if wanted == AUTOMATIC else wanted


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that would hold it is not there
        return False


def attention(
    q_NHK: Tensor,
    k_NGK: Tensor,
    v_NGK: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    dropout: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Attention within each row, [N, H, K]; row b is tokens cu_seqlens[b]..cu_seqlens[b + 1] (int32 [B + 1]).

    A mask [B, T] instead of bounds says that N = B * T and padding is among the tokens.

    Raises:
        ValueError: dropout is asked of torch's varlen kernel, which has none.
    """
    if q_NHK.shape[0] == 0:
        return q_NHK
    if cu_seqlens.ndim == 2:
        return padded_attention(_masked_sdpa, q_NHK, k_NGK, v_NGK, cu_seqlens, dropout)
    backend = backend or choose_backend(q_NHK.device, q_NHK.dtype, dropout)
    if backend == FLASH_ATTENTION:
        return _flash_attention(q_NHK, k_NGK, v_NGK, cu_seqlens, max_length, dropout)  # type: ignore[no-any-return]
    if backend == TORCH_VARLEN:
        return _torch_varlen(q_NHK, k_NGK, v_NGK, cu_seqlens, max_length, dropout)
    if backend == TORCH_FLASH:
        return _torch_flash(q_NHK, k_NGK, v_NGK, cu_seqlens, max_length, dropout)
    short = q_NHK.shape[0] <= PADDED_BELOW * (cu_seqlens.shape[0] - 1)
    if short and q_NHK.device.type == "cpu":
        return _sdpa_padded(q_NHK, k_NGK, v_NGK, cu_seqlens, max_length, dropout)
    return _sdpa_by_row(q_NHK, k_NGK, v_NGK, cu_seqlens, dropout)


# The package is optional and its kernel is its own: torch.compile leaves it as it is.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _flash_attention(q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, cu_seqlens: Tensor, max_length: int, dropout: float) -> Tensor:
    kernel = importlib.import_module("flash_attn").flash_attn_varlen_func
    # Its backward pass adds atomically, in an order that varies, unless asked otherwise; torch's own kernels follow the switch.
    fixed_order = torch.are_deterministic_algorithms_enabled()
    out: Tensor = kernel(
        q_NHK, k_NGK, v_NGK, cu_seqlens, cu_seqlens, max_length, max_length, dropout, causal=False, deterministic=fixed_order
    )
    return out


def _torch_varlen(q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, cu_seqlens: Tensor, max_length: int, dropout: float) -> Tensor:
    if dropout:
        raise ValueError(
            "attention_dropout: torch's varlen attention has no dropout; leave the back end to `auto` or set it to 0"
        )
    from torch.nn.attention.varlen import varlen_attn

    bounds, longest = (cu_seqlens, cu_seqlens), (max_length, max_length)
    out: Tensor = varlen_attn(q_NHK, k_NGK, v_NGK, *bounds, *longest, enable_gqa=True)  # type: ignore[assignment]
    return out


def _torch_flash(q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, cu_seqlens: Tensor, max_length: int, dropout: float) -> Tensor:
    """The operator that `varlen_attn` calls with a dropout of 0; it draws its mask from the device's default generator."""
    bounds, longest = (cu_seqlens, cu_seqlens), (max_length, max_length)
    causal, debug_mask = False, False
    out: Tensor = torch.ops.aten._flash_attention_forward(q_NHK, k_NGK, v_NGK, *bounds, *longest, dropout, causal, debug_mask)[0]
    return out


def _sdpa_padded(q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, cu_seqlens: Tensor, max_length: int, dropout: float) -> Tensor:
    lengths_B = torch.diff(cu_seqlens.long())
    slots_BT = torch.arange(max_length, device=q_NHK.device)
    real_BT = slots_BT < lengths_B[:, None]
    padded = []
    for part in (q_NHK, k_NGK, v_NGK):
        rows = part.new_zeros(*real_BT.shape, *part.shape[1:])
        rows[real_BT] = part
        padded.append(rows.transpose(1, 2))
    q, k, v = padded
    mask_B11T = real_BT[:, None, None]
    out_BHTK = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B11T, dropout_p=dropout, enable_gqa=True)
    return out_BHTK.transpose(1, 2)[real_BT]


def _sdpa_by_row(q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, cu_seqlens: Tensor, dropout: float) -> Tensor:
    # A loop over long rows beats one masked call on CPU: 41-47 ms against 81 at 512 tokens (docs/decisions.md).
    lengths = torch.diff(cu_seqlens).tolist()
    rows = []
    # Split, not sliced: the gradient of a slice is a tensor of all tokens, one for each row.
    for length, *parts in zip(lengths, *(torch.split(t, lengths) for t in (q_NHK, k_NGK, v_NGK)), strict=True):
        if not length:
            continue
        q, k, v = (part.transpose(0, 1).unsqueeze(0) for part in parts)
        row = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, enable_gqa=True)
        rows.append(row.squeeze(0).transpose(0, 1))
    return torch.cat(rows)


def varlen_attention(
    function: Callable[..., Any], q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, cu_seqlens: Tensor, max_length: int, dropout: float
) -> Tensor:
    """Attention within each row by a function of transformers' attention interface that takes bounds (`flash_attention_2`)."""
    if q_NHK.shape[0] == 0:
        return q_NHK
    q, k, v = (part.transpose(0, 1).unsqueeze(0) for part in (q_NHK, k_NGK, v_NGK))
    options: dict[str, Any] = {"dropout": dropout, "scaling": q_NHK.shape[-1] ** -0.5, "is_causal": False}
    options |= {"cu_seq_lens_q": cu_seqlens, "cu_seq_lens_k": cu_seqlens, "max_length_q": max_length, "max_length_k": max_length}
    out, _ = function(q, k, v, None, **options)
    return out.squeeze(0)  # type: ignore[no-any-return]


def padded_attention(
    function: Callable[..., Any], q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, mask_BT: Tensor, dropout: float
) -> Tensor:
    """Attention within each row of N = B * T slots by a function of transformers' attention interface that takes a mask."""
    if q_NHK.shape[0] == 0:
        return q_NHK
    batch, slots = mask_BT.shape
    q, k, v = (part.view(batch, slots, *part.shape[1:]).transpose(1, 2) for part in (q_NHK, k_NGK, v_NGK))
    # A softmax over no key at all is NaN in some runtimes: a row without tokens sees its padding, and nobody reads its states.
    seen_B11T = (mask_BT | ~mask_BT.any(dim=1, keepdim=True))[:, None, None]
    seen_B1TT = seen_B11T.expand(-1, -1, slots, -1)
    out_BTHK, _ = function(q, k, v, seen_B1TT, dropout=dropout, scaling=q.shape[-1] ** -0.5, is_causal=False)
    return out_BTHK.reshape(q_NHK.shape)  # type: ignore[no-any-return]


def eager_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, dropout: float = 0.0, **_: Any
) -> tuple[Tensor, Tensor]:
    """Plain matrix products, in the form of transformers' attention interface: [B, H, T, K] to [B, T, H, K], and the weights."""
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    scores_BHTT = (query @ key.transpose(2, 3) * scaling).masked_fill(~attention_mask, -torch.inf)
    weights_BHTT = F.dropout(scores_BHTT.float().softmax(dim=-1).to(query.dtype), dropout)
    return (weights_BHTT @ value).transpose(1, 2), weights_BHTT


def _masked_sdpa(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    # ONNX has no grouped-query attention with a mask, so the keys are repeated here.
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
    return out.transpose(1, 2), None


def rotary_angles(positions_N: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin [N, 1, K] in float32 for rotate-half RoPE; computed here because a non-persistent buffer loads as garbage."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions_N.device) / head_dim
    angles = positions_N[:, None].float() * (1.0 / theta**exponents)
    angles_NK = torch.cat((angles, angles), dim=-1)
    return angles_NK.cos()[:, None], angles_NK.sin()[:, None]


def rotate(x_NHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary position embedding to queries or keys."""
    half = x_NHK.shape[-1] // 2
    turned = torch.cat((-x_NHK[..., half:], x_NHK[..., :half]), dim=-1)
    return x_NHK * cos.to(x_NHK.dtype) + turned * sin.to(x_NHK.dtype)

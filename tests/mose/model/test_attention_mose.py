"""Covers attention over unpadded rows: each back end against attention written out, and what a back end refuses."""

import inspect
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen

from mose.model import attention_mose
from mose.model.attention_mose import (
    BACKEND_VARIABLE,
    FLASH_ATTENTION,
    SDPA,
    TORCH_FLASH,
    TORCH_VARLEN,
    attention,
    choose_backend,
    rotary_angles,
    rotate,
)

BOUNDS = [0, 5, 6, 19]


def written_out(q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor) -> Tensor:
    """softmax(q k / sqrt(K)) v with a block-diagonal mask and keys repeated for their group of queries."""
    repeat = q_NHK.shape[1] // k_NGK.shape[1]
    k_NHK, v_NHK = (t.repeat_interleave(repeat, dim=1) for t in (k_NGK, v_NGK))
    rows_N = torch.bucketize(torch.arange(len(q_NHK)), torch.tensor(BOUNDS[1:]), right=True)
    scores_HNN = torch.einsum("nhk,mhk->hnm", q_NHK, k_NHK) / q_NHK.shape[-1] ** 0.5
    scores_HNN = scores_HNN.masked_fill(rows_N[:, None] != rows_N[None, :], float("-inf"))
    return torch.einsum("hnm,mhk->nhk", scores_HNN.softmax(-1), v_NHK)


def made_inputs(device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(BOUNDS[-1], heads, 16, dtype=dtype) for heads in (8, 2, 2))
    return q.to(device), k.to(device), v.to(device), torch.tensor(BOUNDS, dtype=torch.int32, device=device)


@pytest.mark.parametrize("padded_below", [0, 1000])
def test_sdpa_equals_attention_written_out(padded_below: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_mose, "PADDED_BELOW", padded_below)  # row by row, and all rows in one masked call
    q, k, v, bounds = made_inputs("cpu", torch.float32)
    assert torch.allclose(attention(q, k, v, bounds, 13, backend=SDPA), written_out(q, k, v), atol=2e-6)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
) -> Tensor:
    """The first parameters of flash-attn's function (2.x); checks what it is given and computes the same on the CPU."""
    assert cu_seqlens_q is cu_seqlens_k
    assert cu_seqlens_q.dtype == torch.int32
    assert (max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal) == (13, 13, 0.0, None, False)
    assert deterministic == torch.are_deterministic_algorithms_enabled()
    return written_out(q, k, v)


def test_flash_attention_is_called_by_its_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = types.ModuleType("flash_attn")
    stub.__dict__["flash_attn_varlen_func"] = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", stub)
    q, k, v, bounds = made_inputs("cpu", torch.float32)
    for deterministic in (False, True):
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda fixed=deterministic: fixed)
        assert torch.equal(attention(q, k, v, bounds, 13, backend=FLASH_ATTENTION), written_out(q, k, v))


def test_torchs_varlen_kernel_is_called_by_its_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    signature = inspect.signature(varlen.varlen_attn)

    def stub(*arguments: Any, **named: Any) -> Tensor:
        given = signature.bind(*arguments, **named).arguments
        assert given["cu_seq_q"] is given["cu_seq_k"]
        assert (given["max_q"], given["max_k"], given["enable_gqa"]) == (13, 13, True)
        assert "window_size" not in given  # the default attends to both sides
        return written_out(given["query"], given["key"], given["value"])

    monkeypatch.setattr(varlen, "varlen_attn", stub)
    q, k, v, bounds = made_inputs("cpu", torch.float32)
    assert torch.equal(attention(q, k, v, bounds, 13, backend=TORCH_VARLEN), written_out(q, k, v))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", [TORCH_VARLEN, TORCH_FLASH, FLASH_ATTENTION, SDPA])
def test_cuda_back_ends_equal_attention_written_out(backend: str) -> None:
    if backend == FLASH_ATTENTION:
        pytest.importorskip("flash_attn")
    q, k, v, bounds = made_inputs("cuda", torch.bfloat16)
    expected = written_out(q.float().cpu(), k.float().cpu(), v.float().cpu())
    assert torch.allclose(attention(q, k, v, bounds, 13, backend=backend).float().cpu(), expected, atol=2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_torchs_flash_kernel_drops_the_share_that_is_asked_for() -> None:
    q, k, _, bounds = made_inputs("cuda", torch.bfloat16)
    ones = torch.ones_like(k)
    torch.manual_seed(0)
    out = attention(q, k, ones, bounds, 13, dropout=0.5, backend=TORCH_FLASH)
    # Kept weights are scaled by 2: the mean over all stays 1.
    assert abs(float(out.float().mean()) - 1) < 0.1
    assert float((attention(q, k, ones, bounds, 13, backend=TORCH_FLASH).float() - 1).abs().max()) < 1e-2


def test_torchs_flash_kernel_takes_dropout_and_grouped_heads() -> None:
    """Shapes and autograd on `meta`, where the operator checks its signature and computes nothing."""
    q_NHK = torch.empty(100, 16, 64, device="meta", dtype=torch.bfloat16, requires_grad=True)
    k_NGK, v_NGK = (torch.empty(100, 4, 64, device="meta", dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    bounds = torch.empty(4, device="meta", dtype=torch.int32)
    out = attention(q_NHK, k_NGK, v_NGK, bounds, 50, dropout=0.1, backend=TORCH_FLASH)
    out.sum().backward()  # type: ignore[no-untyped-call]
    assert out.shape == q_NHK.shape
    assert [part.grad.shape for part in (q_NHK, k_NGK, v_NGK) if part.grad is not None] == [q_NHK.shape, k_NGK.shape, k_NGK.shape]


def test_dropout_without_flash_attn_takes_torchs_flash_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.delenv(BACKEND_VARIABLE, raising=False)
    monkeypatch.setattr(attention_mose, "_available_backend", lambda wanted: TORCH_VARLEN)
    assert choose_backend(gpu, torch.bfloat16) == TORCH_VARLEN
    assert choose_backend(gpu, torch.bfloat16, dropout=0.1) == TORCH_FLASH


def test_torch_varlen_refuses_dropout_by_name() -> None:
    q, k, v, bounds = made_inputs("cpu", torch.float32)
    with pytest.raises(ValueError, match="attention_dropout"):
        attention(q, k, v, bounds, 13, dropout=0.1, backend=TORCH_VARLEN)


def test_cpu_and_fp32_use_sdpa() -> None:
    assert choose_backend(torch.device("cpu"), torch.bfloat16) == SDPA
    assert choose_backend(torch.device("cuda"), torch.float32) == SDPA
    assert choose_backend(torch.device("cuda"), torch.bfloat16) in (TORCH_VARLEN, FLASH_ATTENTION)


def test_a_back_end_can_be_forced_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    for forced in (SDPA, TORCH_VARLEN):
        monkeypatch.setenv(BACKEND_VARIABLE, forced)
        assert choose_backend(gpu, torch.bfloat16) == forced
    assert choose_backend(cpu, torch.bfloat16) == choose_backend(gpu, torch.float32) == SDPA


def test_a_forced_back_end_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BACKEND_VARIABLE, "flesh")
    with pytest.raises(ValueError, match="MOSE_ATTENTION_BACKEND: 'flesh' is not known or not installed, expected one of: auto"):
        choose_backend(torch.device("cuda"), torch.bfloat16)


def test_the_choice_is_made_while_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BACKEND_VARIABLE, SDPA)

    def length_of_name(x: Tensor) -> Tensor:
        return x * len(choose_backend(torch.device("cuda"), torch.bfloat16))

    compiled = torch.compile(length_of_name, backend="eager", fullgraph=True)
    assert float(compiled(torch.ones(()))) == len(SDPA)


def test_rotation_keeps_lengths_and_depends_on_distance_only() -> None:
    cos, sin = rotary_angles(torch.arange(12), 16, 10_000.0)
    x = torch.randn(1, 1, 16).expand(12, 1, 16)
    turned = rotate(x, cos, sin)
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    products = [float((turned[i] * turned[i + 3]).sum()) for i in range(9)]
    assert max(products) - min(products) < 1e-4

"""Covers attention over unpadded rows: each back end against attention written out, and what a back end refuses."""

import pytest
import torch
from torch import Tensor

from mose.model.attention_mose import FLASH_ATTENTION, SDPA, TORCH_VARLEN, attention, choose_backend, rotary_angles, rotate

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


def test_sdpa_equals_attention_written_out() -> None:
    q, k, v, bounds = made_inputs("cpu", torch.float32)
    assert torch.allclose(attention(q, k, v, bounds, 13, backend=SDPA), written_out(q, k, v), atol=2e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", [TORCH_VARLEN, FLASH_ATTENTION])
def test_cuda_back_ends_equal_attention_written_out(backend: str) -> None:
    if backend == FLASH_ATTENTION:
        pytest.importorskip("flash_attn")
    q, k, v, bounds = made_inputs("cuda", torch.bfloat16)
    expected = written_out(q.float().cpu(), k.float().cpu(), v.float().cpu())
    assert torch.allclose(attention(q, k, v, bounds, 13, backend=backend).float().cpu(), expected, atol=2e-2)


def test_torch_varlen_refuses_dropout_by_name() -> None:
    q, k, v, bounds = made_inputs("cpu", torch.float32)
    with pytest.raises(ValueError, match="attention_dropout"):
        attention(q, k, v, bounds, 13, dropout=0.1, backend=TORCH_VARLEN)


def test_cpu_and_fp32_use_sdpa() -> None:
    assert choose_backend(torch.device("cpu"), torch.bfloat16) == SDPA
    assert choose_backend(torch.device("cuda"), torch.float32) == SDPA
    assert choose_backend(torch.device("cuda"), torch.bfloat16) in (TORCH_VARLEN, FLASH_ATTENTION)


def test_rotation_keeps_lengths_and_depends_on_distance_only() -> None:
    cos, sin = rotary_angles(torch.arange(12), 16, 10_000.0)
    x = torch.randn(1, 1, 16).expand(12, 1, 16)
    turned = rotate(x, cos, sin)
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    products = [float((turned[i] * turned[i + 3]).sum()) for i in range(9)]
    assert max(products) - min(products) < 1e-4

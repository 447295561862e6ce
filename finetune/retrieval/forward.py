"""The forward pass of a retrieval model over unpadded rows: to the deepest exit that is asked for, and no further than needed.

Letters: R rows (texts), B rows of one batch, T slots of its longest row, N tokens of all its rows, D width, H heads, G key-value
heads, K head width.
"""

import functools
import platform
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from finetune.batches import INDICES, PackedBatch, chunks_by_length, pack_rows
from mose.dataset.packed_sequence import TOKENS
from mose.model.attention_mose import rotary_angles, rotate
from mose.model.modeling_mose import ModularStarEncoderForRetrieval, StarEncoder2Layer, StarEncoder2MLP


def embed_rows(
    model: ModularStarEncoderForRetrieval,
    rows: Sequence[TOKENS],
    exits: Sequence[int],
    chunk_tokens: int,
    device: torch.device,
    follow: Callable[[Sequence[INDICES]], Iterable[INDICES]] = iter,
) -> list[NDArray[np.float32]]:
    """Tables [R, D] of normalised embeddings of token rows, one per exit (layers, ascending), from one pass.

    Rows of similar length share a batch of at most `chunk_tokens` tokens; `follow` wraps the loop over batches, for a progress
    bar. Without gradients; the model is on `device` and in evaluation mode.
    """
    tables = [np.empty((len(rows), model.config.hidden_size), dtype=np.float32) for _ in exits]
    chunks = chunks_by_length([len(row) for row in rows], max_rows=max(1, len(rows)), max_tokens=chunk_tokens)
    with torch.inference_mode():
        for chunk in follow(chunks):
            batch = pack_rows([rows[index] for index in chunk]).to(device)
            for table, embeddings_BD in zip(tables, embed_batch(model, batch, exits), strict=True):
                table[chunk] = embeddings_BD.float().cpu().numpy()
    return tables


def embed_batch(model: ModularStarEncoderForRetrieval, batch: PackedBatch, exits: Sequence[int]) -> list[Tensor]:
    """L2-normalised embeddings [B, D] at each of `exits` (layers, ascending), equal to `model.embed`'s up to rounding.

    No layer above the deepest of `exits` runs, and that one computes the state of `<cls>` alone, the only one that is read. Has
    gradients, and in training mode the model's dropout.
    """
    trunk, known = model.starEncoder2, model.config.computed_exit_layers
    last_B = batch.cu_seqlens[1:].long() - 1
    rotary = rotary_angles(batch.positions_N, model.config.head_dim, model.config.rope_theta)
    x_ND = F.dropout(trunk.embed_tokens(batch.input_ids_N), model.config.embedding_dropout, trunk.training)
    found = []
    layers: list[Any] = list(trunk.layers)[: exits[-1]]
    for depth, layer in enumerate(layers, start=1):
        if depth == exits[-1]:
            state_BD = _last_layer(layer, x_ND, rotary, batch)
        else:
            mixed_ND = layer.self_attn(layer.input_layernorm(x_ND), rotary, batch.cu_seqlens, batch.max_length)
            x_ND = _after_attention(layer, x_ND, mixed_ND)
            state_BD = x_ND[last_B]
        if depth in exits:
            state_BD = trunk.norm(state_BD) if depth == len(trunk.layers) else state_BD
            head = model.projection_heads[known.index(depth)]
            found.append(F.normalize(head(state_BD).float(), dim=-1))
    return found


def _last_layer(layer: StarEncoder2Layer, x_ND: Tensor, rotary: tuple[Tensor, Tensor], batch: PackedBatch) -> Tensor:
    """A layer's output [B, D] for the last token of each row.

    Keys and values need every token; queries, the output projection and the feed-forward layers, nine tenths of a layer's
    operations at the 1B shape, need one token per row. It saves most of a layer: a quarter of all work at exit 4, a 36th at 36.
    """
    attend, last_B = layer.self_attn, batch.cu_seqlens[1:].long() - 1
    normed_ND = layer.input_layernorm(x_ND)
    heads = (-1, attend.head_dim)
    k_NGK = rotate(attend.k_proj(normed_ND).unflatten(1, heads), *rotary)
    v_NGK = attend.v_proj(normed_ND).unflatten(1, heads)
    q_BHK = rotate(attend.q_proj(normed_ND[last_B]).unflatten(1, heads), *(angles[last_B] for angles in rotary))
    # One query per row: padded keys cost a copy, where bounds of their own for the queries would need kernels that CPUs lack.
    real_BT = torch.arange(batch.max_length, device=x_ND.device) < batch.cu_seqlens.diff()[:, None]
    k_BTGK, v_BTGK = (part.new_zeros(*real_BT.shape, *part.shape[1:]) for part in (k_NGK, v_NGK))
    k_BTGK[real_BT], v_BTGK[real_BT] = k_NGK, v_NGK
    mixed_BH1K = F.scaled_dot_product_attention(
        q_BHK.unsqueeze(2),
        k_BTGK.transpose(1, 2),
        v_BTGK.transpose(1, 2),
        attn_mask=real_BT[:, None, None],
        dropout_p=attend.core.dropout if layer.training else 0.0,
        enable_gqa=True,
    )
    return _after_attention(layer, x_ND[last_B], attend.o_proj(mixed_BH1K.flatten(1)))


def _after_attention(layer: StarEncoder2Layer, x: Tensor, mixed: Tensor) -> Tensor:
    x = x + F.dropout(mixed, layer.dropout, layer.training)
    return x + F.dropout(_feed_forward(layer.mlp, layer.post_attention_layernorm(x)), layer.dropout, layer.training)


def _feed_forward(mlp: StarEncoder2MLP, x: Tensor) -> Tensor:
    """The two feed-forward layers; without gradients, where oneDNN runs them, with GELU inside the first matrix product.

    GELU by itself reads and writes 12 D numbers per token at the 1B shape: a tenth to a fifth of a layer's time on a CPU. The
    operator is the one that torch.compile emits on x86, and has no gradient; elsewhere, or in another precision, the plain
    layers run.
    """
    fused = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if _has_onednn() else None
    in_float32 = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if fused is None or torch.is_grad_enabled() or not in_float32:
        return mlp(x)  # type: ignore[no-any-return]
    wide: Tensor = fused(x, mlp.c_fc.weight, mlp.c_fc.bias, "gelu", [], "tanh")
    return mlp.c_proj(wide)  # type: ignore[no-any-return]


@functools.cache
def _has_onednn() -> bool:
    return platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]

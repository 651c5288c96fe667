"""timm's attention with widths of its own for keys and values, and layers with channels left out.

Shape legend: B images or windows, N tokens, C channels, h heads, d channels of a head.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn


class NarrowAttention(Attention):
    """ViT's attention whose heads have `key_dim` channels of Q and K and `value_dim` of V.

    The softmax scale is that of the width it was trained with.
    """

    key_dim: int
    value_dim: int

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, C] -> Q, K [B, h, N, key_dim] and V [B, h, N, value_dim]."""
        return _heads(self, self.qkv(x))

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        q, k, v = self.heads(x)
        if self.fused_attn:
            drop = self.attn_drop.p if self.training else 0.0
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask, drop, is_causal, scale=self.scale
            )
        else:
            logits = scaled(q, self.scale) @ k.transpose(-2, -1)  # [B, h, N, N]
            if is_causal:
                attn_mask = logits.new_ones(logits.shape[-2:], dtype=torch.bool).tril()
            if attn_mask is not None and attn_mask.dtype == torch.bool:
                attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(
                    ~attn_mask, float("-inf")
                )
            if attn_mask is not None:
                logits = logits + attn_mask
            out = self.attn_drop(logits.softmax(dim=-1)) @ v
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))


class NarrowWindowAttention(WindowAttention):
    """Swin's attention within windows, narrowed in the same way."""

    key_dim: int
    value_dim: int

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, C] -> Q, K [B, h, N, key_dim] and V [B, h, N, value_dim]."""
        return _heads(self, self.qkv(x))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [windows of all images, N, C]; mask [windows of an image, N, N], 0 or negative."""
        q, k, v = self.heads(x)
        bias = self.biases(mask)
        if self.fused_attn:
            drop = self.attn_drop.p if self.training else 0.0
            bias = bias.repeat(len(x) // len(bias), 1, 1, 1) if mask is not None else bias
            out = F.scaled_dot_product_attention(q, k, v, bias, drop, scale=self.scale)
        else:
            logits = scaled(q, self.scale) @ k.transpose(-2, -1)
            logits = (logits.unflatten(0, (-1, len(bias))) + bias).flatten(0, 1)
            out = self.attn_drop(self.softmax(logits)) @ v
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))

    def biases(self, mask: Tensor | None) -> Tensor:
        """What is added to the logits, [windows of an image or 1, h, N, N]."""
        bias = self._get_rel_pos_bias()
        return bias if mask is None else bias + mask[:, None]


def scaled(q: Tensor, scale: float) -> Tensor:
    return q if scale == 1.0 else q * scale


def narrow_attention(attention: Any, key_dim: int, value_dim: int) -> Any:
    """The attention as its narrow class, sharing its layers, whose widths are the caller's."""
    narrowed: Any
    cls = NarrowAttention if isinstance(attention, Attention) else NarrowWindowAttention
    narrowed = cls.__new__(cls)
    nn.Module.__init__(narrowed)
    for name, value in vars(attention).items():  # whatever this release of timm keeps there
        vars(narrowed)[name] = copy.copy(value)
    narrowed.key_dim, narrowed.value_dim = key_dim, value_dim
    if isinstance(attention, Attention):
        narrowed.head_dim, narrowed.attn_dim = key_dim, value_dim * attention.num_heads
    return narrowed


def _heads(attention: Any, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    h, d = attention.num_heads, attention.key_dim
    parts = qkv.split([h * d, h * d, h * attention.value_dim], dim=-1)
    q, k, v = (part.unflatten(-1, (h, -1)).transpose(1, 2) for part in parts)
    return q, k, v


def select(
    layer: nn.Module, *, outputs: Tensor | None = None, inputs: Tensor | None = None
) -> None:
    """Leave only these outputs or inputs of a linear layer, convolution or BatchNorm, in place."""
    if outputs is not None:
        for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
            if tensor.ndim:  # BatchNorm counts its batches in a scalar
                _replace(layer, name, tensor, 0, outputs)
        for size in ("out_features", "out_channels", "num_features"):
            if hasattr(layer, size):
                setattr(layer, size, len(outputs))
    if inputs is not None:
        assert isinstance(layer.weight, nn.Parameter)
        _replace(layer, "weight", layer.weight, 1, inputs)
        for size in ("in_features", "in_channels"):
            if hasattr(layer, size):
                setattr(layer, size, len(inputs))


def _replace(layer: nn.Module, name: str, tensor: Tensor, dim: int, kept: Tensor) -> None:
    values = tensor.detach().index_select(dim, kept.to(tensor.device))
    if isinstance(tensor, nn.Parameter):
        setattr(layer, name, nn.Parameter(values, tensor.requires_grad))
    else:
        setattr(layer, name, values)

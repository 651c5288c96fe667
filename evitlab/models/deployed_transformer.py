"""The inference form of timm's ViT, DeiT and Swin, pruned or not: the same function, less to do.

What changes, all of it algebra:

- A LayerNorm's gain and shift go into the linear layer behind it, a LayerScale into the one before.
- The softmax scale goes into the queries' weights.
- Swin's table of relative positions is expanded to [h, N, N] once, with the mask of shifted windows
  added to it.

Shape legend: N tokens of a window, C channels, h heads.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from timm.layers import Attention, LayerScale, Mlp
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, WindowAttention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from evitlab.models.baselines import MixedBlock, WindowMixer
from evitlab.models.narrow import NarrowAttention, NarrowWindowAttention, narrow_attention


class DeployedTransformer(nn.Module):
    """What `deploy` returns of a ViT, DeiT or Swin: [B, C, H, W] images -> [B, classes] logits."""

    def __init__(self, model: VisionTransformer | SwinTransformer) -> None:
        super().__init__()
        self.model: Any = copy.deepcopy(model)
        for name in ("config", "pretrained_cfg", "class_names", "num_classes", "num_features",
                     "feature_info", "channel_widths"):  # fmt: skip
            if hasattr(model, name):
                setattr(self, name, getattr(self.model, name))
        for block in list(self.model.modules()):
            if isinstance(block, (Block, SwinTransformerBlock, MixedBlock)):
                _fold_block(block)
        self.requires_grad_(False)
        super().train(False)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.model.forward_features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.model.forward_head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def train(self, mode: bool = True) -> DeployedTransformer:
        if mode:
            raise ValueError("mode: a deployed model only infers; train the model it came from")
        return super().train(False)

    def load_state_dict(self, state_dict: Mapping[str, Any], *_: Any, **__: Any) -> NoReturn:
        raise ValueError(
            "state_dict: a deployed model takes none, its weights are folded; load them into the "
            "model it came from (create_model, load_weights) and deploy that"
        )


class _WindowAttention(NarrowWindowAttention):
    """With its biases and the mask of its windows expanded."""

    bias: Tensor  # [windows of an image or 1, h, N, N]
    masked: bool

    def biases(self, mask: Tensor | None) -> Tensor:
        return self.bias if mask is None or self.masked else self.bias + mask[:, None]


def _fold_block(block: Any) -> None:
    """A block's layers in their inference form, in place."""
    layers: list[tuple[str, str, str | None]]
    if isinstance(block, MixedBlock):
        layers = [("norm1", "layer1", None), ("norm2", "layer2", None)]
    elif hasattr(block, "mlp"):
        layers = [("norm1", "attn", "ls1"), ("norm2", "mlp", "ls2")]
    else:  # WindowMixer, whose norm is the block's around it
        return
    for norm, name, layer_scale in layers:
        layer = getattr(block, name)
        holder, key = (layer, "attn") if isinstance(layer, WindowMixer) else (block, name)
        inner = getattr(holder, key)
        first: Any
        last: Any
        if isinstance(inner, (Attention, WindowAttention)) and _is_plain(inner):
            window = holder if isinstance(holder, SwinTransformerBlock) else None
            inner = _folded_attention(inner, window)
            setattr(holder, key, inner)
            # Padding stands between norm and attention: it would not get the shift.
            first, last = None if window and _pads(window) else inner.qkv, inner.proj
        elif isinstance(inner, Mlp):
            first, last = inner.fc1, inner.fc2
        else:
            continue
        if isinstance(first, nn.Linear) and _fold_norm(getattr(block, norm), first):
            old = getattr(block, norm)
            bare = nn.LayerNorm(old.normalized_shape, old.eps, elementwise_affine=False)
            setattr(block, norm, bare)
        scale = getattr(block, layer_scale, None) if layer_scale else None
        if isinstance(scale, LayerScale) and isinstance(last, nn.Linear):
            _scale_outputs(last, scale.gamma, slice(None))
            setattr(block, layer_scale or "", nn.Identity())


def _is_plain(attention: Any) -> bool:
    """Whether nothing stands between the projections and the products."""
    parts = (getattr(attention, name, None) for name in ("q_norm", "k_norm", "norm", "gate"))
    return isinstance(attention.qkv, nn.Linear) and all(
        part is None or isinstance(part, nn.Identity) for part in parts
    )


def _folded_attention(attention: Any, window: Any) -> NarrowAttention | NarrowWindowAttention:
    """The attention with its softmax scale in the queries' weights and its biases expanded."""
    h, values = attention.num_heads, attention.proj.in_features
    keys = (attention.qkv.out_features - values) // 2
    narrowed = narrow_attention(attention, keys // h, values // h)
    _scale_outputs(narrowed.qkv, attention.scale, slice(0, keys))
    narrowed.scale = 1.0
    if window is not None:
        mask = None if window.dynamic_mask else window.attn_mask
        bias = NarrowWindowAttention.biases(narrowed, mask).detach().clone()
        narrowed.__class__ = _WindowAttention
        narrowed.masked = not window.dynamic_mask
        narrowed.register_buffer("bias", bias, persistent=False)
    return narrowed


def _pads(block: Any) -> bool:
    sides = zip(block.input_resolution, block.window_size, strict=True)
    return block.dynamic_mask or any(side % window for side, window in sides)


def _fold_norm(norm: nn.Module, linear: nn.Linear) -> bool:
    """Gain and shift of a LayerNorm into the layer behind it; False where it is another norm."""
    if not isinstance(norm, nn.LayerNorm) or norm.weight is None:
        return False
    weight = _exactly(linear.weight)
    bias = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
    if linear.bias is not None:
        bias = _exactly(linear.bias)
    if norm.bias is not None:
        bias = bias + weight @ _exactly(norm.bias)
    _set(linear, weight * _exactly(norm.weight), bias)
    return True


def _scale_outputs(linear: nn.Linear, gain: Tensor | float, rows: slice) -> None:
    weight = _exactly(linear.weight).clone()
    gain = _exactly(gain) if isinstance(gain, Tensor) else gain
    weight[rows] *= gain[:, None] if isinstance(gain, Tensor) else gain
    bias = None if linear.bias is None else _exactly(linear.bias).clone()
    if bias is not None:
        bias[rows] *= gain
    _set(linear, weight, bias)


def _set(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    like = linear.weight
    linear.weight = nn.Parameter(weight.to(like.device, like.dtype), False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.to(like.device, like.dtype), False)


def _exactly(values: Tensor) -> Tensor:
    return values.detach() if values.is_meta else values.detach().to("cpu", torch.float64)


def within(model: nn.Module) -> Any:
    """The transformer that a deployed one wraps; any other model itself."""
    return model.model if isinstance(model, DeployedTransformer) else model

"""The channels that are free: those of Q, K, V and inside the FFNs, which only one module knows.

Every such channel has a gate: the weights that it is a multiple of. Scaling them by g scales the
channel by g, so that g = 0 cuts it, and the sum of weight x gradient over them is dL/dg.

Shape legend: C channels of a block's input, h heads, d channels of a head.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from timm.layers import Attention, Mlp
from timm.models.swin_transformer import SwinTransformer, WindowAttention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from evitlab.models.efficientvit import FFN, CascadedGroupAttention, EfficientViT
from evitlab.models.layers import ConvNorm
from evitlab.models.narrow import narrow_attention, select

SUPPORTED = "timm's VisionTransformer (ViT, DeiT) and SwinTransformer, or an EfficientViT"
_BLOCK = re.compile(r"^(?:.*\.)?blocks\.\d+(?=\.)")


@dataclass(frozen=True, eq=False)
class Slot:
    """Where in a parameter the weights of some channels stand: a range of one dimension."""

    parameter: nn.Parameter
    start: int = 0
    stop: int | None = None
    dim: int = 0

    def rows(self, values: Tensor) -> Tensor:
        """The part of a tensor shaped as the parameter, [channels, weights]: a view."""
        rows = values.transpose(0, self.dim)[self.start : self.stop]
        return rows[:, None] if rows.ndim == 1 else rows


Gate = tuple[Slot, ...]  # of a run of channels: all of the weights they are multiples of


def _slots(module: nn.Module, start: int = 0, stop: int | None = None) -> Gate:
    """Weight and bias of a layer or of a norm, for a range of its outputs."""
    parameters = (module.weight, module.bias)
    return tuple(Slot(p, start, stop) for p in parameters if isinstance(p, nn.Parameter))


class ChannelLayer:
    """A module with free channels.

    Attributes:
        name: dotted path of the module in its model.
        block: counted from 1 in execution order.
        input_dim: C.
        num_heads: h; 1 for an FFN.
        components: what is scored apart.
        widths: what is cut together, each with the components it holds.
    """

    components: ClassVar[tuple[str, ...]]
    widths: ClassVar[dict[str, tuple[str, ...]]]
    input_dim: int
    num_heads: int = 1

    def __init__(self, name: str, block: int) -> None:
        self.name, self.block = name, block

    def count(self, component: str) -> int:
        """Channels of a component ("q") or of a width ("qk": of Q, and as many of K)."""
        raise NotImplementedError

    def gates(self, component: str) -> tuple[Gate, ...]:
        """Together they hold the channels of the component in their order."""
        raise NotImplementedError

    def writers(self, component: str) -> tuple[Gate, ...]:
        """The weights whose size tells the channels' size."""
        return self.gates(component)

    def cut(self, model: nn.Module, keep: Mapping[str, Tensor]) -> None:
        """Leave only these channels, in place; a width that is not named stays whole.

        Args:
            model: that the layer was found in.
            keep: by width, int64 in ascending order, as many in each head.
        """
        raise NotImplementedError

    def _kept(self, keep: Mapping[str, Tensor], width: str) -> Tensor:
        return keep[width].cpu() if width in keep else torch.arange(self.count(width))


class TransformerAttention(ChannelLayer):
    """timm's attention, of ViT or of Swin."""

    components = ("q", "k", "v")
    widths: ClassVar = {"qk": ("q", "k"), "v": ("v",)}

    def __init__(self, name: str, block: int, attention: Any) -> None:
        super().__init__(name, block)
        self.attention, self.num_heads = attention, attention.num_heads
        qkv = attention.qkv
        if not isinstance(qkv, nn.Linear):
            raise ValueError(
                f"model: {name} has split-feature heads ({type(qkv).__name__}), whose channels "
                "cannot be cut; expected heads that see all channels"
            )
        for part in ("q_norm", "k_norm", "norm", "gate"):
            extra = getattr(attention, part, None)
            if extra is not None and not isinstance(extra, nn.Identity):
                raise ValueError(
                    f"model: {name}.{part} is a {type(extra).__name__}, which mixes the channels; "
                    "expected attention without norms or gates inside"
                )
        self.input_dim, self.values = qkv.in_features, attention.proj.in_features
        self.keys = (qkv.out_features - self.values) // 2

    def count(self, component: str) -> int:
        return self.values if component == "v" else self.keys

    def gates(self, component: str) -> tuple[Gate, ...]:
        start = {"q": 0, "k": self.keys, "v": 2 * self.keys}[component]
        return (_slots(self.attention.qkv, start, start + self.count(component)),)

    def cut(self, model: nn.Module, keep: Mapping[str, Tensor]) -> None:
        keys, values = self._kept(keep, "qk"), self._kept(keep, "v")
        rows = torch.cat([keys, keys + self.keys, values + 2 * self.keys])
        attention = narrow_attention(
            self.attention, len(keys) // self.num_heads, len(values) // self.num_heads
        )
        select(attention.qkv, outputs=rows)
        select(attention.proj, inputs=values)
        model.set_submodule(self.name, attention)


class TransformerFFN(ChannelLayer):
    """timm's Mlp. The gate stands behind the activation, where cutting means zero."""

    components = ("ffn",)
    widths: ClassVar = {"ffn": ("ffn",)}

    def __init__(self, name: str, block: int, mlp: Any) -> None:
        super().__init__(name, block)
        self.mlp = mlp
        norm = getattr(mlp, "norm", None)
        if norm is not None and not isinstance(norm, nn.Identity):
            raise ValueError(
                f"model: {name}.norm is a {type(norm).__name__}, which mixes the hidden channels; "
                "expected an FFN without a norm inside"
            )
        self.input_dim, self.hidden = mlp.fc1.in_features, mlp.fc1.out_features

    def count(self, component: str) -> int:
        return self.hidden

    def gates(self, component: str) -> tuple[Gate, ...]:
        return ((Slot(self.mlp.fc2.weight, dim=1),),)

    def writers(self, component: str) -> tuple[Gate, ...]:
        return (_slots(self.mlp.fc1),)

    def cut(self, model: nn.Module, keep: Mapping[str, Tensor]) -> None:
        select(self.mlp.fc1, outputs=keep["ffn"])
        select(self.mlp.fc2, inputs=keep["ffn"])


class CascadedAttention(ChannelLayer):
    """EfficientViT's attention; V's width is tied to the split, so it is scored and never cut."""

    components = ("q", "k", "v")
    widths: ClassVar = {"qk": ("q", "k")}

    def __init__(self, name: str, block: int, attention: Any) -> None:
        super().__init__(name, block)
        self.attention, self.num_heads = attention, attention.num_heads
        _require_batch_norm(name, attention)
        self.input_dim = attention.proj[1].bn.num_features
        self.key_dim = attention.key_dim

    def count(self, component: str) -> int:
        dim = self.attention.value_dim if component == "v" else self.key_dim
        return dim * self.num_heads

    def gates(self, component: str) -> tuple[Gate, ...]:
        """Behind the last BatchNorm that each of them meets, Q's being that of its kernel."""
        if component == "q":
            return tuple(_slots(dw.bn) for dw in self.attention.dws)
        start, stop = (1, 2) if component == "k" else (2, None)
        return tuple(
            _slots(qkv.bn, start * self.key_dim, stop and stop * self.key_dim)
            for qkv in self.attention.qkvs
        )

    def cut(self, model: nn.Module, keep: Mapping[str, Tensor]) -> None:
        d, attention = self.key_dim, self.attention
        heads = keep["qk"].cpu().view(self.num_heads, -1) % d
        values = torch.arange(2 * d, 2 * d + attention.value_dim)
        for kept, qkv, dw in zip(heads, attention.qkvs, attention.dws, strict=True):
            _select_outputs(qkv, torch.cat([kept, kept + d, values]))
            _select_outputs(dw, kept)
            dw.conv.in_channels = dw.conv.groups = len(kept)
        attention.key_dim = heads.shape[1]


class EfficientViTFFN(ChannelLayer):
    """EfficientViT's FFN, between two convolutions with BatchNorm."""

    components = ("ffn",)
    widths: ClassVar = {"ffn": ("ffn",)}

    def __init__(self, name: str, block: int, ffn: Any) -> None:
        super().__init__(name, block)
        self.ffn = ffn
        _require_batch_norm(name, ffn)
        self.input_dim, self.hidden = ffn.pw1.conv.in_channels, ffn.pw1.conv.out_channels

    def count(self, component: str) -> int:
        return self.hidden

    def gates(self, component: str) -> tuple[Gate, ...]:
        return ((Slot(self.ffn.pw2.conv.weight, dim=1),),)

    def writers(self, component: str) -> tuple[Gate, ...]:
        return (_slots(self.ffn.pw1.bn),)

    def cut(self, model: nn.Module, keep: Mapping[str, Tensor]) -> None:
        _select_outputs(self.ffn.pw1, keep["ffn"])
        select(self.ffn.pw2.conv, inputs=keep["ffn"])


_LAYERS = {
    Attention: TransformerAttention,
    WindowAttention: TransformerAttention,
    Mlp: TransformerFFN,
    CascadedGroupAttention: CascadedAttention,
    FFN: EfficientViTFFN,
}


def channel_layers(model: nn.Module) -> tuple[ChannelLayer, ...]:
    """The modules of a model that have free channels, in execution order.

    What stands between two stages, such as the FFNs around EfficientViT's subsampling, counts to
    the block that follows.

    Raises:
        ValueError: another kind of model, or one whose attention or FFN mixes its channels.
    """
    if not isinstance(model, (VisionTransformer, SwinTransformer, EfficientViT)):
        raise ValueError(f"model: expected {SUPPORTED}, got {type(model).__name__}")
    found = tuple(_found(model))
    if not found:
        raise ValueError(
            f"model: expected {SUPPORTED}, got a {type(model).__name__} without attention and FFN "
            "modules of its own"
        )
    return found


def _found(model: nn.Module) -> Iterator[ChannelLayer]:
    blocks: list[str] = []
    for name, module in model.named_modules():
        block = _BLOCK.match(name)
        if block and block[0] not in blocks:
            blocks.append(block[0])
        kind = next((layer for cls, layer in _LAYERS.items() if isinstance(module, cls)), None)
        if kind and (block or isinstance(model, EfficientViT)):
            yield kind(name, len(blocks) + (block is None), module)
        elif block and re.search(r"\.(attn|mlp)$", name) and not isinstance(model, EfficientViT):
            raise ValueError(
                f"model: {name} is a {type(module).__name__}, whose channels this does not know; "
                f"expected the attention and the Mlp of {SUPPORTED}"
            )


def cut_channels(model: nn.Module, keep: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Leave only these channels of a model, in place; the trained softmax scale stays.

    The widths that were cut stand in `model.channel_widths` afterwards: `save_weights` writes them
    and `narrow` makes them again.

    Args:
        model: as `channel_layers` takes it.
        keep: by module and width ("qk", "v", "ffn"), int64 channels that stay, in ascending order;
            at least one, and as many in each head.

    Raises:
        ValueError: a model that is not supported, no such module or width, or channels that are
            none of it or not as many in each head.
    """
    layers = {layer.name: layer for layer in channel_layers(model)}
    for name, widths in keep.items():
        if name not in layers:
            raise ValueError(f"widths: expected one of {', '.join(layers)}, got {name!r}")
        for width, channels in widths.items():
            _check_channels(layers[name], width, channels)
    cut: dict[str, dict[str, int]] = {**getattr(model, "channel_widths", {})}
    for name, widths in keep.items():
        layers[name].cut(model, widths)
        after = {width: len(channels) for width, channels in widths.items()}
        cut[name] = {**cut.get(name, {}), **after}
    model.channel_widths = cut  # type: ignore[assignment]


def narrow(model: nn.Module, widths: Mapping[str, Mapping[str, int]]) -> None:
    """Give a model the widths of a pruned one, in place, so that its weights fit.

    Args:
        model: as it was built, before it was pruned.
        widths: `channel_widths` of the pruned model.

    Raises:
        ValueError: as `cut_channels`.
    """
    if not widths:  # also of models that cannot be cut
        return
    layers = {layer.name: layer for layer in channel_layers(model)}
    keep: dict[str, dict[str, Tensor]] = {}
    for name, counts in widths.items():
        if name not in layers:
            raise ValueError(f"widths: expected one of {', '.join(layers)}, got {name!r}")
        layer = layers[name]
        keep[name] = {}
        for width, count in counts.items():
            _check_width(layer, width)
            channels = torch.arange(layer.count(width)).view(layer.num_heads, -1)
            keep[name][width] = channels[:, : count // layer.num_heads].flatten()
    cut_channels(model, keep)


def _check_width(layer: ChannelLayer, width: str) -> None:
    if width not in layer.widths:
        known = ", ".join(layer.widths)
        raise ValueError(f"widths: expected {known} of {layer.name}, got {width!r}")


def _check_channels(layer: ChannelLayer, width: str, channels: Tensor) -> None:
    _check_width(layer, width)
    total, heads = layer.count(width), layer.num_heads
    ordered = bool((channels[1:] > channels[:-1]).all())
    known = len(channels) > 0 and int(channels.min()) >= 0 and int(channels.max()) < total
    if not (ordered and known):
        raise ValueError(
            f"widths: expected ascending channels of 0 to {total - 1} for {width!r} of "
            f"{layer.name}, got {channels.tolist()}"
        )
    per_head = torch.bincount(channels * heads // total, minlength=heads)
    if (per_head != per_head[0]).any():
        raise ValueError(
            f"widths: expected as many channels of {width!r} in each head of {layer.name}, "
            f"got {per_head.tolist()}"
        )


def _select_outputs(layer: ConvNorm, channels: Tensor) -> None:
    select(layer.conv, outputs=channels)
    select(layer.bn, outputs=channels)


def _require_batch_norm(name: str, module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, ConvNorm) and not isinstance(part.bn, nn.BatchNorm2d):
            raise ValueError(
                f"model: {name} has a {type(part.bn).__name__}, which mixes the channels; "
                "expected BatchNorm"
            )

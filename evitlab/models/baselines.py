"""DeiT-T and Swin-T at any width, with any share of attention layers, built from timm's own parts.

Paper: Section 2.1 (Fig. 3: 24 layers, some attention and the rest FFNs) and Section 2.2 (Fig. 4:
heads that see all channels or each its own split).

Shape legend: B images, N tokens, C channels, h heads, d channels of a head. DeiT's layers see
[B, N, C], Swin's [B, H, W, C].
"""

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

import torch
from timm.layers import DropPath, Mlp, trunc_normal_
from timm.models.swin_transformer import (
    SwinTransformer,
    SwinTransformerBlock,
    WindowAttention,
)
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """Everything that defines one DeiT or Swin subnetwork.

    `depth` and `num_heads` hold one value for each stage: DeiT has one stage, Swin four, each twice
    as wide as the one before. A block has two layers; `attention_share` of all layers are
    attention, the rest FFNs: 0.5 is the original, one of each in every block.
    """

    family: Literal["deit", "swin"]
    embed_dim: int  # channels of the first stage
    depth: tuple[int, ...]  # blocks
    num_heads: tuple[int, ...]
    patch_size: int
    img_size: tuple[int, int] = (224, 224)
    in_chans: int = 3
    num_classes: int = 1000
    window_size: int = 7  # Swin's, tokens a side
    class_token: bool = True  # DeiT's; without it the mean of the tokens is classified
    attention_share: float = 0.5
    split_heads: bool = False  # each head sees its own split of the channels, not all of them
    mlp_ratio: float = 4.0
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        for name in ("embed_dim", "patch_size", "in_chans", "window_size"):
            value: Any = getattr(self, name)
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name}: expected a positive integer, got {value!r}")
        stages = 1 if self.family == "deit" else 4
        for name, count, least in (
            ("depth", stages, 1), ("num_heads", stages, 1), ("img_size", 2, self.patch_size),
        ):  # fmt: skip
            value = getattr(self, name)
            whole = isinstance(value, tuple) and all(isinstance(v, Integral) for v in value)
            if not whole or len(value) != count or min(value) < least:
                raise ValueError(
                    f"{name}: expected a tuple of {count} integers of at least {least}, "
                    f"got {value!r}"
                )
        if self.num_classes < 0:
            raise ValueError(f"num_classes: expected 0 or more, got {self.num_classes}")
        heads = self.num_heads[0]  # as many times more in each later stage as channels
        whole_heads = self.family == "deit" or self.split_heads  # timm's Swin may leave a rest
        if self.embed_dim < heads or (whole_heads and self.embed_dim % heads):
            raise ValueError(
                f"embed_dim: expected a multiple of the {heads} heads, got {self.embed_dim}"
            )
        if not 0 <= self.attention_share <= 1:
            raise ValueError(f"attention_share: expected 0 to 1, got {self.attention_share}")
        if self.class_token and self.family == "deit" and self.attention_layers == 0:
            raise ValueError(
                "class_token: expected False where no layer is attention, since nothing else "
                "brings the image to the class token"
            )
        if not 0 < self.mlp_ratio < math.inf:
            raise ValueError(f"mlp_ratio: expected more than 0, got {self.mlp_ratio}")
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate: expected 0 to below 1, got {self.drop_path_rate}")

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.embed_dim * 2**stage for stage in range(len(self.depth)))

    @property
    def attention_layers(self) -> int:
        """How many of the 2 x blocks layers are attention."""
        return round(self.attention_share * 2 * sum(self.depth))

    @property
    def layers(self) -> tuple[tuple[bool, bool], ...]:
        """For each block its two layers; True is attention.

        The original alternates attention and FFN. Below a share of one half some attention layers
        become FFNs, above it some FFNs become attention, in both cases evenly over the depth.

        Pitfall: the paper does not say which layers it exchanged; even spacing is our reading.
        """
        blocks = sum(self.depth)
        first = _evenly(min(self.attention_layers, blocks), blocks)
        second = _evenly(max(self.attention_layers - blocks, 0), blocks)
        return tuple(zip(first, second, strict=True))


BASELINES: dict[str, BaselineConfig] = {
    "deit_t": BaselineConfig(
        family="deit", embed_dim=192, depth=(12,), num_heads=(3,), patch_size=16
    ),
    "deit_t_p4": BaselineConfig(
        family="deit", embed_dim=192, depth=(12,), num_heads=(3,), patch_size=4, class_token=False
    ),
    "swin_t": BaselineConfig(
        family="swin", embed_dim=96, depth=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), patch_size=4
    ),
    "swin_t_p2": BaselineConfig(
        family="swin", embed_dim=96, depth=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), patch_size=2,
        window_size=4,
    ),
}  # fmt: skip


class SplitQKV(nn.Module):
    """The projection to Q, K and V where head j sees only channels j C/h to (j + 1) C/h.

    Takes the place of an attention's `qkv`: [..., C] -> [..., 3 C], Q, K and V head by head.

    Paper: Section 2.2, "feeding each head with only a split of the full features".
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        head_dim = dim // num_heads
        self.weight = nn.Parameter(torch.empty(num_heads, head_dim, 3 * head_dim))
        self.bias = nn.Parameter(torch.zeros(num_heads, 3 * head_dim))
        trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        heads, head_dim, _ = self.weight.shape
        splits = x.reshape(-1, heads, head_dim).transpose(0, 1)  # [h, tokens, d]
        out = torch.baddbmm(self.bias[:, None], splits, self.weight)  # [h, tokens, 3 d]
        out = out.view(heads, -1, 3, head_dim).permute(1, 2, 0, 3)  # [tokens, 3, h, d]
        return out.reshape(*x.shape[:-1], -1)


class WindowMixer(SwinTransformerBlock):
    """The windowed attention of a Swin block alone, without norms, FFN and residual sums."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name in ("norm1", "drop_path1", "norm2", "mlp", "drop_path2"):
            delattr(self, name)

    def forward(self, x: Tensor) -> Tensor:
        return self._attn(x)


class MixedBlock(nn.Module):
    """Two residual layers, x + layer(norm(x)), each of which may be attention or an FFN."""

    def __init__(
        self, dim: int, layer1: nn.Module, layer2: nn.Module, drop_path: float, *, eps: float
    ) -> None:
        super().__init__()
        self.norm1, self.layer1 = nn.LayerNorm(dim, eps=eps), layer1
        self.norm2, self.layer2 = nn.LayerNorm(dim, eps=eps), layer2
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.layer1(self.norm1(x)))
        return x + self.drop_path(self.layer2(self.norm2(x)))


def build_baseline(config: BaselineConfig) -> nn.Module:
    """The network: timm's model, with blocks exchanged where the configuration asks for it.

    At an attention share of one half without split heads it is timm's own `VisionTransformer` or
    `SwinTransformer`, untouched, and takes the weights of `deit_tiny_patch16_224` or
    `swin_tiny_patch4_window7_224`.
    """
    common: dict[str, Any] = {
        name: getattr(config, name)
        for name in ("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "mlp_ratio",
                     "drop_path_rate")
    }  # fmt: skip
    model: Any
    if config.family == "deit":
        model = VisionTransformer(
            **common,
            depth=config.depth[0],
            num_heads=config.num_heads[0],
            class_token=config.class_token,
            global_pool="token" if config.class_token else "avg",
        )
        stages = [model.blocks]
    else:
        model = SwinTransformer(
            **common,
            depths=config.depth,
            num_heads=config.num_heads,
            window_size=config.window_size,
        )
        stages = [stage.blocks for stage in model.layers]
    places = [(stage, i) for stage, blocks in enumerate(stages) for i in range(len(blocks))]
    for (stage, i), kinds in zip(places, config.layers, strict=True):
        if kinds != (True, False):
            stages[stage][i] = _mixed_block(config, stage, i, stages[stage][i], kinds)
    if config.split_heads:
        for module in model.modules():
            if isinstance(module, (Attention, WindowAttention)):
                split: Any = SplitQKV(module.qkv.in_features, module.num_heads)
                module.qkv = split
    return model


def _mixed_block(
    config: BaselineConfig, stage: int, index: int, block: Any, kinds: tuple[bool, bool]
) -> nn.Module:
    """A block of the given kinds in the place of timm's; True is attention.

    Swin shifts its windows in every other attention layer: here in the first layer of odd blocks,
    as in the original, and in the second of even ones.
    """
    dim, heads = config.dims[stage], config.num_heads[stage]

    def layer(slot: int) -> nn.Module:
        if not kinds[slot]:
            return Mlp(dim, round(dim * config.mlp_ratio))
        if config.family == "deit":
            return Attention(dim, heads, qkv_bias=True)
        shift = config.window_size // 2 * ((index + slot) % 2)
        window = config.window_size
        return WindowMixer(
            dim, block.input_resolution, heads, window_size=window, shift_size=shift
        )

    rate = getattr(block.drop_path1, "drop_prob", 0.0)
    mixed = MixedBlock(dim, layer(0), layer(1), rate, eps=block.norm1.eps)
    for module in mixed.modules():
        if isinstance(module, nn.Linear):  # as timm draws them
            trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return mixed


def _evenly(count: int, places: int) -> list[bool]:
    """`count` of `places` taken, in even distances."""
    taken = {int((i + 0.5) * places / count) for i in range(count)}
    return [place in taken for place in range(places)]

"""EfficientViT: sandwich blocks around cascaded group attention, in one file.

Paper: Section 3, Fig. 6 and Table 1.

Shape legend: B images, C channels, H x W the feature map, h heads, N tokens of a window,
d key width, w window side. Feature maps are [B, C, H, W]; module names are timm's, so that
state dicts differ from timm's in nothing and from the official ones by a renaming.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import SqueezeExcite
from timm.models import checkpoint_seq
from torch import Tensor, nn

from evitlab.models.config import STEM_STRIDES, EfficientViTConfig
from evitlab.models.layers import ConvNorm, NormLinear, Residual

ACTIVATIONS = {"relu": nn.ReLU, "hardswish": nn.Hardswish}


# Table 1, in the paper's order; kernels from the official build file.
VARIANTS: dict[str, EfficientViTConfig] = {
    f"efficientvit_{name}": EfficientViTConfig(
        embed_dim=embed_dim, depth=depth, num_heads=num_heads, kernels=kernels
    )
    for name, embed_dim, depth, num_heads, kernels in (
        ("m0", (64, 128, 192), (1, 2, 3), (4, 4, 4), (5, 5, 5, 5)),
        ("m1", (128, 144, 192), (1, 2, 3), (2, 3, 3), (7, 5, 3, 3)),
        ("m2", (128, 192, 224), (1, 2, 3), (4, 3, 2), (7, 5, 3, 3)),
        ("m3", (128, 240, 320), (1, 2, 3), (4, 3, 4), (5, 5, 5, 5)),
        ("m4", (128, 256, 384), (1, 2, 3), (4, 4, 4), (7, 5, 3, 3)),
        ("m5", (192, 288, 384), (1, 3, 4), (3, 3, 4), (7, 5, 3, 3)),
    )
}


class FFN(nn.Module):
    """Pointwise expansion, activation, pointwise projection; [B, C, H, W] -> same."""

    def __init__(self, dim: int, hidden: int, *, norm: str, activation: str) -> None:
        super().__init__()
        self.pw1 = ConvNorm(dim, hidden, norm=norm)
        self.act = ACTIVATIONS[activation]()
        self.pw2 = ConvNorm(hidden, dim, gain=0.0, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.pw2(self.act(self.pw1(x)))


class CascadedGroupAttention(nn.Module):
    """h heads on h channel splits, each adding its output to the next head's input.

    Works on windows of exactly `window` = (rows, columns): [B, C, *window] -> same.

    Paper: Section 3.1, Eqs. 2–3 and Fig. 6 (c).
    Pitfall: head j's output is added to split j + 1, so V's width is tied to the split's; with
    value_ratio != 1 the overlapping channels are added (the paper does not say what it did).
    """

    attention_bias_idxs: Tensor

    def __init__(self, stage: int, window: tuple[int, int], config: EfficientViTConfig) -> None:
        super().__init__()
        dim, key_dim = config.embed_dim[stage], config.key_dim[stage]
        self.num_heads = num_heads = config.num_heads[stage]
        self.key_dim = key_dim
        self.split_dim = dim // num_heads if config.split else dim
        self.value_dim = max(1, round(config.value_ratio * dim / num_heads))
        self.scale = key_dim**-0.5
        self.cascade = config.cascade
        self.window = window
        widths = self.split_dim, 2 * key_dim + self.value_dim
        self.qkvs = nn.ModuleList(ConvNorm(*widths, norm=config.norm) for _ in range(num_heads))
        self.dws = nn.ModuleList(
            ConvNorm(key_dim, key_dim, config.kernels[head], groups=key_dim, norm=config.norm)
            for head in range(num_heads)
        )
        self.softmax = nn.Softmax(dim=-1)  # a module, so that a hook sees each head's map
        self.proj = nn.Sequential(
            ACTIVATIONS[config.activation](),
            ConvNorm(num_heads * self.value_dim, dim, gain=0.0, norm=config.norm),
        )
        rows, columns = window
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, rows * columns))
        token = torch.arange(rows * columns)
        row, column = token // columns, token % columns
        offset = (row[:, None] - row).abs() * columns + (column[:, None] - column).abs()
        self.register_buffer("attention_bias_idxs", offset, persistent=False)  # [N, N]

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """x [B * windows, C, rows, columns]; padding [windows, N], True where a token is none."""
        B, _, H, W = x.shape
        bias = self.attention_biases.index_select(1, self.attention_bias_idxs.flatten())
        bias = bias.view(self.num_heads, H * W, H * W)
        splits = x.split(self.split_dim, 1) * (1 if self.split_dim < x.shape[1] else self.num_heads)
        outputs: list[Tensor] = []
        widths = [self.key_dim, self.key_dim, self.value_dim]
        for head, (qkv, dw) in enumerate(zip(self.qkvs, self.dws, strict=True)):
            feature = splits[head]
            if self.cascade and head > 0:
                feature = feature + _fit_channels(outputs[-1], self.split_dim)
            # Split with the channels last: so are then the gradients that are joined here.
            qkv_split = qkv(feature).permute(0, 2, 3, 1).split(widths, dim=-1)
            q, k, v = (part.permute(0, 3, 1, 2) for part in qkv_split)
            if padding is not None:  # a padded query must not reach real ones through its kernel
                q = _fill_windows(q, padding.view(-1, 1, H, W), 0.0)
            q, k, v = dw(q).flatten(2), k.flatten(2), v.flatten(2)  # [B, d, N]
            logits = torch.baddbmm(bias[head], q.transpose(1, 2), k, alpha=self.scale)  # [B, N, N]
            if padding is not None:
                logits = _fill_windows(logits, padding[:, None], float("-inf"))
            attention = self.softmax(logits)
            output = torch.bmm(attention, v.transpose(1, 2))  # [B, N, d]
            outputs.append(output.view(B, H, W, -1).permute(0, 3, 1, 2))
        return self.proj(torch.cat(outputs, 1))


def _fit_channels(x: Tensor, channels: int) -> Tensor:
    """Cut or zero-pad [B, C, H, W] to `channels`."""
    surplus = channels - x.shape[1]
    return F.pad(x, (0, 0, 0, 0, 0, surplus)) if surplus else x


def _fill_windows(x: Tensor, where: Tensor, value: float) -> Tensor:
    """Fill x [B * windows, …] where a [windows, …] mask is True."""
    return x.unflatten(0, (-1, where.shape[0])).masked_fill(where, value).flatten(0, 1)


class LocalWindowAttention(nn.Module):
    """Attention within windows of at most `window_size` tokens a side; [B, C, H, W] -> same.

    `map_size` is the feature map (rows, columns) the model is built for: where it is smaller
    than the window, the window shrinks to it. Maps of other sizes are padded to whole windows.

    Pitfall: the official code lets real tokens attend to that padding; `mask_padding=False`
    does the same. At 224 pixels there is none.
    """

    def __init__(self, stage: int, map_size: tuple[int, int], config: EfficientViTConfig) -> None:
        super().__init__()
        side = config.window_size[stage]
        self.window = min(side, map_size[0]), min(side, map_size[1])
        self.mask_padding = config.mask_padding
        self.attn = CascadedGroupAttention(stage, self.window, config)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        rows, columns = self.window
        if (H, W) == self.window:
            return self.attn(x)
        below, right = -H % rows, -W % columns
        padding = None
        if below or right:
            x = F.pad(x, (0, right, 0, below))
            if self.mask_padding:
                padding = x.new_ones(x.shape[2:], dtype=torch.bool)
                padding[:H, :W] = False
                padding = self._partition(padding[None, None]).flatten(1)  # [windows, N]
        grid = x.shape[2] // rows, x.shape[3] // columns
        x = self.attn(self._partition(x), padding).permute(0, 2, 3, 1)
        x = x.reshape(B, *grid, rows, columns, C).transpose(2, 3)
        x = x.reshape(B, grid[0] * rows, grid[1] * columns, C)[:, :H, :W]
        return x.permute(0, 3, 1, 2)

    def _partition(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B * windows, C, rows, columns]"""
        (rows, columns), (B, C, H, W) = self.window, x.shape
        x = x.permute(0, 2, 3, 1).reshape(B, H // rows, rows, W // columns, columns, C)
        return x.transpose(2, 3).reshape(-1, rows, columns, C).permute(0, 3, 1, 2)


def _ffn_layers(dim: int, drop: float, config: EfficientViTConfig, gain: float) -> list[nn.Module]:
    """Token interaction (a depthwise convolution) and FFN, each residual."""
    layers: list[nn.Module] = [
        FFN(dim, round(dim * config.ffn_ratio), norm=config.norm, activation=config.activation)
    ]
    if config.token_interaction:
        layers.insert(0, ConvNorm(dim, dim, 3, groups=dim, gain=gain, norm=config.norm))
    return [Residual(layer, drop) for layer in layers]


class EfficientViTBlock(nn.Sequential):
    """(depthwise convolution + FFN) x N, one attention, (depthwise convolution + FFN) x N.

    Paper: Section 3.1, Eq. 1 and Fig. 6 (b); N = 1 is the sandwich.
    """

    def __init__(
        self, stage: int, map_size: tuple[int, int], drop: float, config: EfficientViTConfig
    ) -> None:
        super().__init__()
        dim = config.embed_dim[stage]
        before, after = config.ffns
        for i in range(before + after + 1):
            if i == before:
                attention = LocalWindowAttention(stage, map_size, config)
                self.add_module("mixer", Residual(attention, drop))
                continue
            *interaction, ffn = _ffn_layers(dim, drop, config, gain=0.0)
            index = i - (i > before)
            for layer in interaction:
                self.add_module(f"dw{index}", layer)
            self.add_module(f"ffn{index}", ffn)


class PatchMerging(nn.Module):
    """Inverted residual with squeeze-excite that halves the map; [B, C, H, W] -> [B, C', H/2, W/2].

    Paper: Section 3.2, "EfficientViT subsample block".
    """

    def __init__(self, dim: int, out_dim: int, config: EfficientViTConfig) -> None:
        super().__init__()
        hidden = 4 * dim
        self.conv1 = ConvNorm(dim, hidden, norm=config.norm)
        self.act = ACTIVATIONS[config.activation]()
        self.conv2 = ConvNorm(hidden, hidden, 3, stride=2, groups=hidden, norm=config.norm)
        self.act2 = ACTIVATIONS[config.activation]()
        self.se = SqueezeExcite(hidden, 0.25)
        self.conv3 = ConvNorm(hidden, out_dim, norm=config.norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.se(self.act2(self.conv2(self.act(self.conv1(x))))))


class EfficientViTStage(nn.Module):
    """Subsampling between two FFNs (not in the first stage), then the blocks."""

    def __init__(
        self, stage: int, map_size: tuple[int, int], drops: Sequence[float],
        config: EfficientViTConfig,
    ) -> None:  # fmt: skip
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if stage > 0:
            dim, out_dim = config.embed_dim[stage - 1 : stage + 1]
            parts = {
                "res1": nn.Sequential(*_ffn_layers(dim, drops[0], config, gain=1.0)),
                "patchmerge": PatchMerging(dim, out_dim, config),
                "res2": nn.Sequential(*_ffn_layers(out_dim, drops[0], config, gain=1.0)),
            }
            self.downsample = nn.Sequential(OrderedDict(parts))
        blocks = (EfficientViTBlock(stage, map_size, drop, config) for drop in drops)
        self.blocks = nn.Sequential(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        if self.grad_checkpointing and self.training:
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


def check_images(x: Tensor, config: EfficientViTConfig) -> None:
    """Raises ValueError where images are not [B, in_chans, H, W], or smaller than a patch."""
    if x.ndim != 4 or x.shape[1] != config.in_chans:
        wanted = f"[B, {config.in_chans}, H, W]"
        raise ValueError(f"images: expected {wanted}, got {list(x.shape)}")
    if min(x.shape[2:]) < config.patch_size:
        least = config.patch_size
        raise ValueError(f"images: expected sides of at least {least}, got {list(x.shape[2:])}")


class EfficientViT(nn.Module):
    """The whole network: [B, in_chans, H, W] images -> [B, num_classes] logits.

    Takes images of any size; `config.img_size` only decides how far windows shrink on small
    maps, and with it the size of the attention-bias tables. With `config.distilled` a second
    classifier, `head_dist`, learns from a teacher: in training mode the result is the pair
    (labels' logits, teacher's logits), in evaluation their mean.

    Raises ValueError where the images' channels or size do not fit.

    Paper: Section 3, Table 1; the second head is that of Table 7. timm's model contract:
    `forward_features`, `forward_head`, `feature_info`, `no_weight_decay`, `group_matcher`,
    `get_classifier`, `reset_classifier`, `set_grad_checkpointing`.
    """

    head: nn.Module
    head_dist: nn.Module  # only where `config.distilled`
    pretrained_cfg: dict[str, Any]
    class_names: tuple[str, ...] = ()

    def __init__(self, config: EfficientViTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = self._stem(config)
        total = sum(config.depth)
        rates = [config.drop_path_rate * i / max(1, total - 1) for i in range(total)]
        stages, self.feature_info = [], []
        for stage, depth in enumerate(config.depth):
            reduction = config.patch_size * 2**stage
            map_size = tuple(-(-side // reduction) for side in config.img_size)
            drops, rates = rates[:depth], rates[depth:]
            stages.append(EfficientViTStage(stage, map_size, drops, config))
            info = {"num_chs": config.embed_dim[stage], "reduction": reduction}
            self.feature_info.append(info | {"module": f"stages.{stage}"})
        self.stages = nn.Sequential(*stages)
        self.num_features = self.head_hidden_size = config.embed_dim[-1]
        self.reset_classifier(config.num_classes)

    @staticmethod
    def _stem(config: EfficientViTConfig) -> nn.Sequential:
        """Overlapping patch embedding: four 3 x 3 convolutions, activations between."""
        dim = config.embed_dim[0]
        widths = (config.in_chans, dim // 8, dim // 4, dim // 2, dim)
        stem = nn.Sequential()
        for i, stride in enumerate(STEM_STRIDES[config.patch_size], start=1):
            conv = ConvNorm(widths[i - 1], widths[i], 3, stride=stride, norm=config.norm)
            stem.add_module(f"conv{i}", conv)
            if i < 4:
                stem.add_module(f"relu{i}", ACTIVATIONS[config.activation]())
        return stem

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if "attention_biases" in name}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters form a layer, for layer-wise decay: the stem, each block (the first of a
        stage with the subsampling before it), the heads; `coarse`: each stage."""
        blocks = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^patch_embed", "blocks": r"^stages\.(\d+)" if coarse else blocks}

    def get_classifier(self) -> Any:
        """The linear layer of the head, of both heads in a tuple where there are two."""
        linears = tuple(getattr(head, "linear", head) for head in self.heads)
        return linears if len(linears) > 1 else linears[0]

    @property
    def heads(self) -> tuple[nn.Module, ...]:
        """The classifier with its norm; two of them where `config.distilled`."""
        return (self.head, self.head_dist) if self.config.distilled else (self.head,)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool: expected 'avg', got {global_pool!r}")
        self.config = replace(self.config, num_classes=num_classes)
        like = next(self.patch_embed.parameters())
        width, norm = self.num_features, self.config.norm
        for name in ("head", "head_dist")[: 1 + self.config.distilled]:
            head = NormLinear(width, num_classes, norm=norm) if num_classes else nn.Identity()
            setattr(self, name, head.to(like.device, like.dtype).train(self.training))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass.

        Pitfall: BatchNorm's running statistics then move twice per step.
        """
        for module in self.modules():
            if isinstance(module, EfficientViTStage):
                module.grad_checkpointing = enable

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] -> [B, C, H', W'], a quarter of the patch grid's sides."""
        check_images(x, self.config)
        x = x.contiguous(memory_format=torch.channels_last)
        return self.stages(self.patch_embed(x))

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """[B, in_chans, H, W] -> the map of each stage, finest first, as `feature_info` says."""
        check_images(x, self.config)
        x = self.patch_embed(x.contiguous(memory_format=torch.channels_last))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Any:
        # Pooled with the channels last: so are then the gradients of the whole last stage.
        x = x.permute(0, 2, 3, 1).mean((1, 2))
        if pre_logits or not self.config.distilled:
            return x if pre_logits else self.head(x)
        logits, distilled = self.head(x), self.head_dist(x)
        return (logits, distilled) if self.training else (logits + distilled) / 2

    def forward(self, x: Tensor) -> Any:
        return self.forward_head(self.forward_features(x))

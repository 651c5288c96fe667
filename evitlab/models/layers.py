"""The layers that EfficientViT is made of, channels-last throughout.

Shape legend: B images, C channels, H x W the feature map; maps are [B, C, H, W].
"""

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d, trunc_normal_
from torch import Tensor, nn

from evitlab.models.depthwise import DepthwiseConv

FOLD_FROM = 1024  # positions of a map from which folding its BatchNorm on the way is faster


class PointwiseConv(nn.Conv2d):
    """1 x 1 convolution as one matrix product over the tokens: no copy in channels-last memory."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


class ConvNorm(nn.Sequential):
    """Convolution without bias, then normalisation; `gain` is the norm's initial weight."""

    conv: nn.Conv2d
    bn: nn.Module

    def __init__(
        self, in_chs: int, out_chs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1,
        gain: float = 1.0, norm: str = "batch",
    ) -> None:  # fmt: skip
        super().__init__()
        conv: type[nn.Conv2d] = PointwiseConv if kernel == 1 else nn.Conv2d
        if kernel > 1 and groups == in_chs == out_chs:
            conv = DepthwiseConv
        self.conv = conv(in_chs, out_chs, kernel, stride, kernel // 2, groups=groups, bias=False)
        bn = nn.BatchNorm2d(out_chs) if norm == "batch" else LayerNorm2d(out_chs)
        nn.init.constant_(bn.weight, gain)
        self.bn = bn

    def forward(self, x: Tensor) -> Tensor:
        bn = self.bn
        if (
            not isinstance(bn, nn.BatchNorm2d)
            or bn.training
            or x[:, 0].numel() < FOLD_FROM
            or torch.compiler.is_compiling()
        ):
            return bn(self.conv(x))
        # In evaluation BatchNorm is a fixed affine map; in the kernel it costs no pass of its own.
        assert bn.running_mean is not None and bn.running_var is not None
        scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
        shift = torch.addcmul(bn.bias, bn.running_mean, scale, value=-1)
        return self.conv._conv_forward(x, self.conv.weight * scale.view(-1, 1, 1, 1), shift)


class NormLinear(nn.Sequential):
    """The classifier: normalisation, then a linear layer; [B, C] -> [B, classes]."""

    linear: nn.Linear

    def __init__(self, in_features: int, out_features: int, *, norm: str = "batch") -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(in_features) if norm == "batch" else nn.LayerNorm(in_features)
        self.linear = nn.Linear(in_features, out_features)
        trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)


class Residual(nn.Module):
    """x + m(x), with m dropped for whole images at rate `drop` while training."""

    def __init__(self, m: nn.Module, drop: float = 0.0) -> None:
        super().__init__()
        self.m = m
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop == 0.0:
            return x + self.m(x)
        keep = x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(1 - self.drop).div_(1 - self.drop)
        return x + self.m(x) * keep

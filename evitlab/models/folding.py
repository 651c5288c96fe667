"""Linear layers with their BatchNorm folded in: W x + b, computed once in double precision."""

import torch
from torch import Tensor, nn

from evitlab.models.layers import ConvNorm, NormLinear


def fold_conv(layer: ConvNorm) -> tuple[Tensor, Tensor]:
    """Weight [out, in / groups, k, k] and bias [out] of a convolution and its BatchNorm, float64.

    Raises:
        ValueError: the norm is another one, which does not fold.
    """
    gain, shift = _affine(layer.bn)
    return layer.conv.weight.double() * gain.view(-1, 1, 1, 1), shift


def fold_linear(layer: NormLinear) -> tuple[Tensor, Tensor]:
    """Weight [out, in] and bias [out] of a BatchNorm and the linear layer behind it, float64."""
    gain, shift = _affine(layer.bn)
    weight = layer.linear.weight.double()
    return weight * gain, layer.linear.bias.double() + weight @ shift


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What a BatchNorm does in evaluation: x * gain + shift."""
    if not isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)) or norm.running_var is None:
        raise ValueError(
            "model: expected BatchNorm, which folds into the layer beside it, "
            f"got {type(norm).__name__}, whose statistics change with each image"
        )
    assert norm.running_mean is not None
    gain = norm.weight.double() * torch.rsqrt(norm.running_var.double() + norm.eps)
    return gain, norm.bias.double() - norm.running_mean.double() * gain

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
    return _exactly(layer.conv.weight) * gain.view(-1, 1, 1, 1), shift


def fold_linear(layer: NormLinear) -> tuple[Tensor, Tensor]:
    """Weight [out, in] and bias [out] of a BatchNorm and the linear layer behind it, float64."""
    gain, shift = _affine(layer.bn)
    weight = _exactly(layer.linear.weight)
    return weight * gain, _exactly(layer.linear.bias) + weight @ shift


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What a BatchNorm does in evaluation: x * gain + shift."""
    if not isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)) or norm.running_var is None:
        raise ValueError(
            "model: expected BatchNorm, which folds into the layer beside it, "
            f"got {type(norm).__name__}, whose statistics change with each image"
        )
    assert norm.running_mean is not None
    gain = _exactly(norm.weight) * torch.rsqrt(_exactly(norm.running_var) + norm.eps)
    return gain, _exactly(norm.bias) - _exactly(norm.running_mean) * gain


def _exactly(values: Tensor) -> Tensor:
    """In float64, and on the CPU, since not every accelerator has it."""
    return values.detach() if values.is_meta else values.detach().to("cpu", torch.float64)

"""Depthwise convolution whose weights' gradient is also quick on maps smaller than the kernel.

oneDNN, which computes torch's convolutions on a CPU, needs up to a hundred times its usual time for
the gradient of a depthwise kernel that has more rows than the map: the last stages at 32 and
64 pixels. There the gradient is a few products of shifted maps.

Shape legend: B images, C channels, H x W the feature map, k the kernel's side.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DepthwiseConv(nn.Conv2d):
    """`nn.Conv2d` with one kernel per channel; [B, C, H, W] -> same, or as the stride has it.

    The outputs are nn.Conv2d's to the bit. Pitfall: where the other formula is used the weights'
    gradient is summed in another order, so its last bits differ.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if (
            torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()
            and not torch.is_autocast_enabled("cpu")
            and weight.requires_grad
            and bias is None
            and x.device.type == "cpu"
            and x.dtype == weight.dtype
            and x.shape[2] < weight.shape[2]
            and self.stride == (1, 1)
            and self.dilation == (1, 1)
            and self.padding == (weight.shape[2] // 2, weight.shape[3] // 2)
        ):
            return _SmallMapConv.apply(x, weight)
        return super()._conv_forward(x, weight, bias)


class _SmallMapConv(torch.autograd.Function):
    """Stride 1 and as much padding as keeps the map's size; kernels have odd sides."""

    generate_vmap_rule = True  # torch.func.vmap goes through forward and backward

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        padding = weight.shape[2] // 2, weight.shape[3] // 2
        return F.conv2d(x, weight, padding=padding, groups=weight.shape[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            padding = [weight.shape[2] // 2, weight.shape[3] // 2]
            grad_x = torch.ops.aten.convolution_backward(
                grad, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], weight.shape[0],
                [True, False, False],
            )[0]  # fmt: skip
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(x, grad, weight)
        return grad_x, grad_weight


def _weight_gradient(x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """[C, 1, k, k]: at each place of the kernel the sum over the pixels that it joins.

    Differentiable itself, so gradients of gradients are right.
    """
    (H, W), (rows, columns) = x.shape[2:], weight.shape[2:]
    # Channels last: sums over B, H and W then run along rows of channels.
    x, grad = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)  # [B, H, W, C]
    sums = []
    for i in range(-(rows // 2), rows // 2 + 1):
        top, bottom = max(0, -i), min(H, H - i)  # of the outputs whose input is on the map
        for j in range(-(columns // 2), columns // 2 + 1):
            left, right = max(0, -j), min(W, W - j)
            if top < bottom and left < right:
                there = x[:, top + i : bottom + i, left + j : right + j]
                sums.append((grad[:, top:bottom, left:right] * there).sum((0, 1, 2)))
            else:
                sums.append(x.new_zeros(x.shape[-1]))
    return torch.stack(sums, 1).view_as(weight)

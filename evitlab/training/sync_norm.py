"""BatchNorm over the images of all processes, so that a run does not depend on how many there are.

torch's own SyncBatchNorm works on GPUs alone; this one works wherever processes can talk.

Pitfall: equal up to rounding, which training can magnify. One process with and without these norms
(efficientvit_m0_p4, 32 px, batch 32, AdamW at a rate of 2e-3, 8 steps): in float64 the losses agree
to 1e-14. In float32 they agree to 2e-7 at the first step and drift apart to 1e-3 .. 1e-2 within
the eight, since Adam's first steps follow the sign of a gradient, and rounding (a ReLU that flips)
decides some signs. At a rate of 1e-4 they stay within the 1e-5 that the tests ask for.

Shape legend: W processes, B images of a process, C channels, n positions of a channel (B, or
B * H * W of a map).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def synchronized_norms(model: nn.Module) -> Iterator[None]:
    """Within, the model's BatchNorms compute their statistics over all processes.

    Only the class of the modules changes, and back: parameters, buffers, hooks and the keys of
    the state dict stay what they are.

    Raises:
        ValueError: a kind of BatchNorm that is not known here.

    Pitfall: every process must run the model equally often, as the processes wait for each other.
    """
    swapped = [(part, type(part)) for part in model.modules() if isinstance(part, _BatchNorm)]
    for _, plain in swapped:
        if plain not in _SYNCED:
            raise ValueError(
                f"sync_norm: expected BatchNorms of torch or timm, got a {plain.__name__}; "
                "sync_norm=False normalises in each process by itself"
            )
    try:
        for module, plain in swapped:
            module.__class__ = _SYNCED[plain]
        yield
    finally:
        for module, plain in swapped:
            module.__class__ = plain


class _Synced(_BatchNorm):
    """The training-mode forward pass; evaluation is BatchNorm's own."""

    # Collectives are not traced: `torch.compile` runs this as it stands.
    @torch.compiler.disable
    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        mean, variance, count = _joint_statistics(input.detach())
        self._track(mean, variance, count)
        return _Normalize.apply(
            input, self.weight, self.bias, mean, (variance + self.eps).rsqrt(), count
        )

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics as BatchNorm does; the variance is the unbiased one."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.item()
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        unbiased = variance * (count / (count - 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


class SyncedBatchNorm1d(_Synced, nn.BatchNorm1d):
    """`nn.BatchNorm1d` over all processes."""


class SyncedBatchNorm2d(_Synced, nn.BatchNorm2d):
    """`nn.BatchNorm2d` over all processes."""


class SyncedBatchNormAct2d(_Synced, BatchNormAct2d):
    """timm's BatchNorm with an activation, over all processes."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return BatchNormAct2d.forward(self, x)
        return self.act(self.drop(_Synced.forward(self, x)))


_SYNCED: dict[type[nn.Module], Any] = {
    nn.BatchNorm1d: SyncedBatchNorm1d,
    nn.BatchNorm2d: SyncedBatchNorm2d,
    BatchNormAct2d: SyncedBatchNormAct2d,
}


def _joint_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [C], biased variance [C] and n [] of x [B, C, …] over all processes.

    Each sends its own mean and variance; they are put together by Chan's formula, since sums of
    squares would lose digits where the mean is far from zero. All in double precision, as torch
    adds up on a CPU.
    """
    positions = x[:, 0].numel()
    mean = x.sum(_all_but_channels(x), dtype=torch.float64) / positions
    centred = _centred(x, mean)
    variance = centred.square_().sum(_all_but_channels(x), dtype=torch.float64) / positions
    own = torch.cat([mean, variance, mean.new_tensor([positions])])
    rows = own.new_zeros(dist.get_world_size(), len(own))
    rows[dist.get_rank()] = own
    dist.all_reduce(rows)  # [W, 2C + 1]
    means, variances, counts = rows.split([len(mean), len(mean), 1], dim=1)
    count = counts.sum()
    share = counts / count  # [W, 1]
    joint = (share * means).sum(0)
    return joint, (share * (variances + (means - joint).square())).sum(0), count


class _Normalize(torch.autograd.Function):
    """(x - mean) * scale * weight + bias, with the gradients through mean and scale.

    Those sum over the images of all processes. The gradients of weight and bias are of this
    process's images, as those of any other parameter: they are averaged with the rest.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None,
        mean: Tensor, scale: Tensor, count: Tensor,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight, mean, scale, count)
        # BatchNorm's evaluation: one fused affine map. 1 / scale² is variance + eps.
        narrow = _wide(x[:0]).dtype
        variance = scale.square().reciprocal().to(narrow)
        return F.batch_norm(x, mean.to(narrow), variance, weight, bias, eps=0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        shape = (1, -1) + (1,) * (x.ndim - 2)
        centred, slope = _centred(x, mean), _wide(gradient)
        sums = torch.stack(
            [
                grad.sum(_all_but_channels(x), dtype=torch.float64)
                for grad in (slope, slope * centred)
            ]
        )  # [2, C]
        of_bias, of_weight = sums[0], sums[1] * scale
        joint = sums.clone()
        dist.all_reduce(joint)
        joint /= count
        # d x = weight * scale * (g - mean(g) - centred * scale² * mean(g * centred))
        lean = (joint[1] * scale.square()).to(slope.dtype)
        slope = slope - joint[0].to(slope.dtype).view(shape)
        slope -= centred.mul_(lean.view(shape))
        slope *= (scale if weight is None else weight * scale).to(slope.dtype).view(shape)
        if weight is None:
            return slope.to(x.dtype), None, None, None, None, None
        affine = of_weight.to(weight.dtype), of_bias.to(weight.dtype)
        return slope.to(x.dtype), *affine, None, None, None


def _centred(x: Tensor, mean: Tensor) -> Tensor:
    """x - mean, a new tensor like x in memory."""
    wide = _wide(x)
    return wide - mean.to(wide.dtype).view(1, -1, *[1] * (x.ndim - 2))


def _wide(x: Tensor) -> Tensor:
    """In single precision at least: what statistics are computed in."""
    return x if x.dtype == torch.float64 else x.float()


def _all_but_channels(x: Tensor) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))

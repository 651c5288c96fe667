"""What each attention head adds to a prediction: with the head off, and along a path of images.

Captum's conductance takes one layer in a sweep; one sweep gives it for all heads here. Both are
tested against captum's, layer by layer.

Shape legend: B images, n of them in one pass, w windows of an image, N queries, v width of V,
k heads that are computed together.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from evitlab.analysis.ablation import ablate_heads
from evitlab.analysis.capture import AttentionMaps, HeadOutputs, capture_attention
from evitlab.analysis.explaining import Explained


def head_ablation(explained: Explained) -> Tensor:
    """The loss when a head alone gives zero, [B, blocks, most heads]; NaN: no such head."""
    x, targets = explained.images, explained.targets
    counts: dict[int, int] = {}

    def count(block: AttentionMaps) -> None:
        counts[block.block] = block.num_heads

    with capture_attention(explained.model, each=count):
        before = explained.scores(x, targets)
    explained.expects(len(x) * (sum(counts.values()) + 1))
    found = before.new_full((len(x), len(counts), max(counts.values())), float("nan"))
    for block, heads in counts.items():
        for head in range(1, heads + 1):
            with ablate_heads(explained.model, {block: [head]}):
                found[:, block - 1, head - 1] = before - explained.scores(x, targets)
    return found


class _Steps(NamedTuple):
    """Some heads of a block, at points of the path one after the other."""

    block: int
    heads: range
    values: Tensor  # [points, n, w, k, N, v]
    gradients: Tensor  # the same shape, of the score


def head_conductance(explained: Explained, x0: Tensor, steps: int) -> Tensor:
    """[B, blocks, most heads]: the score's gradients by each head's outputs along the path from x0
    to the images, times how far the outputs moved.

    Passes hand the path's last point on to the next, so each point is computed once.
    """
    size = max(1, explained.batch_size // 8)  # few images, so that a pass has many points
    explained.expects(len(x0) * (steps + 1))
    parts = (whole.split(size) for whole in (explained.images, x0, explained.targets))
    found = []
    for x, before, targets in zip(*parts, strict=True):
        totals: dict[tuple[int, range], Tensor] = {}
        last: list[_Steps] = []
        points = torch.linspace(0, 1, steps + 1, dtype=x.dtype, device=x.device)
        for some in points.split(max(1, explained.batch_size // len(x))):
            path = before + some.view(-1, 1, 1, 1, 1) * (x - before)
            heads = _heads_of(explained, path, targets)
            joined = [
                _Steps(b.block, b.heads, torch.cat([a.values, b.values]),
                       torch.cat([a.gradients, b.gradients]))
                for a, b in zip(last, heads, strict=True)
            ] if last else heads  # fmt: skip
            for part in joined:
                moved = part.values.diff(dim=0)
                slope = (part.gradients[1:] + part.gradients[:-1]) / 2
                total = (moved * slope).sum((0, 2, 4, 5))  # [n, k]
                key = part.block, part.heads
                totals[key] = totals[key] + total if key in totals else total
            last = [
                part._replace(values=part.values[-1:], gradients=part.gradients[-1:])
                for part in heads
            ]
        blocks, most = max(key[0] for key in totals), max(key[1].stop for key in totals) - 1
        table = x.new_full((len(x), blocks, most), float("nan"))
        for (block, which), total in totals.items():
            table[:, block - 1, which.start - 1 : which.stop - 1] = total
        found.append(table)
    return torch.cat(found)


def _heads_of(explained: Explained, path: Tensor, targets: Tensor) -> list[_Steps]:
    """The heads' outputs along a path of images [points, n, 3, H, W], and the score's gradient."""
    parts: list[HeadOutputs] = []

    def keep(part: HeadOutputs) -> Tensor:
        own = part.values.clone()  # the tensor that the model goes on with
        parts.append(part._replace(values=own))
        return own

    def forget(_block: AttentionMaps) -> None:
        """Maps would be kept otherwise."""

    points = len(path)
    with capture_attention(explained.model, each=forget, edit=keep):
        scores = explained.forward(path.flatten(0, 1).requires_grad_())
    total = scores.gather(1, targets.repeat(points)[:, None]).sum()
    gradients = torch.autograd.grad(total, [part.values for part in parts])
    shape = (points, len(targets), -1)
    return [
        _Steps(part.block, part.heads, part.values.detach().unflatten(0, shape),
               slope.unflatten(0, shape))
        for part, slope in zip(parts, gradients, strict=True)
    ]  # fmt: skip

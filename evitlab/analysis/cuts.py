"""What a score means: the loss after single channels were cut, those scored low and high."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from evitlab.analysis.channels import channel_importance, scaled_channel
from evitlab.models.zoo import normalization
from evitlab.records import COMPONENTS, ChannelCut, ChannelCuts, ChannelScores
from evitlab.training.augment import normalize


def measure_cuts(
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    *,
    criterion: str = "taylor",
    components: Sequence[str] = ("q", "v", "ffn"),
    blocks: Sequence[int] | None = None,
    dataset: str | None = None,
    command: str = "",
    scale: str | None = None,
) -> ChannelCuts:
    """Cut the lowest and the highest channel of each component of each block, one at a time.

    Args:
        model: as `channel_importance` takes it; in evaluation mode meanwhile, left as it was.
        batch: images [B, C, H, W], uint8 or as the model takes them, and labels [B]: one batch, so
            that the score is that of the very loss that changes.
        criterion: of the scores, see `channel_importance`.
        components: "q", "k", "v", "ffn"; cutting a channel of K does what cutting that of Q does.
        blocks: counted from 1; None: all.
        dataset: of the images, kept in the record with `command` and `scale`.

    Raises:
        ValueError: as `channel_importance`; an unknown component or block.

    Pitfall: the score is a first-order prediction; a whole channel is no small step, so the loss
    changes by another amount, and the order of channels is what it is good for.
    """
    unknown = [name for name in components if name not in COMPONENTS]
    if unknown:
        raise ValueError(
            f"components: expected some of {', '.join(COMPONENTS)}, got {unknown[0]!r}"
        )
    importance = channel_importance(model, [batch], criterion=criterion)
    there = sorted({group.block for group in importance.channels})
    for block in blocks or ():
        if block not in there:
            raise ValueError(f"blocks: expected 1 to {there[-1]}, got {block}")
    groups = [
        group
        for group in importance.channels
        if group.component in components and (blocks is None or group.block in blocks)
    ]
    images, labels = batch
    if images.dtype == torch.uint8:
        images = normalize(images, *normalization(model))
    modes = [(module, module.training) for module in model.modules()]
    cuts = []
    try:
        model.eval()
        loss = _loss(model, images, labels)
        for group in tqdm(groups, desc="cuts", unit="layer", leave=False, delay=2):
            for channel in _ends(group):
                with scaled_channel(model, group.name, group.component, channel):
                    change = _loss(model, images, labels) - loss
                cuts.append(_cut(group, channel, change))
    finally:
        for module, was_training in modes:
            module.training = was_training
    card = dataclasses.replace(importance.environment, dataset=dataset, scale=scale)
    return ChannelCuts(importance.model, criterion, len(labels), loss, tuple(cuts), command, card)


def _ends(group: ChannelScores) -> tuple[int, int]:
    """The channels with the lowest and with the highest score."""
    order = sorted(range(len(group.scores)), key=group.scores.__getitem__)
    return order[0], order[-1]


def _cut(group: ChannelScores, channel: int, change: float) -> ChannelCut:
    score = group.scores[channel]
    rank = sum(other < score for other in group.scores) / max(1, len(group.scores) - 1)
    return ChannelCut(
        group.block, group.name, group.component, channel, score, min(rank, 1.0), change
    )


@torch.no_grad()
def _loss(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy, summed in float64 so that small changes are not lost."""
    return F.cross_entropy(model(images).double(), labels).item()

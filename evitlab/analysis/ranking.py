"""Which channels go first: all blocks and components ranked together by score per cost.

What is cut at once is a unit: of Q and K, or of V, the lowest channel left in each head of a block,
since heads of one width stay one batched product; of an FFN one hidden channel.

A Taylor score is a squared change of the loss, so that while changes are independent the scores of
units add up, and taking the lowest score per cost first gives the least sum for a budget. It is the
same loss everywhere, so its scores are compared as they are. The magnitude of weights is not: there
scores are divided by the mean of their layer and component.

Paper: Section 2.3; Molchanov et al. 2019, Section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evitlab.models.channels import ChannelLayer, channel_layers, cut_channels
from evitlab.models.cost import count_macs_by_module, without_values
from evitlab.records import ChannelImportance

Size = int | tuple[int, int] | None
Key = tuple[str, str]  # a module's dotted path, and one of its widths: "qk", "v", "ffn"


@dataclass(frozen=True)
class Unit:
    """Channels that are cut at once: the `index`-th lowest of each head."""

    key: Key
    index: int
    score: float
    cost: int  # what is saved by cutting it: multiply-accumulates, or channels


def channel_orders(
    layers: Sequence[ChannelLayer], importance: ChannelImportance
) -> dict[Key, tuple[Tensor, Tensor]]:
    """For each width its scores [h, d] in ascending order within each head, and whose they are.

    Q and K have one score together, the mean of both.

    Raises:
        ValueError: the scores are those of another model.
    """
    found = {(group.name, group.component): group.scores for group in importance.channels}
    orders: dict[Key, tuple[Tensor, Tensor]] = {}
    for layer in layers:
        for width, components in layer.widths.items():
            total = torch.zeros(layer.count(width), dtype=torch.float64)
            for component in components:
                scores = torch.tensor(found.get((layer.name, component), ()), dtype=torch.float64)
                if len(scores) != len(total):
                    raise ValueError(
                        f"importance: expected scores of this model, with {len(total)} channels "
                        f"of {component!r} in {layer.name}, got {len(scores)}"
                    )
                if importance.criterion == "magnitude":
                    scores = scores / scores.mean().clamp_min(1e-300)
                total += scores / len(components)
            lowest = total.view(layer.num_heads, -1).sort(dim=1, stable=True)
            orders[layer.name, width] = lowest.values, lowest.indices
    return orders


def ranked(
    orders: Mapping[Key, tuple[Tensor, Tensor]],
    costs: Mapping[Key, int],
    least: Mapping[str, int],
) -> list[Unit]:
    """All units that may be cut, the lowest score per cost first.

    Args:
        orders: from `channel_orders`.
        costs: of one unit of each width; a width that is not named stays whole.
        least: by width, channels that stay in each head.
    """
    units = [
        Unit(key, index, score, costs[key])
        for key, (scores, _) in orders.items()
        if key in costs
        for index, score in enumerate(
            scores.sum(0)[: max(0, scores.shape[1] - least[key[1]])].tolist()
        )
    ]
    return sorted(units, key=lambda unit: unit.score / unit.cost)


def lowest(units: Sequence[Unit], need: int) -> dict[Key, int]:
    """How many units of each width go, to save at least `need` and no more than it takes.

    The lowest go until enough is saved; of the last ones of each width those come back, the highest
    first, that the rest can do without.
    """
    taken: list[Unit] = []
    saved = 0
    for unit in units:
        if saved >= need:
            break
        taken.append(unit)
        saved += unit.cost
    cut: dict[Key, int] = {}
    for unit in taken:
        cut[unit.key] = max(cut.get(unit.key, 0), unit.index + 1)
    for unit in reversed(taken):
        if unit.index + 1 == cut[unit.key] and saved - unit.cost >= need:
            cut[unit.key] -= 1
            saved -= unit.cost
    return {key: count for key, count in cut.items() if count}


def cut_lowest(
    model: nn.Module, orders: Mapping[Key, tuple[Tensor, Tensor]], cut: Mapping[Key, int]
) -> None:
    """Leave so many units out, the lowest of each width, in place."""
    keep: dict[str, dict[str, Tensor]] = {}
    for key, count in cut.items():
        name, width = key
        _, indices = orders[key]
        d = indices.shape[1]
        starts = d * torch.arange(len(indices))[:, None]
        kept = indices[:, count:].sort(dim=1).values + starts
        keep.setdefault(name, {})[width] = kept.flatten()
    cut_channels(model, keep)


def unit_macs(model: nn.Module, img_size: Size) -> dict[Key, int]:
    """Multiply-accumulates of one unit of each width, for one image.

    The cost of a module is linear in each of its widths, none of which another depends on: it is
    the difference of two counts, and stays the same while others are cut.
    """
    layers = channel_layers(model)
    whole = count_macs_by_module(model, img_size)
    costs: dict[Key, int] = {}
    for widths in (("qk", "ffn"), ("v",)):  # at once those that no module holds together
        keep: dict[str, dict[str, Tensor]] = {}
        for layer in layers:
            for width in set(widths) & set(layer.widths):
                if layer.count(width) > layer.num_heads:  # else there is none to be cut
                    channels = torch.arange(layer.count(width)).view(layer.num_heads, -1)
                    keep[layer.name] = {width: channels[:, 1:].flatten()}
        if keep:
            ghost = without_values(model)
            cut_channels(ghost, keep)
            narrower = count_macs_by_module(ghost, img_size)
            costs |= {
                (name, width): whole[name] - narrower[name] for name in keep for width in keep[name]
            }
    return costs

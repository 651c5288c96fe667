"""Prune: leave out the channels that matter least for what they cost, down to a budget.

Paper: Section 2.3 (Fig. 5). `evitlab.analysis.ranking` says what is cut first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from evitlab.analysis.channels import Batches, channel_importance
from evitlab.analysis.ranking import (
    Key,
    Size,
    channel_orders,
    cut_lowest,
    lowest,
    ranked,
    unit_macs,
)
from evitlab.analysis.throughput import measure_throughput
from evitlab.models.channels import ChannelLayer, channel_layers
from evitlab.models.cost import count_macs, count_params
from evitlab.models.zoo import model_name
from evitlab.records import (
    WIDTHS,
    ChannelImportance,
    ChannelWidths,
    PruningRecord,
    environment_card,
)

# A throughput is searched for with so many models, each timed in so many rounds at most, and
# asked for again so often where the model found turns out slower.
SEARCHES, ROUNDS, SECONDS, RETRIES = 6, 9, 3.0, 3


@dataclass(frozen=True, eq=False)
class PruneResult:
    """What `prune` returns.

    Attributes:
        model: a smaller, ordinary module, in the mode of the model that was pruned; it trains,
            saves, loads, deploys and exports as that does.
        record: what was cut.
    """

    model: nn.Module
    record: PruningRecord


def prune(
    model: nn.Module,
    importance: ChannelImportance | Batches | None,
    *,
    macs: float | None = None,
    keep: float | Mapping[str, float] | None = None,
    throughput: float | None = None,
    steps: int | None = None,
    minimum: int | Mapping[str, int] = 1,
    criterion: str = "taylor",
    batch_size: int = 64,
    img_size: Size = None,
    seed: int = 0,
    command: str = "",
) -> PruneResult:
    """A smaller copy of a model, within a budget; the model passed in is untouched.

    All heads of a block keep the same number of channels, Q and K the same, and the softmax its
    trained scale. V of an EfficientViT stays whole, as its width is tied to the split's.

    Args:
        model: as `channel_importance` takes it.
        importance: scores of this model, or what to take them from: batches that can be read
            again, or a data set; None where the criterion needs no images.
        macs: multiply-accumulates for one image that may be left: a float up to 1 is a share of the
            model's, anything else their number.
        keep: share of the channels that may stay, 0 to 1, over all blocks: one for every width, or
            by width ("qk", "v", "ffn"); widths that are not named stay whole.
        throughput: images per second to reach, as a multiple of the model's, both measured here in
            turns (eager, `batch_size` images, the threads and device in use).
        steps: cuts on the way to the budget, with the scores refreshed before each; None is 5 from
            batches, and 1 from scores.
        minimum: channels that stay in any case, in each head for "qk" and "v"; one number, or by
            width.
        criterion: see `channel_importance`; of no effect where scores are given.
        batch_size: images per batch of a data set, and of a throughput measurement.
        img_size: at which multiply-accumulates are counted; None takes the model's own.
        seed: of the criterion "random".
        command: the command line that regenerates the record, kept in it.

    Returns:
        Model and record; the budget is reached from below, as close as whole units allow.

    Raises:
        ValueError: not exactly one budget, one above the model's or below what the minimum widths
            reach; scores of another model; or as `channel_importance`.

    Paper: Section 2.3.
    Pitfall: a model right after pruning can be at chance: train it before judging (`train`).

    Example:
        >>> model = evitlab.create_model("efficientvit_m0_p4", img_size=32, num_classes=10).eval()
        >>> batches = [(torch.rand(8, 3, 32, 32), torch.arange(8))]
        >>> smaller = evitlab.prune(model, batches, macs=0.7, steps=1).model
        >>> evitlab.count_macs(smaller) <= 0.7 * evitlab.count_macs(model)
        True
    """
    budgets = {"macs": macs, "keep": keep, "throughput": throughput}
    given: Any = {name: value for name, value in budgets.items() if value is not None}
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise ValueError(f"budget: expected one of macs, keep and throughput, got {got}")
    given_scores = importance if isinstance(importance, ChannelImportance) else None
    needs_images = criterion in ("taylor", "abs-taylor")
    if steps is None:
        steps = 1 if given_scores or not needs_images else 5
    if steps < 1 or (given_scores and steps > 1):
        expected = "1 where scores are given" if given_scores else "at least 1"
        raise ValueError(f"steps: expected {expected}, got {steps}")
    if isinstance(importance, Iterator):
        raise ValueError(
            "importance: expected batches that can be read again, such as a list, got an iterator"
        )
    img_size = img_size or own_img_size(model)
    least = _minimum(minimum)

    def scores(of: nn.Module) -> ChannelImportance:
        if given_scores:
            return given_scores
        batches: Any = importance
        options: Any = {"criterion": criterion, "batch_size": batch_size, "seed": seed}
        return channel_importance(of, batches, **options)

    layers = channel_layers(model)
    macs_before = count_macs(model, img_size)
    shares: dict[str, float] = {}
    costs: dict[Key, int] = {}
    budget = 0
    if keep is not None:
        shares = _shares(keep, layers, least)
    else:
        costs = unit_macs(model, img_size)
    if macs is not None:
        budget = _budget(macs, macs_before, macs_before - _most_saved(layers, costs, least))
    if throughput is not None:
        search = _Search(model, throughput, img_size, batch_size)
        budget = search.macs(scores(model), macs_before, costs, least)

    def cut_down(target: int) -> tuple[nn.Module, ChannelImportance]:
        pruned, need = copy.deepcopy(model), macs_before - target
        bar = tqdm(range(steps, 0, -1), desc="prune", unit="cut", leave=False, delay=2)
        for left in bar:  # an equal part of what is to go in each step
            found = scores(pruned)
            if keep is not None:
                _cut_channels_to(pruned, found, shares, left, layers, least)
            else:
                need -= _save_macs(pruned, found, -(-need // left), costs, least)
        return pruned, found

    pruned, last = cut_down(budget)
    if throughput is not None:
        pruned = search.confirmed(pruned, budget, lambda target: cut_down(target)[0])
    return PruneResult(
        pruned,
        PruningRecord(
            model=model_name(model),
            criterion=last.criterion,
            images=last.images,
            budget=shares or {name: float(value) for name, value in given.items()},
            steps=steps,
            macs_before=macs_before,
            macs_after=count_macs(pruned, img_size),
            params_before=count_params(model),
            params_after=count_params(pruned),
            widths=_widths(layers, channel_layers(pruned)),
            command=command,
            environment=environment_card(
                device=next(model.parameters()).device,
                precision=last.environment.precision,
                batch_size=last.environment.batch_size,
                seed=last.environment.seed,
                dataset=last.environment.dataset,
            ),
        ),
    )


def own_img_size(model: nn.Module) -> Size:
    """Height and width that a model of timm was built for; None where `pretrained_cfg` says it."""
    size: Any = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return tuple(size) if size else None


def _save_macs(
    model: nn.Module,
    importance: ChannelImportance,
    need: int,
    costs: Mapping[Key, int],
    least: Mapping[str, int],
) -> int:
    """Cut what saves at least so many multiply-accumulates, in place; how many it saved."""
    orders = channel_orders(channel_layers(model), importance)
    cut = lowest(ranked(orders, costs, least), need)
    cut_lowest(model, orders, cut)
    return sum(costs[key] * count for key, count in cut.items())


def _most_saved(
    layers: Sequence[ChannelLayer], costs: Mapping[Key, int], least: Mapping[str, int]
) -> int:
    """Multiply-accumulates between the whole model and the minimum widths."""
    return sum(
        costs[layer.name, width] * max(0, layer.count(width) // layer.num_heads - least[width])
        for layer in layers
        for width in layer.widths
        if (layer.name, width) in costs
    )


def _cut_channels_to(
    model: nn.Module,
    importance: ChannelImportance,
    shares: Mapping[str, float],
    left: int,
    whole: Sequence[ChannelLayer],
    least: Mapping[str, int],
) -> None:
    """Cut a `left`-th of what stands above each width's share of the whole model's, in place."""
    layers = channel_layers(model)
    orders = channel_orders(layers, importance)
    cut: dict[tuple[str, str], int] = {}
    for width, share in shares.items():
        holders = [layer for layer in layers if width in layer.widths]
        costs = {(layer.name, width): layer.num_heads for layer in holders}
        now = sum(layer.count(width) for layer in holders)
        allowed = share * sum(layer.count(width) for layer in whole if width in layer.widths)
        need = -(-(now - int(allowed + 1e-6)) // left)
        cut |= lowest(ranked(orders, costs, least), need)
    cut_lowest(model, orders, cut)


def _minimum(minimum: int | Mapping[str, int]) -> dict[str, int]:
    given = dict.fromkeys(WIDTHS, minimum) if isinstance(minimum, int) else dict(minimum)
    for width, count in given.items():
        if width not in WIDTHS or not isinstance(count, int) or count < 1:
            raise ValueError(
                f"minimum: expected at least 1 channel, for {', '.join(WIDTHS)}, got "
                f"{count!r} for {width!r}"
            )
    return dict.fromkeys(WIDTHS, 1) | {width: int(count) for width, count in given.items()}


def _least_widths(
    layers: Sequence[ChannelLayer], least: Mapping[str, int]
) -> dict[str, dict[str, int]]:
    return {
        layer.name: {
            width: min(layer.count(width), least[width] * layer.num_heads) for width in layer.widths
        }
        for layer in layers
    }


def _budget(macs: float, whole: int, smallest: int) -> int:
    """The budget in multiply-accumulates."""
    is_share = not isinstance(macs, int) and 0 < macs <= 1
    budget = int(macs * whole) if is_share else int(macs)
    if not smallest <= budget <= whole:
        raise ValueError(
            f"macs: expected {smallest / whole:.3f} to 1 as a share, or {smallest:,} (all widths "
            f"at their minimum) to {whole:,} (the whole model), got {macs:,}"
        )
    return budget


def _shares(
    keep: float | Mapping[str, float],
    layers: Sequence[ChannelLayer],
    least: Mapping[str, int],
) -> dict[str, float]:
    """By width, the share of its channels that may stay."""
    there = [width for width in WIDTHS if any(width in layer.widths for layer in layers)]
    shares = dict(keep) if isinstance(keep, Mapping) else dict.fromkeys(there, keep)
    smallest = _least_widths(layers, least)
    for width, share in shares.items():
        if width not in there:
            raise ValueError(f"keep: expected widths of {', '.join(there)}, got {width!r}")
        holders = [layer for layer in layers if width in layer.widths]
        whole = sum(layer.count(width) for layer in holders)
        fewest = sum(smallest[layer.name][width] for layer in holders)
        if not fewest / whole <= share <= 1:
            raise ValueError(
                f"keep: expected {fewest / whole:.3f} (the minimum width everywhere) to 1 for "
                f"{width!r}, got {share}"
            )
    return {width: float(share) for width, share in shares.items()}


def _widths(
    before: Sequence[ChannelLayer], after: Sequence[ChannelLayer]
) -> tuple[ChannelWidths, ...]:
    return tuple(
        ChannelWidths(
            block=old.block,
            name=old.name,
            component=width,
            before=old.count(width),
            after=new.count(width),
            input_dim=old.input_dim,
        )
        for old, new in zip(before, after, strict=True)
        for width in old.widths
    )


class _Search:
    """Looks for the most multiply-accumulates at which a throughput is reached.

    Both models are timed in turns, in a process of their own.
    """

    def __init__(self, model: nn.Module, wanted: float, img_size: Size, batch_size: int) -> None:
        if not wanted > 1:
            raise ValueError(f"throughput: expected more than 1, the model's own, got {wanted}")
        self.model, self.wanted, self.img_size = model, wanted, img_size
        self.batch_size = batch_size

    def ratio(self, pruned: nn.Module) -> float:
        """How many times as fast as the model."""
        size = self.img_size
        if isinstance(size, tuple) and size[0] != size[1]:
            raise ValueError(f"throughput: expected square images, got {size}")
        models = [copy.deepcopy(module).eval() for module in (self.model, pruned)]
        rows = measure_throughput(
            models,
            batch_sizes=(self.batch_size,),
            devices=(next(pruned.parameters()).device.type,),
            rounds=ROUNDS,
            seconds=SECONDS,
            img_size=size[0] if isinstance(size, tuple) else size,
        )
        for row in rows:
            if row.img_per_s is None:
                raise ValueError(f"throughput: the measurement failed ({row.error})")
        speeds = [row.img_per_s or 0.0 for row in rows]
        return speeds[1] / speeds[0]

    def macs(
        self,
        importance: ChannelImportance,
        whole: int,
        costs: Mapping[Key, int],
        least: Mapping[str, int],
    ) -> int:
        """The budget, found by halving between the minimum widths and the whole model."""
        low, high = whole - _most_saved(channel_layers(self.model), costs, least), whole
        for search in tqdm(
            range(SEARCHES + 1), desc="throughput", unit="model", leave=False, delay=2
        ):
            middle = (low + high) // 2 if search else low
            candidate = copy.deepcopy(self.model)
            _save_macs(candidate, importance, whole - middle, costs, least)
            reached = self.ratio(candidate)
            if not search and reached < self.wanted:
                raise ValueError(
                    f"throughput: expected at most {reached:.2f}, which the minimum widths reach, "
                    f"got {self.wanted}"
                )
            if reached >= self.wanted:
                low = middle
            else:
                high = middle
        return low

    def confirmed(
        self, pruned: nn.Module, budget: int, cut_down: Callable[[int], nn.Module]
    ) -> nn.Module:
        """The pruned model, or one cut further where refreshed scores made it too slow."""
        reached = self.ratio(pruned)
        for _ in range(RETRIES):
            if reached >= self.wanted:
                return pruned
            budget = int(budget * max(0.8, reached / self.wanted))
            pruned = cut_down(budget)
            reached = self.ratio(pruned)
        if reached < self.wanted:
            raise ValueError(
                f"throughput: expected what refreshed scores reach, {reached:.2f}, "
                f"got {self.wanted}; steps=1 keeps the scores"
            )
        return pruned

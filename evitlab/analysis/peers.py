"""Pruning beside a peer: Torch-Pruning on the same model, to the same budget, with the same data.

Torch-Pruning (Fang et al., CVPR 2023) follows the dependencies between layers through any network.
It cuts Q, K and V of a head together, since timm has them in one tensor, so it cannot show Fig. 5.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.swin_transformer import WindowAttention
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from tqdm.auto import tqdm

from evitlab.analysis.pruning import prune
from evitlab.analysis.recovery import sample
from evitlab.datasets import AnyDataset
from evitlab.models.cost import count_macs, count_params
from evitlab.models.zoo import model_name, normalization
from evitlab.records import PrunedPeer, PruningComparison, environment_card
from evitlab.training.augment import normalize
from evitlab.training.classifier import train
from evitlab.training.evaluation import evaluate
from evitlab.training.recipe import Recipe

_STEPS = 50  # of Torch-Pruning's ratio, from all channels to none: the budget is met within one
_ATTENTION = (Attention, WindowAttention)


def prune_with_torch_pruning(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    macs: float,
    steps: int = 5,
    whole: bool = False,
) -> nn.Module:
    """A copy of a model, pruned by Torch-Pruning with its own Taylor score over all layers at once.

    Args:
        model: DeiT or Swin of timm's parts; not touched.
        batches: images [B, C, H, W] as the model takes them, and labels [B]; read `steps` times.
        macs: share of the multiply-accumulates that may be left, 0 to 1.
        steps: how often the scores are taken anew.
        whole: False cuts what the library's own `prune` cuts, the channels of heads and FFNs;
            True the width of the network too, Torch-Pruning's default (DeiT only: it does not know
            how timm's Swin merges patches).

    Raises:
        ValueError: a model without timm's attention, a budget outside of 0 to 1 or below what is
            reachable.
        ImportError: Torch-Pruning is not installed; the message says how.

    Pitfall: Torch-Pruning does not know that the fused attention of timm takes its softmax scale
    from the width of a head: the copy runs attention unfused, with the trained scale.
    """
    peer = _torch_pruning()
    batches = list(batches)
    _check(model, macs, steps, whole)
    small = copy.deepcopy(model)
    attentions: list[Any] = [m for m in small.modules() if isinstance(m, _ATTENTION)]
    for attention in attentions:
        attention.fused_attn = False
    height, width = batches[0][0].shape[-2:]
    size = height, width
    whole_macs = count_macs(small, size)
    with _quiet(), torch.enable_grad():
        small.eval()  # no dropout: scores of the network that is measured
        pruner = peer.pruner.BasePruner(
            small,
            batches[0][0][:1],
            importance=peer.importance.TaylorImportance(),
            global_pruning=True,
            pruning_ratio=1.0,
            iterative_steps=_STEPS,
            ignored_layers=_left_alone(small, whole),
            num_heads={attention.qkv: attention.num_heads for attention in attentions},
        )
        cuts, refreshed = 0, 0
        while (left := count_macs(small, size)) > macs * whole_macs:
            if (whole_macs - left) * steps >= refreshed * (1 - macs) * whole_macs:
                _take_gradients(small, batches)
                refreshed += 1
            if cuts == _STEPS or not _cut(pruner, attentions):
                raise ValueError(
                    f"macs: expected a share that Torch-Pruning can reach, got {macs:g}; it stops "
                    f"at {left / whole_macs:.2f}"
                )
            cuts += 1
    for parameter in small.parameters():
        parameter.grad = None
    small.train(model.training)
    return small


def kept_channels(model: nn.Module, pruned: nn.Module) -> dict[str, float]:
    """Share of the channels of Q and K, of V and hidden in the FFNs that Torch-Pruning left."""
    sums = []
    for network in (model, pruned):
        attentions: list[Any] = [m for m in network.modules() if isinstance(m, _ATTENTION)]
        ffns: list[Any] = [m for m in network.modules() if isinstance(m, Mlp)]
        sums.append(
            (sum(m.qkv.out_features for m in attentions), sum(m.fc1.out_features for m in ffns))
        )
    (attention, hidden), (attention_left, hidden_left) = sums
    share = attention_left / attention
    return {"qk": share, "v": share, "ffn": hidden_left / hidden}


def _torch_pruning() -> ModuleType:
    try:
        import torch_pruning
    except ImportError as error:
        raise ImportError(
            "Torch-Pruning is not installed; pip install 'evitlab[peers]' brings it"
        ) from error
    return torch_pruning


def _check(model: nn.Module, macs: float, steps: int, whole: bool) -> None:
    kinds = {type(module) for module in model.modules() if isinstance(module, _ATTENTION)}
    plain = all(
        isinstance(module.qkv, nn.Linear)
        for module in model.modules()
        if isinstance(module, _ATTENTION)
    )
    if not kinds or not plain:
        raise ValueError(
            "model: expected a DeiT or Swin with timm's attention, which Torch-Pruning knows, got "
            f"{type(model).__name__}{'' if plain else ' with split-feature heads'}"
        )
    if whole and WindowAttention in kinds:
        raise ValueError("whole: expected False for Swin, whose patch merging is unknown to it")
    if not 0 < macs < 1:
        raise ValueError(f"macs: expected a share above 0 and below 1, got {macs!r}")
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps!r}")


def _left_alone(model: nn.Module, whole: bool) -> list[Any]:
    """What Torch-Pruning must not cut: the classifier, and the tables that heads share."""
    tables = [
        module.relative_position_bias_table
        for module in model.modules()
        if isinstance(module, WindowAttention)
    ]
    cut = {id(m.qkv) for m in model.modules() if isinstance(m, _ATTENTION)}
    cut |= {id(m.fc1) for m in model.modules() if isinstance(m, Mlp)}
    head: Any = model.head
    layers = [
        module
        for module in model.modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and id(module) not in cut and not whole
    ]
    return [head, *layers, *tables]


def _take_gradients(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
    model.zero_grad()
    for images, labels in tqdm(batches, desc="gradients", unit="batch", leave=False, delay=2):
        F.cross_entropy(model(images), labels).backward()


def _cut(pruner: Any, attentions: Sequence[Any]) -> bool:
    """One step of Torch-Pruning's ratio; False where no channel may go."""
    groups = list(pruner.step(interactive=True))
    for group in groups:
        group.prune()
    for attention in attentions:
        attention.head_dim = attention.qkv.out_features // (3 * attention.num_heads)
        attention.attn_dim = attention.head_dim * attention.num_heads
    return bool(groups)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Torch-Pruning's warnings of parameters that no layer holds."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unwrapped parameters detected")
        yield


def compare_pruning(
    model: nn.Module,
    train_data: AnyDataset,
    val_data: AnyDataset,
    recipe: Recipe,
    *,
    macs: float,
    out_dir: str | os.PathLike[str],
    steps: int = 5,
    images: int = 512,
    seed: int = 0,
    command: str = "",
    scale: str | None = None,
) -> PruningComparison:
    """Our pruning and Torch-Pruning's, of one model: right after the cut, and trained again.

    Torch-Pruning goes first, and what it left is the budget of the others: it cannot stop anywhere.

    Args:
        model: trained; DeiT or Swin of timm's parts.
        macs: share of the multiply-accumulates that may be left.
        recipe: of the training that follows, the same for all.
        out_dir: receives one training run for each way to prune; the same call continues.
        steps: how often each takes scores anew.
        images: training images that scores are taken from, the same for all.

    Raises:
        ValueError: as `prune_with_torch_pruning` and `prune`.
        ImportError: Torch-Pruning is not installed.
    """
    size = train_data.img_size
    batches = [
        (normalize(pixels, *normalization(model)), labels)
        for pixels, labels in sample(train_data, images, seed=seed)
    ]
    before = evaluate(model, val_data)
    whole = count_macs(model, size)
    out = Path(out_dir)
    rows: list[PrunedPeer] = []

    def add(method: str, criterion: str, cut: Callable[[], tuple[nn.Module, dict]]) -> None:
        pruned, kept = cut()
        counts = count_macs(pruned, size), count_params(pruned)
        right_after = evaluate(pruned, val_data)
        folder = out / f"{method} {criterion}".replace(" ", "-").replace(",", "")
        recovery = train(
            pruned, train_data, val_data, recipe, out_dir=folder, command=command, scale=scale
        )
        rows.append(
            PrunedPeer(method, criterion, *counts, right_after.top1, recovery.final.top1, kept)
        )

    def theirs() -> tuple[nn.Module, dict]:
        pruned = prune_with_torch_pruning(model, batches, macs=macs, steps=steps)
        if hasattr(pruned, "config"):
            del pruned.config  # says nothing of the widths that are left: no weights to rebuild
        return pruned, kept_channels(model, pruned)

    def ours(criterion: str) -> tuple[nn.Module, dict]:
        budget = rows[0].macs / whole
        result = prune(
            model, batches, macs=budget, steps=steps, criterion=criterion, img_size=size, seed=seed
        )
        frame = result.record.to_frame().groupby("component")[["after", "before"]].sum()
        return result.model, (frame["after"] / frame["before"]).to_dict()

    add("torch-pruning", "sum of |w g|, Q, K and V together", theirs)
    for criterion in ("taylor", "abs-taylor", "random"):
        add("evitlab", criterion, partial(ours, criterion))
    return PruningComparison(
        model=model_name(model),
        macs=whole,
        params=count_params(model),
        budget=macs,
        steps=steps,
        images=sum(len(labels) for _, labels in batches),
        train_images=len(train_data),
        recipe=dataclasses.asdict(recipe),
        before=before,
        rows=tuple(rows),
        command=command,
        environment=environment_card(seed=seed, dataset=train_data.title, scale=scale),
    )

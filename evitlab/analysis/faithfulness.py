"""Whether the pixels that a method calls important are the ones that the model needs.

Shape legend: B images, H x W pixels, S steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evitlab.analysis.explaining import Baseline, Explained, Targets, baseline_of, explaining
from evitlab.models.zoo import model_name
from evitlab.records import FaithfulnessCurve, FaithfulnessCurves, environment_card

_CONTROLS = ("random pixels", "random patches")
_PATCHES = 7  # of "random patches", along each side: as coarse as the last feature maps are


def deletion_insertion(
    model: nn.Module,
    images: Tensor,
    attributions: Tensor | Mapping[str, Tensor],
    targets: Targets = None,
    *,
    steps: int = 32,
    deletion_baseline: Baseline = "mean",
    insertion_baseline: Baseline = "blurred",
    batch_size: int = 32,
    seed: int = 0,
) -> FaithfulnessCurves:
    """Take away the most important pixels first, or put them in first, and watch the probability.

    Args:
        model: an image classifier; it runs in evaluation mode and is as before afterwards.
        images: [B, 3, H, W]; uint8 is normalised as the model expects, floats are taken as they
            are.
        attributions: by method, or of one; [B, rows, columns] each, enlarged to the image where
            smaller. The largest come first, whatever their sign. "random pixels" and "random
            patches" are names of the random orders.
        targets: one class for all images or one for each, counted from 0; None: the predicted one.
        steps: S, equal shares of the pixels.
        deletion_baseline: what pixels are replaced with, see `attribute`.
        insertion_baseline: what pixels are put into; blurred, since sharp edges between nothing and
            something would be evidence of their own.
        batch_size: images per pass at most.
        seed: of the random orders, and of the order among equal pixels.

    Returns:
        The curves' means and each image's areas, of every method and of two random orders: of
        single pixels and of smooth patches.

    Raises:
        ValueError: attributions that do not fit the images, are not finite or are called like the
            random orders, another argument out of range, or as `attribute`.

    Paper: Petsiuk et al. 2018 (RISE), Section 4.3.
    Pitfall: see `FaithfulnessCurves`.
    """
    given = attributions if isinstance(attributions, Mapping) else {"attribution": attributions}
    if not given:
        raise ValueError("attributions: expected at least one method, got none")
    for name in _CONTROLS:
        if name in given:
            raise ValueError(f"attributions: expected another name than {name!r}, a random order's")
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    with explaining(
        model, images, targets, quantity="probability", batch_size=batch_size,
        title="deletion, insertion",
    ) as explained:  # fmt: skip
        x = explained.images
        methods = {name: _enlarged(name, values, x) for name, values in given.items()}
        generator = torch.Generator().manual_seed(seed)
        B, _, H, W = x.shape
        pixels, patches = _CONTROLS
        methods[pixels] = torch.rand(B, H, W, generator=generator)
        coarse = torch.rand(B, _PATCHES, _PATCHES, generator=generator)
        methods[patches] = _enlarged(patches, coarse, x)
        without = baseline_of(model, x, deletion_baseline)
        into = baseline_of(model, x, insertion_baseline)
        explained.expects(2 * B * (steps + 1) * len(methods))
        ties = torch.randperm(H * W, generator=generator)
        curves = tuple(
            _curve(explained, name, _ranks(values, ties).to(x.device), without, into, steps)
            for name, values in methods.items()
        )
    return FaithfulnessCurves(
        model=model_name(model),
        images=B,
        fractions=tuple(step / steps for step in range(steps + 1)),
        deletion_baseline=_title(deletion_baseline),
        insertion_baseline=_title(insertion_baseline),
        curves=curves,
        environment=environment_card(device=x.device, batch_size=batch_size, seed=seed),
    )


def _title(baseline: Baseline) -> str:
    return "given" if isinstance(baseline, Tensor) else baseline


def _enlarged(name: str, values: Tensor, x: Tensor) -> Tensor:
    """float32 [B, H, W] on the CPU."""
    if not isinstance(values, Tensor) or values.ndim != 3 or len(values) != len(x):
        got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"attributions: expected [{len(x)}, rows, columns] of {name!r}, got {got}"
        )
    if not values.isfinite().all():
        raise ValueError(f"attributions: expected finite numbers of {name!r}")
    values = values.detach().float().cpu()
    if values.shape[1:] == x.shape[2:]:
        return values
    return F.interpolate(values[:, None], size=x.shape[2:], mode="bilinear")[:, 0]


def _ranks(values: Tensor, ties: Tensor) -> Tensor:
    """int64 [B, H, W]: 0 for each image's largest; equal ones in a random order, not row by row."""
    flat = values.flatten(1)[:, ties]
    order = ties[flat.argsort(dim=1, descending=True, stable=True)]  # positions, largest first
    ranks = torch.empty_like(order)
    ranks.scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
    return ranks.view(values.shape)


def _curve(
    explained: Explained, method: str, ranks: Tensor, without: Tensor, into: Tensor, steps: int
) -> FaithfulnessCurve:
    count = ranks[0].numel()
    first = torch.tensor([round(count * step / steps) for step in range(steps + 1)])
    first = first.to(ranks.device).view(-1, 1, 1, 1)
    found: dict[str, Any] = {}
    for name in ("deletion", "insertion"):
        rows = []
        for b, x in enumerate(explained.images):
            chosen = ranks[b] < first  # [S + 1, 1, H, W]
            front, back = (without[b], x) if name == "deletion" else (x, into[b])
            target = explained.targets[b].expand(steps + 1)
            rows.append(explained.scores(torch.where(chosen, front, back), target))
        curves = torch.stack(rows).double().cpu()  # [B, S + 1]
        areas = (curves[:, 1:] + curves[:, :-1]).mean(1) / 2
        found[name] = tuple(round(value, 6) for value in curves.mean(0).tolist())
        found[f"{name}_areas"] = tuple(round(value, 6) for value in areas.tolist())
    return FaithfulnessCurve(method=method, **found)

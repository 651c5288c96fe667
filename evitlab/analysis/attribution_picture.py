"""One image through several methods, ready to be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from evitlab.analysis.attribution import METHODS, attribute, completeness_error
from evitlab.analysis.explaining import Baseline, explaining
from evitlab.analysis.rollout import attention_rollout
from evitlab.analysis.subjects import class_names_of
from evitlab.models.zoo import model_name
from evitlab.records import AttributionPicture, environment_card
from evitlab.wording import check_choice

_PIXELS = ("attention_rollout", *METHODS[:3])


def picture_attributions(
    model: nn.Module,
    image: Tensor,
    target: int | None = None,
    *,
    methods: Sequence[str] = _PIXELS,
    baseline: Baseline = "mean",
    weights: str = "as given",
    name: str | None = None,
    batch_size: int = 32,
) -> AttributionPicture:
    """What several methods say about one image: what `figures.attribution_grid` draws.

    Args:
        model: an image classifier; one that `capture_attention` takes for the rollout.
        image: uint8 [3, H, W].
        target: the class, counted from 0; None: the predicted one.
        methods: of "attention_rollout", "integrated_gradients", "grad_cam" and "occlusion".
        baseline: see `attribute`.
        weights: where they come from, as shown.
        name: the model's, as shown; None takes its own.
        batch_size: images per pass at most.

    Raises:
        ValueError: an image of another shape, an unknown method, or as `attribute`.
    """
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3:
        got = f"{image.dtype} {list(image.shape)}" if isinstance(image, Tensor) else repr(image)
        raise ValueError(f"image: expected uint8 [3, H, W], got {got}")
    for method in methods:
        check_choice("methods", method, _PIXELS)
    images = image[None]
    with explaining(
        model, images, target, quantity="probability", batch_size=batch_size, title="prediction"
    ) as explained:
        chosen = explained.targets
        probability = explained.scores(explained.images, chosen).item()
    maps: dict[str, Any] = {}
    error = None
    for method in methods:
        if method == "attention_rollout":
            found = attention_rollout(model, images)
        else:
            which: Any = method
            found = attribute(
                model, images, chosen, method=which, baseline=baseline, batch_size=batch_size
            )
        maps[method] = found[0].float().cpu().numpy()
        if method == "integrated_gradients":
            error = completeness_error(
                model, images, found, chosen, baseline=baseline, batch_size=batch_size
            ).item()
    names = class_names_of(model)
    number = int(chosen)
    return AttributionPicture(
        model=name or model_name(model),
        weights=weights,
        picture=image.permute(1, 2, 0).cpu().numpy(),
        target=names[number] if number < len(names) else f"class {number}",
        probability=probability,
        maps=maps,
        completeness_error=error,
        environment=environment_card(device=chosen.device, batch_size=batch_size),
    )

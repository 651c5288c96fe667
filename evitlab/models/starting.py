"""The model that training begins with: drawn anew, or from weights of other images or classes.

Weights that carry a card (`save_weights`) decide the architecture: its patch size, its ablations,
the widths it was pruned to. Only image size and classes follow the data.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evitlab.models.card import check_size, read_card
from evitlab.models.config import EfficientViTConfig
from evitlab.models.weights import LoadReport, find_checkpoint, load_weights
from evitlab.models.zoo import (
    MODELS,
    build_from_card,
    check_classifier,
    create_model,
    family_of,
    small_image_name,
)

_SECOND_HEAD = "head_dist."


def starting_model(
    name: str,
    *,
    img_size: tuple[int, int],
    class_names: Sequence[str],
    weights: str | os.PathLike[str] | None = None,
    distilled: bool = False,
    drop_path_rate: float | None = None,
) -> tuple[Any, tuple[str, ...]]:
    """Build what is to be trained.

    Args:
        name: one of `list_models()`. Without its patch size (efficientvit_m0, not
            efficientvit_m0_p4) the weights' card chooses the variant, else the image size does.
        img_size: (height, width) in pixels, of the training images.
        class_names: of the training data.
        weights: as in `load_weights`; the classifier of other classes is left as it was drawn.
        distilled: a second head, for a teacher, where the model can have one.
        drop_path_rate: None takes the weights' or the model's own.

    Returns:
        The model, and in words what of the weights was resized or left out.

    Raises:
        ValueError: unknown name, or weights of another model.
        FileNotFoundError: no such weights.
    """
    card = weights_card(weights) if weights is not None else None
    check_classifier(card or {}, weights)
    if card is not None and family_of(card["architecture"]) != family_of(name):
        raise ValueError(
            f"weights: expected those of {name}, got {card['architecture']} in {weights}; "
            "name that model instead"
        )
    changes: dict[str, Any] = {"img_size": img_size, "num_classes": len(class_names)}
    if drop_path_rate is not None:
        changes["drop_path_rate"] = drop_path_rate
    if distilled and isinstance(MODELS.get(name), EfficientViTConfig):
        changes["distilled"] = True
    if card is not None and name in (card["architecture"], family_of(card["architecture"])):
        whole = {**card["config"], **changes}
        check_size(str(weights), lambda: create_model(card["architecture"], **whole))
        model = build_from_card(card, **changes)
    else:
        model = create_model(small_image_name(name, img_size), **changes)
    if weights is None:
        return model, ()
    drawn = {key: model.state_dict()[key].clone() for key in classifier_keys(model)}
    report = load_weights(model, weights, strict=False)
    if report.unexpected and all(key.startswith(_SECOND_HEAD) for key in report.unexpected):
        # Weights without a card that were distilled: what they compute is the mean of both heads.
        return starting_model(
            name, img_size=img_size, class_names=class_names, weights=weights, distilled=True,
            drop_path_rate=drop_path_rate,
        )  # fmt: skip
    lacking = [key for key in report.missing if not key.startswith(_SECOND_HEAD)]
    if lacking or report.unexpected or not drawn.keys() >= set(report.mismatched):
        load_weights(model, weights)  # says what does not fit
    said = [_resized(report, card, img_size)] if report.resized else []
    names = tuple(card["class_names"]) if card is not None else ()
    if report.mismatched or (names and names != tuple(class_names)):
        said.append("of other classes, so the classifier is trained from scratch")
        for key, values in drawn.items():
            model.state_dict()[key].copy_(values)
    if report.missing:
        said.append("of one head, so the second begins as a copy of the first")
        model.head_dist.load_state_dict(model.head.state_dict())
    return model, tuple(f"{Path(weights).name}: {line}" for line in said)


def weights_card(weights: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What `save_weights` wrote beside the tensors; None for weights of other libraries.

    Raises FileNotFoundError where there is nothing.
    """
    if weights == "timm":
        return None
    file = find_checkpoint(weights)
    try:
        return read_card(file)
    except ValueError:  # no card, or damaged: `load_weights` says which
        return None


def classifier_keys(model: Any) -> tuple[str, ...]:
    """State-dict keys of the final linear layers."""
    said = model.pretrained_cfg["classifier"]
    layers = (said,) if isinstance(said, str) else said
    keys = (f"{layer}.{part}" for layer in layers for part in ("weight", "bias"))
    return tuple(key for key in keys if key in model.state_dict())


def _resized(report: LoadReport, card: dict[str, Any] | None, img_size: tuple[int, int]) -> str:
    """Which tables of positions were interpolated, and between which image sizes."""
    before = card["config"].get("img_size") if card is not None else None
    change = f"from {before[0]}x{before[1]} to " if before is not None else "to "
    kind = "position embedding" if report.resized == ("pos_embed",) else "attention-bias table"
    places = ", ".join(re.sub(r"(\.mixer\.m)?\.attn\.\w+$", "", key) for key in report.resized)
    plural = "s" if len(report.resized) > 1 else ""
    change += f"{img_size[0]}x{img_size[1]} pixels"
    return f"{len(report.resized)} {kind}{plural} resized {change}: {places}"

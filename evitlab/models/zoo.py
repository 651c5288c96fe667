"""Models by name, and weights from anywhere into them."""

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from fnmatch import fnmatch
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from evitlab.models.baselines import BASELINES, BaselineConfig, build_baseline
from evitlab.models.card import check_size, read_card
from evitlab.models.channels import narrow
from evitlab.models.config import EfficientViTConfig
from evitlab.models.deployed_transformer import within
from evitlab.models.efficientvit import VARIANTS, EfficientViT
from evitlab.models.weights import load_weights
from evitlab.wording import did_you_mean

# 32- and 64-pixel images: finer patches, and windows as large as the 8 x 8 map they give.
SMALL_IMAGE_VARIANTS = {
    f"{name}_p{patch}": replace(config, patch_size=patch, window_size=(8, 8, 8))
    for name, config in VARIANTS.items()
    for patch in (4, 8)
}
MODELS: dict[str, EfficientViTConfig | BaselineConfig] = {
    **VARIANTS,
    **SMALL_IMAGE_VARIANTS,
    **BASELINES,
}
# Where the hub keeps ImageNet weights of the original.
_HUB = {
    "deit_t": "timm/deit_tiny_patch16_224.fb_in1k",
    "swin_t": "timm/swin_tiny_patch4_window7_224.ms_in1k",
}
_FIXED = ("img_size", "num_classes", "in_chans")


def list_models(pattern: str = "*") -> list[str]:
    """Names that `create_model` knows, filtered with shell wildcards."""
    return [name for name in MODELS if fnmatch(name, pattern)]


def native_img_size(name: str) -> int:
    """Pixels of a side of the square images that a name's patch size is meant for."""
    return {"_p2": 32, "_p4": 32, "_p8": 64}.get(name[-3:], 224)


def family_of(name: str) -> str:
    """A model's name without its patch size: efficientvit_m0_p4 -> efficientvit_m0."""
    return re.sub(r"_p\d+$", "", name)


def small_image_name(name: str, img_size: tuple[int, int]) -> str:
    """The variant of a model that keeps at least 8 x 8 tokens on small images."""
    if min(img_size) >= 128:
        return name
    patches = (8, 4) if min(img_size) >= 64 else (4, 2)
    variants = (f"{name}_p{patch}" for patch in patches)
    return next((variant for variant in variants if variant in MODELS), name)


def create_model(
    name: str,
    *,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    in_chans: int = 3,
    weights: str | os.PathLike[str] | Mapping[str, Tensor] | None = None,
    **overrides: Any,
) -> Any:
    """Build a model by name: an `nn.Module` with its `config`.

    Args:
        name: one of `list_models()`.
        img_size: int or (height, width) in pixels; the model takes other sizes too.
        num_classes: 0 leaves the classifier out.
        in_chans: image channels.
        weights: None, a path, a state dict, "timm" for the hub's ImageNet weights, or a name in
            data/checkpoints.
        overrides: fields of `EfficientViTConfig`, such as `patch_size=4` or `cascade=False`; for
            deit_t and swin_t of `BaselineConfig`, such as `attention_share=0.2`.

    Raises:
        ValueError: unknown name or override, or a value that does not fit, with what was
            expected.

    Paper: Table 1.
    """
    if name not in MODELS:
        hint = did_you_mean(name, MODELS)
        raise ValueError(f"name: expected a model of list_models(), got {name!r}{hint}")
    known = [field.name for field in fields(MODELS[name]) if field.name not in _FIXED]
    for key in overrides:
        if key not in known:
            hint = did_you_mean(key, known)
            raise ValueError(f"{key}: unknown override{hint}; known: {', '.join(known)}")
    changes: dict[str, Any] = {
        **{key: tuple(v) if isinstance(v, list) else v for key, v in overrides.items()},
        "img_size": tuple(img_size) if isinstance(img_size, (tuple, list)) else (img_size,) * 2,
        "num_classes": num_classes,
        "in_chans": in_chans,
    }
    config = replace(MODELS[name], **changes)
    model: Any
    if isinstance(config, EfficientViTConfig):
        model = EfficientViT(config)
        heads = ("head.linear", "head_dist.linear")
        layers = {
            "classifier": heads if config.distilled else heads[0],
            "first_conv": "patch_embed.conv1.conv",
        }
    else:
        model = build_baseline(config)
        classifier = "head" if config.family == "deit" else "head.fc"
        layers = {"classifier": classifier, "first_conv": "patch_embed.proj"}
    model.config = config
    model.pretrained_cfg = {
        "architecture": name,
        "hf_hub_id": _HUB.get(name, f"timm/{family_of(name)}.r224_in1k"),
        "input_size": (in_chans, *config.img_size),
        "num_classes": num_classes,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        **layers,
    }
    if weights is not None:
        load_weights(model, weights)
    return model


def config_fields(model: nn.Module) -> dict[str, Any]:
    """What distinguishes a model of ours from others of its name; {} for other libraries'."""
    config = getattr(model, "config", None)
    return asdict(config) if is_dataclass(config) and not isinstance(config, type) else {}


def load_model(path: str | os.PathLike[str]) -> Any:
    """Rebuild a model from weights that `save_weights` or `train` wrote, in evaluation mode.

    Args:
        path: a .safetensors file, a training run's folder, or a name in data/checkpoints.

    Returns:
        The model, with `class_names` as an attribute.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: not a file of this library, or damaged.
    """
    card = read_card(path)
    check_classifier(card, path)
    check_size(path, lambda: create_model(card["architecture"], **card["config"]))
    model = build_from_card(card).eval()
    load_weights(model, path)
    model.class_names = tuple(card["class_names"])
    return model


def check_classifier(card: Mapping[str, Any], source: Any) -> None:
    """Raise a ValueError where the card is a detector's."""
    if card.get("task") == "detection":
        raise ValueError(
            f"{source}: expected a classifier's weights, got those of the detector "
            f"{card['architecture']}; load_detector and `evitlab detect` take it"
        )


def build_from_card(card: Mapping[str, Any], **changes: Any) -> Any:
    """The model that a card of `read_card` describes, its weights drawn.

    Args:
        card: architecture, config, widths if it was pruned, normalisation.
        changes: fields of the config that are to differ, such as `img_size=64`.

    Raises ValueError where the card is not of a model of this library.
    """
    model = create_model(card["architecture"], **{**card["config"], **changes})
    narrow(model, card.get("channel_widths", {}))
    model.pretrained_cfg |= {key: tuple(card[key]) for key in ("mean", "std") if card.get(key)}
    return model


def normalization(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation a model expects; ImageNet's if it says none."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return (
        tuple(cfg.get("mean") or IMAGENET_DEFAULT_MEAN),
        tuple(cfg.get("std") or IMAGENET_DEFAULT_STD),
    )


def stated_img_size(model: nn.Module) -> tuple[int, int] | None:
    """(height, width) of the images that a model says it was built for; None if it does not."""
    inner = within(model)
    for part in (getattr(inner, "config", None), getattr(inner, "patch_embed", None), inner):
        given = getattr(part, "img_size", None)
        if isinstance(given, (int, tuple, list)):
            height, width = (given, given) if isinstance(given, int) else given
            return int(height), int(width)
    card = getattr(inner, "pretrained_cfg", None) or {}
    return tuple(card["input_size"][1:]) if card.get("input_size") else None


def model_name(model: nn.Module) -> str:
    """What a model calls itself, its class's name if it does not say."""
    card = getattr(within(model), "pretrained_cfg", None) or {}
    return str(card.get("architecture") or type(model).__name__)

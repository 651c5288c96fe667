"""Models to measure, by one kind of name: ours, timm's, torchvision's."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo
from torch import nn

from evitlab.models.deploy import DeployedEfficientViT, deploy
from evitlab.models.deployed_transformer import within
from evitlab.models.weights import load_weights
from evitlab.models.zoo import (
    config_fields,
    create_model,
    list_models,
    load_model,
    native_img_size,
    stated_img_size,
)

_LIBRARIES = ("deploy", "timm", "torchvision")


def build(name: str, *, img_size: int | None = None) -> nn.Module:
    """A model with weights drawn from a fixed seed, in evaluation mode.

    Args:
        name: one of `list_models()`, else a name of timm; "timm/NAME" and "torchvision/NAME" say
            whose. "efficientvit_m0" is ours, "timm/efficientvit_m0" theirs,
            "deploy/efficientvit_m0" ours in its exact inference form.
        img_size: pixels of both sides; None takes the size the model was made for. Models that
            take images of any size are the same for all of them.

    Raises:
        ValueError: no such model, or one that cannot be built for images of this size.
    """
    library, _, rest = name.rpartition("/")
    if library and library not in _LIBRARIES:
        close = get_close_matches(library, _LIBRARIES, n=1)
        hint = f"; did you mean '{close[0]}/{rest}'?" if close else ""
        raise ValueError(
            f"model: expected NAME, deploy/NAME, timm/NAME or torchvision/NAME, got {name!r}{hint}"
        )
    if img_size is not None and img_size < 1:
        raise ValueError(f"img_size: expected at least 1 pixel, got {img_size}")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        if library == "torchvision":
            return _torchvision_model(rest)
        if library == "deploy" and rest not in list_models():
            raise _unknown(name, rest, list_models(), "our own")
        if library in ("", "deploy") and rest in list_models():
            model = create_model(rest, img_size=img_size or native_img_size(rest)).eval()
            return deploy(model) if library else model
        return _timm_model(rest, img_size, name)


def open_model(
    source: str, *, weights: str | None = None, img_size: int | None = None
) -> tuple[nn.Module, str]:
    """A model in evaluation mode, and in words where its weights come from.

    Args:
        source: a name that `build` knows; else what `load_model` does: a run's folder, a file, or
            a name in data/checkpoints.
        weights: of a name: a path, or "hub" for the ImageNet weights of timm's hub; None draws
            them from a fixed seed.
        img_size: as in `build`; what `load_model` finds keeps its own.

    Raises:
        ValueError: no such model, or weights that do not fit it.
        FileNotFoundError: no such file, or weights of the hub that cannot be fetched.
    """
    library, _, name = source.rpartition("/")
    if not is_named(source):
        if weights is not None:
            raise ValueError(f"weights: expected the name of a model, got {source!r}")
        try:
            return load_model(source), "trained"
        except FileNotFoundError:
            if Path(source).suffix or len(Path(source).parts) > 1:
                raise
            return build(source), ""  # its error names the closest model
    if weights is None:
        return build(source, img_size=img_size), "untrained"
    label = "ImageNet, from the hub" if weights == "hub" else Path(weights).name
    if name in list_models() and library != "timm":
        side = img_size or native_img_size(name)
        ours = create_model(
            name, img_size=side, weights="timm" if weights == "hub" else weights
        ).eval()
        return (deploy(ours) if library == "deploy" else ours), label
    model = build(source, img_size=img_size)
    if weights == "hub":
        try:
            timm.models.load_pretrained(model)
        except Exception as error:  # the hub's client raises a dozen types for "not reachable"
            raise FileNotFoundError(
                f"weights='hub': {name} is not in the local cache and cannot be fetched "
                f"({type(error).__name__}); without weights it is drawn from a seed"
            ) from error
    else:
        load_weights(model, weights)
    return model, label


def is_named(source: str) -> bool:
    """Whether `build` knows the name: an architecture, without weights of its own."""
    library, _, name = source.rpartition("/")
    return library in ("", *_LIBRARIES) and (
        library == "torchvision" or name in list_models() or timm.is_model(name.partition(".")[0])
    )


def untrained(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """The same architecture with fresh weights, in evaluation mode: a baseline for what training
    does.

    Raises:
        ValueError: it does not say what it is, or says something else than it is.
    """
    card = getattr(model, "pretrained_cfg", None) or {}
    name = str(card.get("architecture"))
    classes = int(getattr(model, "num_classes", 1000))
    fresh: nn.Module | None = None
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        if name in list_models() and config_fields(model):
            fresh = create_model(name, **config_fields(model)).eval()
            fresh = deploy(fresh) if isinstance(model, DeployedEfficientViT) else fresh
        elif timm.is_model(name):
            side = getattr(getattr(model, "patch_embed", None), "img_size", None)
            sized = {"img_size": side} if side and card.get("fixed_input_size") else {}
            fresh = timm.create_model(name, num_classes=classes, **sized).eval()
    if fresh is None or _shapes(fresh) != _shapes(model):
        raise ValueError(
            f"model: expected one that its name describes, got {type(model).__name__} ({name}); "
            "build it anew yourself"
        )
    return fresh.to(next(model.parameters()).device)


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in model.state_dict().items()}


def img_size_of(model: nn.Module) -> tuple[int, int]:
    """(height, width) of the images that a model was built for, 224 x 224 if it does not say."""
    return stated_img_size(model) or (224, 224)


def default_img_size(model: nn.Module) -> int:
    """Pixels of a side of the square images that a model was made for, 224 if it does not say."""
    return img_size_of(model)[1]


def class_names_of(model: nn.Module) -> tuple[str, ...]:
    """The model's own, ImageNet's where it has a thousand classes, else numbers; () where it does
    not say how many there are."""
    inner = within(model)
    own = tuple(getattr(inner, "class_names", ()))
    count = int(getattr(inner, "num_classes", 0) or len(own))
    if len(own) == count:
        return own
    if count == 1000:
        info = ImageNetInfo()
        return tuple(info.index_to_description(i).partition(",")[0] for i in range(count))
    return tuple(f"class {i}" for i in range(count))


def _timm_model(rest: str, img_size: int | None, name: str) -> nn.Module:
    if not timm.is_model(rest.partition(".")[0]):
        known = timm.list_models()
        if "/" not in name:
            known = [*list_models(), *known]
        raise _unknown(name, rest, known, "our own or timm's")
    card = timm.get_pretrained_cfg(rest)
    sized: dict[str, Any] = {}
    if img_size is not None and card is not None and card.fixed_input_size:
        sized = {"img_size": img_size}
    try:
        model: nn.Module = timm.create_model(rest, pretrained=False, **sized)
    except (TypeError, AssertionError, RuntimeError, ValueError) as error:
        if not sized:
            raise
        own = card.input_size[-1] if card is not None else 224
        raise ValueError(
            f"img_size: expected a size that {rest} can be built for, such as {own}, "
            f"got {img_size} ({error})"
        ) from error
    return model.eval()


def _torchvision_model(rest: str) -> nn.Module:
    try:
        from torchvision.models import get_model, list_models
    except ImportError as error:
        raise ValueError(
            f"model: expected torchvision to be installed for 'torchvision/{rest}' "
            "(pip install torchvision)"
        ) from error
    if rest not in list_models():
        raise _unknown(f"torchvision/{rest}", rest, list_models(), "torchvision's")
    model: nn.Module = get_model(rest, weights=None)
    return model.eval()


def _unknown(name: str, rest: str, known: list[str], whose: str) -> ValueError:
    longer = sorted((other for other in known if other.startswith(rest)), key=len)
    close = (longer if rest else []) or get_close_matches(rest, known, n=1, cutoff=0.5)
    hint = f"; did you mean {name.removesuffix(rest) + close[0]!r}?" if close else ""
    return ValueError(f"model: expected one of {whose} models, got {name!r}{hint}")

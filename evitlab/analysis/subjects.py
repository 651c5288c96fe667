"""Models to measure, by one kind of name: ours, timm's, torchvision's."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import timm
import torch
from torch import nn

from evitlab.models.deploy import deploy
from evitlab.models.zoo import create_model, list_models, native_img_size

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


def default_img_size(model: nn.Module) -> int:
    """Pixels of a side of the square images that a model was made for, 224 if it does not say."""
    card = getattr(model, "pretrained_cfg", None) or {}
    return int(card.get("input_size", (3, 224, 224))[-1])


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

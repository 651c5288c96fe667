"""What of a model is trained, and how fast: parameter groups, frozen parts, AdamW."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn

from evitlab.training.recipe import Recipe


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over what trains, fused where torch can.

    Biases, norms and what the model's `no_weight_decay` names (attention biases) do not decay. With
    `recipe.layer_decay` below 1 each layer has groups with an `lr_scale`, which
    `set_learning_rate` multiplies in; what is frozen has no group and no state.

    Args:
        model: on its device.
        recipe: its optimisation fields are read.

    Raises:
        ValueError: nothing trains, or a layer decay for a model that does not name its layers.

    Paper: Section 4.1 (AdamW); layer-wise decay is BEiT's, in timm's form.
    """
    check_trained(model, recipe)
    with frozen(model, recipe.freeze):
        groups = parameter_groups(model, recipe)
    device = next(model.parameters()).device
    return torch.optim.AdamW(
        groups,
        lr=recipe.peak_lr,
        betas=recipe.betas,
        eps=recipe.eps,
        fused=device.type in ("cpu", "cuda"),
    )


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """timm's groups: `params`, `weight_decay`, and `lr_scale` where layers differ in their rate."""
    declared: Any = getattr(model, "no_weight_decay", set)
    exempt = set(declared())
    if recipe.layer_decay == 1.0:
        return param_groups_weight_decay(model, recipe.weight_decay, no_weight_decay_list=exempt)
    # timm's other function exempts them by name; this one sees only how many axes they have.
    exempt |= {name for name, _ in model.named_parameters() if name.endswith(".bias")}
    return param_groups_layer_decay(
        model,
        recipe.weight_decay,
        no_weight_decay_list=exempt,
        layer_decay=recipe.layer_decay,
    )


def check_trained(model: nn.Module, recipe: Recipe) -> None:
    """Raise a ValueError where nothing would train, or the model does not name its layers."""
    parts = _trained(model, recipe.freeze)
    if not any(weight.requires_grad for part in parts for weight in part.parameters()):
        raise ValueError("model: expected parameters that train, got none with requires_grad")
    if recipe.layer_decay < 1.0 and len(set(_layers(model).values())) < 2:
        raise ValueError(
            "layer_decay: expected 1.0, as the model does not say what its layers are "
            f"(`group_matcher`), got {recipe.layer_decay} for a {type(model).__name__}"
        )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group the rate times its own `lr_scale`, 1 where it has none."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


@contextmanager
def frozen(model: nn.Module, freeze: str) -> Iterator[None]:
    """Within, what `recipe.freeze` names has no `requires_grad`; afterwards as before.

    Raises ValueError where the backbone is to be frozen and the model names no classifier.
    """
    kept = {id(weight) for part in _trained(model, freeze) for weight in part.parameters()}
    rest = [weight for weight in model.parameters() if id(weight) not in kept]
    before = [weight.requires_grad for weight in rest]
    try:
        for weight in rest:
            weight.requires_grad_(False)
        yield
    finally:
        for weight, required in zip(rest, before, strict=True):
            weight.requires_grad_(required)


def train_mode(model: nn.Module, freeze: str) -> None:
    """Training mode, but a frozen backbone computes as in evaluation.

    So its BatchNorms use and keep their running statistics, and it drops nothing: what the
    classifier sees of an image are the features that the weights were trained to give.
    """
    model.train()
    if freeze == "none":
        return
    for part in model.modules():
        part.training = False
    for classifier in _trained(model, freeze):
        classifier.train()
    model.training = True  # it decides between two heads and their mean


def classifiers(model: nn.Module) -> tuple[nn.Module, ...]:
    """The model's final layers: none where it does not say, two where it is a distilled one."""
    found: Any = model.get_classifier() if hasattr(model, "get_classifier") else ()  # type: ignore[operator]
    return tuple(found) if isinstance(found, (tuple, list)) else (found,)


def all_but_classifier(model: nn.Module) -> list[nn.Parameter]:
    """What adaptive clipping applies to, as in timm."""
    exempt = {id(weight) for part in classifiers(model) for weight in part.parameters()}
    return [weight for weight in model.parameters() if id(weight) not in exempt]


def _trained(model: nn.Module, freeze: str) -> tuple[nn.Module, ...]:
    if freeze == "none":
        return (model,)
    parts = classifiers(model)
    if not any(True for part in parts for _ in part.parameters()):
        raise ValueError(
            "freeze: expected 'none', as the model names no classifier that could train "
            f"(`get_classifier`), got {freeze!r} for a {type(model).__name__}"
        )
    return parts


def _layers(model: nn.Module) -> dict[str, int]:
    """Each parameter's layer, counted from the stem; {} where the model does not say."""
    matcher: Any = getattr(model, "group_matcher", None)
    return group_parameters(model, matcher(coarse=False), reverse=True) if matcher else {}


@torch.no_grad()
def clip_adaptively(weights: Sequence[nn.Parameter], factor: float, eps: float = 1e-3) -> None:
    """Shrink gradients, row by row, to at most `factor` of the norm of the weights' row.

    The values are those of timm's `adaptive_clip_grad`, to the bit, with fewer operators.

    Args:
        weights: those without a gradient are passed over; a row is all that belongs to one output.
        factor: largest ratio of the gradient's norm to the weight's.
        eps: least norm of a row of weights: new ones are zero.

    Paper: Section 4.1; Brock et al., "High-Performance Large-Scale Image Recognition Without
    Normalization" (2021).
    """
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    if not gradients:
        return
    most = [_row_norms(weight) for weight in weights if weight.grad is not None]
    norms = [_row_norms(gradient) for gradient in gradients]
    torch._foreach_clamp_min_(most, eps)
    torch._foreach_mul_(most, factor)
    torch._foreach_clamp_min_(norms, 1e-6)
    torch._foreach_div_(most, norms)
    torch._foreach_clamp_max_(most, 1.0)
    torch._foreach_mul_(gradients, most)


def _row_norms(values: Tensor) -> Tensor:
    """Of each row, or of all where there is one axis, to be multiplied with `values`."""
    if values.ndim <= 1:
        return values.norm(2.0)
    return values.norm(2.0, dim=tuple(range(1, values.ndim)), keepdim=True)

"""What a prediction rests on: pixels of the image, or heads of the attention blocks.

Captum does the work where it has the method.

Shape legend: B images, H x W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from evitlab.analysis.capture import attention_modules
from evitlab.analysis.explaining import (
    Baseline,
    Explained,
    Quantity,
    Targets,
    baseline_of,
    class_tokens_read,
    explaining,
)
from evitlab.analysis.head_attribution import head_ablation, head_conductance
from evitlab.analysis.probe import watch_layer
from evitlab.models.deploy import DeployedEfficientViT
from evitlab.models.deployed_transformer import within
from evitlab.wording import check_choice

Method = Literal[
    "integrated_gradients", "grad_cam", "occlusion", "layer_conductance", "head_ablation"
]
METHODS: tuple[str, ...] = get_args(Method)
_OF_PROBABILITIES = ("occlusion", "head_ablation")  # by default
_FIRST_STEPS, _MOST_STEPS, _CONDUCTANCE_STEPS = 32, 512, 32


def attribute(
    model: nn.Module,
    images: Tensor,
    targets: Targets = None,
    *,
    method: Method,
    quantity: Quantity | None = None,
    baseline: Baseline = "mean",
    steps: int | None = None,
    tolerance: float = 0.01,
    patch: int | tuple[int, int] | None = None,
    layer: str | None = None,
    batch_size: int = 32,
) -> Tensor:
    """How much each pixel, or each attention head, speaks for a class.

    The model runs in evaluation mode and is as before afterwards: modes, hooks, gradients, flags.

    Args:
        model: an image classifier; for "layer_conductance" and "head_ablation" one that
            `capture_attention` takes. "occlusion" and "head_ablation" also take a deployed
            EfficientViT, which has no gradients.
        images: [B, 3, H, W]; uint8 is normalised as the model expects, floats are taken as they
            are.
        targets: one class for all images or one for each, counted from 0; None: the predicted one.
        method: "integrated_gradients", from the baseline to the image along a straight line, by
            Gauss and Legendre; "grad_cam", what remains positive, on the last feature map in which
            every position reaches the logits, enlarged to the image; "occlusion", the loss when a
            patch shows the baseline instead, averaged over the patches that cover a pixel;
            "layer_conductance", how much of the way from the baseline's score to the image's goes
            through each head; "head_ablation", the loss when a head's output is zero.
        quantity: of the target class, "logit" or "probability"; None: "probability" for occlusion
            and head ablation, "logit" for the others.
        baseline: "mean" (each image's own mean colour), "black", "blurred" or a tensor that
            broadcasts to the images. For integrated gradients, conductance and occlusion.
        steps: of the path; None: integrated gradients double them from 32 until the completeness
            error is at most `tolerance`, to 512 at most; conductance takes 32.
        tolerance: see `steps`; `completeness_error` says what was reached.
        patch: occlusion's (height, width) in pixels, moved by half of it; None: an eighth of the
            image's sides.
        layer: Grad-CAM's dotted path; None: as said above, the last stage's output, and for models
            that read out a class token the block's before the last.
        batch_size: images per pass at most: what bounds the memory.

    Returns:
        Pixels: [B, H, W], signed but for Grad-CAM, channels summed. Heads: [B, blocks, most heads],
        NaN where a block has fewer; a loss is positive where the head speaks for the class.

    Raises:
        ValueError: an argument that is out of range or does not belong to the method, a model
            without classes, without known attention, or without gradients where they are needed,
            or one that cannot take images of this size.

    Paper: integrated gradients: Sundararajan et al. 2017; Grad-CAM: Selvaraju et al. 2017;
    occlusion: Zeiler and Fergus 2014; conductance: Dhamdhere et al. 2019.
    Pitfall: all of them say what the model reacts to, none that it is right to; and pixels of the
    baseline's own value get nothing from integrated gradients. Heads' conductances do not add up
    to the score: much of it passes the heads by, and through several blocks one after the other.
    EfficientViT's last map has 4 x 4 positions at 224 pixels, and each has seen the whole image:
    Grad-CAM may light up beside the object there; an earlier `layer` is finer.

    Example:
        >>> model = evitlab.create_model("efficientvit_m0_p4", img_size=32, num_classes=10).eval()
        >>> images = torch.rand(2, 3, 32, 32)
        >>> evitlab.attribute(model, images, method="grad_cam").shape  # a value for each pixel
        torch.Size([2, 32, 32])
        >>> evitlab.attribute(model, images, method="head_ablation").shape  # image, block, head
        torch.Size([2, 6, 4])
    """
    check_choice("method", method, METHODS)
    _check_options(method, steps, tolerance, patch, layer)
    if method not in _OF_PROBABILITIES and isinstance(model, DeployedEfficientViT):
        raise ValueError(
            f"method: {method} needs gradients, which a deployed EfficientViT, overwriting its "
            "activations, cannot give: attribute the model it was deployed from"
        )
    if method in ("layer_conductance", "head_ablation"):
        attention_modules(model)
    usual: Quantity = "probability" if method in _OF_PROBABILITIES else "logit"
    with explaining(
        model, images, targets, quantity=quantity or usual, batch_size=batch_size,
        title=method.replace("_", " "),
    ) as explained:  # fmt: skip
        if method == "grad_cam":
            found = _grad_cam(explained, layer or _last_map(model))
        elif method == "head_ablation":
            found = head_ablation(explained)
        else:
            x0 = baseline_of(model, explained.images, baseline)
            if method == "integrated_gradients":
                found = _integrated_gradients(explained, x0, steps, tolerance)
            elif method == "occlusion":
                found = _occlusion(explained, x0, patch)
            else:
                found = head_conductance(explained, x0, steps or _CONDUCTANCE_STEPS)
        return found.detach()


def completeness_error(
    model: nn.Module,
    images: Tensor,
    attribution: Tensor,
    targets: Targets = None,
    *,
    quantity: Quantity = "logit",
    baseline: Baseline = "mean",
    batch_size: int = 32,
) -> Tensor:
    """How far integrated gradients miss the score that they should add up to, [B].

    |sum of the attribution - (f(image) - f(baseline))| / |f(image) - f(baseline)|; 0 is complete.

    Args:
        attribution: [B, H, W] or [B, 3, H, W], of the same targets, quantity and baseline.

    Raises:
        ValueError: the attribution does not belong to the images, or as `attribute`.

    Paper: Sundararajan et al. 2017, Proposition 1.
    Pitfall: relative to the change of score: where the model hardly tells the image from the
    baseline, it is large whatever the attribution; and methods other than integrated gradients do
    not promise completeness.
    """
    with explaining(
        model, images, targets, quantity=quantity, batch_size=batch_size, title="completeness"
    ) as explained:
        sizes = (*images.shape[:1], *images.shape[2:])
        if not isinstance(attribution, Tensor) or attribution.shape not in (sizes, images.shape):
            is_tensor = isinstance(attribution, Tensor)
            got = list(attribution.shape) if is_tensor else type(attribution).__name__
            raise ValueError(
                f"attribution: expected {list(sizes)} or {list(images.shape)}, got {got}"
            )
        change = _change(explained, baseline_of(model, explained.images, baseline))
        return _missed(attribution.to(change.device), change)


def _check_options(
    method: str,
    steps: int | None,
    tolerance: float,
    patch: int | tuple[int, int] | None,
    layer: str | None,
) -> None:
    owners = {
        "steps": (steps, ("integrated_gradients", "layer_conductance")),
        "patch": (patch, ("occlusion",)),
        "layer": (layer, ("grad_cam",)),
    }
    for name, (given, methods) in owners.items():
        if given is not None and method not in methods:
            raise ValueError(f"{name}: expected None, it is for {' and '.join(methods)}; {method}")
    if steps is not None and steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    if not tolerance > 0:
        raise ValueError(f"tolerance: expected a positive number, got {tolerance}")


def _change(explained: Explained, x0: Tensor) -> Tensor:
    """f(image) - f(baseline), float64 [B]."""
    after, before = (explained.scores(x, explained.targets) for x in (explained.images, x0))
    return after.double() - before.double()


def _missed(attribution: Tensor, change: Tensor) -> Tensor:
    missed = (attribution.double().flatten(1).sum(1) - change).abs()
    return torch.where(missed == 0, 0.0, missed / change.abs()).float()


def _integrated_gradients(
    explained: Explained, x0: Tensor, steps: int | None, tolerance: float
) -> Tensor:
    """[B, H, W]; images whose error is small enough take no part in the next doubling."""
    from captum.attr import IntegratedGradients

    captum, x, targets = IntegratedGradients(explained.forward), explained.images, explained.targets

    def integrate(rows: Tensor, count: int) -> Tensor:
        explained.expects(len(rows) * count)
        return torch.cat(
            [
                captum.attribute(
                    x[some], x0[some], target=targets[some], n_steps=count,
                    internal_batch_size=explained.batch_size,
                ).sum(1)
                for some in rows.split(explained.batch_size)
            ]
        )  # fmt: skip

    rest, count = torch.arange(len(x), device=x.device), steps or _FIRST_STEPS
    found = integrate(rest, count)
    if steps is not None:
        return found
    change = _change(explained, x0)
    while count < _MOST_STEPS:
        rest = torch.nonzero(_missed(found, change) > tolerance)[:, 0]
        if len(rest) == 0:
            break
        count *= 2
        found[rest] = integrate(rest, count)
    return found


def _grad_cam(explained: Explained, layer: str) -> Tensor:
    """[B, H, W], at least 0."""
    from captum.attr import LayerAttribution, LayerGradCam

    x, targets = explained.images, explained.targets
    explained.expects(len(x))
    with watch_layer(within(explained.model), layer) as probe:
        captum = LayerGradCam(explained.forward, probe)
        maps = [
            captum.attribute(some.requires_grad_(), target=t, relu_attributions=True).detach()
            for some, t in zip(*_split(explained, x, targets), strict=True)
        ]
    sides = (x.shape[2], x.shape[3])
    return LayerAttribution.interpolate(torch.cat(maps), sides, "bilinear")[:, 0]


def _last_map(model: nn.Module) -> str:
    """The last feature map of which every position reaches the logits.

    Behind the last block of a model that reads out class tokens, the others lead nowhere.
    """
    names = [str(info["module"]) for info in getattr(model, "feature_info", None) or ()]
    back = 2 if class_tokens_read(model) else 1
    if len(names) < back:
        raise ValueError(
            f"layer: expected the dotted path of a feature map; {type(model).__name__} does not "
            "say which ones it has (feature_info)"
        )
    return names[-back]


def _occlusion(explained: Explained, x0: Tensor, patch: int | tuple[int, int] | None) -> Tensor:
    """[B, H, W]"""
    from captum.attr import Occlusion

    x, targets = explained.images, explained.targets
    _, C, H, W = x.shape
    given = (max(1, H // 8), max(1, W // 8)) if patch is None else patch
    height, width = (given, given) if isinstance(given, int) else given
    if not (1 <= height <= H and 1 <= width <= W):
        raise ValueError(f"patch: expected 1 to {H} x 1 to {W} pixels, got {height} x {width}")
    strides = (max(1, height // 2), max(1, width // 2))
    places = [
        -(-(side - size) // stride) + 1
        for side, size, stride in zip((H, W), (height, width), strides, strict=True)
    ]
    explained.expects(len(x) * (places[0] * places[1] + 1))
    parts = zip(*_split(explained, x, x0, targets), strict=True)
    with torch.no_grad():
        found = [
            Occlusion(explained.forward).attribute(
                some, (C, height, width), strides=(C, *strides), baselines=before, target=t,
                perturbations_per_eval=max(1, explained.batch_size // len(some)),
            )
            for some, before, t in parts
        ]  # fmt: skip
    return torch.cat(found)[:, 0]  # the same for each channel: they were covered together


def _split(explained: Explained, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Each tensor in the pieces that go through the model at a time."""
    return (tensor.split(explained.batch_size) for tensor in tensors)

"""How much each channel of Q, K, V and of the FFNs matters, told from gradients of the weights.

The loss is a function of each channel's gate g (see `evitlab.models.channels`); at g = 1 its
derivative is the sum of weight x gradient over the gate's weights. Cutting the channel, g = 0,
changes the loss by minus that to first order, and the score is its square.

Paper: Section 2.3 (Fig. 5); Molchanov et al., "Importance Estimation for Neural Network Pruning",
2019, Eq. 8 and Section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from evitlab.datasets import Dataset, StreamingDataset
from evitlab.models.channels import ChannelLayer, Gate, channel_layers
from evitlab.models.zoo import model_name, normalization
from evitlab.records import CRITERIA, ChannelImportance, ChannelScores, environment_card
from evitlab.training.augment import normalize
from evitlab.wording import check_choice

Batches: TypeAlias = Iterable[tuple[Tensor, Tensor]] | Dataset | StreamingDataset


def channel_importance(
    model: nn.Module,
    batches: Batches | None,
    *,
    criterion: str = "taylor",
    batch_size: int = 64,
    seed: int = 0,
) -> ChannelImportance:
    """Score every channel of Q, K, V and of the FFNs' hidden layers.

    The model runs in evaluation mode, and is left as it was: gradients, modes, statistics.

    Args:
        model: timm's ViT, DeiT or Swin, a baseline or an EfficientViT.
        batches: (images, labels) pairs, images [B, C, H, W] as the model takes them or uint8, which
            are normalised; or a data set. None where the criterion needs no images.
        criterion: "taylor", (sum of w g)^2 over the weights w of the channel's gate and their
            gradients g; "abs-taylor", sum of |w g|; both averaged over batches; "magnitude", sum of
            w^2 over the weights that write the channel (BatchNorm's where there is one); "random".
        batch_size: images per batch of a data set.
        seed: of "random".

    Raises:
        ValueError: a model that is not supported, an unknown criterion, no batches, no labels or
            labels outside the model's classes, or gradients that are not finite.

    Paper: Section 2.3, Fig. 5.
    Pitfall: the scores of Q and K are equal under "taylor": the logits only know their product, so
    that scaling either is the same. And a score is a squared mean gradient of a batch: more images
    in a batch make all scores lower, so compare scores of equal batches.
    """
    layers = channel_layers(model)
    check_choice("criterion", criterion, CRITERIA)
    parts = [(layer, component) for layer in layers for component in layer.components]
    device = next(model.parameters()).device
    images = count = 0
    if criterion == "magnitude":
        squares: dict[Tensor, Tensor] = {w: w.detach().square() for w in model.parameters()}
        scores = [_sums(layer.writers(component), squares) for layer, component in parts]
        total = torch.cat(scores).cpu().double()
    elif criterion == "random":
        generator = torch.Generator().manual_seed(seed)
        size = sum(layer.count(component) for layer, component in parts)
        total = torch.rand(size, generator=generator, dtype=torch.float64)
    else:
        gates = [layer.gates(component) for layer, component in parts]
        names = [f"{component} of {layer.name}" for layer, component in parts]
        total = torch.zeros(())
        for number, size, products in _products(model, batches, gates, criterion, batch_size):
            _check_finite(products, [layer.count(c) for layer, c in parts], names, number)
            total = total + (products.square() if criterion == "taylor" else products)
            images, count = images + size, number
        total = total / count
    values = total.split([layer.count(component) for layer, component in parts])
    return ChannelImportance(
        model=model_name(model),
        criterion=criterion,
        images=images,
        batches=count,
        channels=tuple(
            ChannelScores(
                block=layer.block,
                name=layer.name,
                component=component,
                num_heads=layer.num_heads,
                input_dim=layer.input_dim,
                scores=tuple(found.tolist()),
            )
            for (layer, component), found in zip(parts, values, strict=True)
        ),
        environment=environment_card(
            device=device,
            precision=str(next(model.parameters()).dtype).removeprefix("torch."),
            batch_size=math.ceil(images / count) if count else None,
            seed=seed if criterion == "random" else None,
            dataset=getattr(batches, "title", None) if count else None,
        ),
    )


@contextmanager
def scaled_channel(
    model: nn.Module, name: str, component: str, channel: int, factor: float = 0.0
) -> Iterator[None]:
    """Within the context one channel of a model is multiplied by a factor; 0 cuts it.

    Args:
        name: of the module, as `ChannelScores.name`.
        component: "q", "k", "v" or "ffn"; cutting a channel of Q makes that of K useless.
        channel: within the component, counted from 0.

    Raises:
        ValueError: a model that is not supported, or no such module, component or channel.
    """
    layer = _layer(model, name, component)
    if not 0 <= channel < layer.count(component):
        raise ValueError(
            f"channel: expected 0 to {layer.count(component) - 1} for {component!r} of {name}, "
            f"got {channel}"
        )
    gates = layer.gates(component)
    run = layer.count(component) // len(gates)
    weights = [slot.rows(slot.parameter)[channel % run] for slot in gates[channel // run]]
    weights = [weight.detach() for weight in weights]
    before = [weight.clone() for weight in weights]
    try:
        for weight in weights:
            weight.mul_(factor)
        yield
    finally:
        for weight, values in zip(weights, before, strict=True):
            weight.copy_(values)


def _layer(model: nn.Module, name: str, component: str) -> ChannelLayer:
    layers = {layer.name: layer for layer in channel_layers(model)}
    if name not in layers or component not in layers[name].components:
        close = get_close_matches(name, layers, n=1)
        known = ", ".join(layers[name].components) if name in layers else ", ".join(close or layers)
        what = ("component", component) if name in layers else ("name", name)
        raise ValueError(f"{what[0]}: expected one of {known}, got {what[1]!r}")
    return layers[name]


def _sums(gates: Sequence[Gate], values: Mapping[Tensor, Tensor]) -> Tensor:
    """[channels]: over the weights of each channel's gate, of the values by parameter."""
    runs = [
        sum(slot.rows(values[slot.parameter]).flatten(1).sum(1) for slot in gate[1:])
        + gate[0].rows(values[gate[0].parameter]).flatten(1).sum(1)
        for gate in gates
    ]
    return torch.cat(runs)


def _products(
    model: nn.Module,
    batches: Batches | None,
    gates: Sequence[Sequence[Gate]],
    criterion: str,
    batch_size: int,
) -> Iterator[tuple[int, int, Tensor]]:
    """For each batch its number, its images and sum of w g (or |w g|) of every channel, float64."""
    slots = [slot for group in gates for gate in group for slot in gate]
    parameters = list(dict.fromkeys(slot.parameter for slot in slots))
    number = 0
    with _evaluating_with_gradients(model, parameters):
        for number, (images, labels) in enumerate(_checked(model, batches, batch_size), start=1):
            with torch.enable_grad():
                logits = model(images)
                _check_labels(labels, logits.shape[1], number)
                logits = logits.float() if logits.dtype.itemsize < 4 else logits
                loss = F.cross_entropy(logits, labels)
                gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                found: dict[Tensor, Tensor] = {}
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    product = parameter * gradient
                    found[parameter] = product if criterion == "taylor" else product.abs_()
                sums = [_sums(group, found) for group in gates]
                yield number, len(labels), torch.cat(sums).cpu().double()
    if number == 0:
        raise ValueError("batches: expected at least one (images, labels) pair, got none")


def _checked(
    model: nn.Module, batches: Batches | None, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images and labels on the model's device."""
    like = next(model.parameters())
    total = len(batches) if isinstance(batches, Sized) else None
    pairs: Any = batches
    if isinstance(batches, (Dataset, StreamingDataset)):
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        total = math.ceil(len(batches) / batch_size)
        pairs = batches.batches(torch.arange(len(batches)), batch_size, device=like.device)
    if pairs is None or isinstance(pairs, Tensor) or not isinstance(pairs, Iterable):
        raise ValueError(
            "batches: expected a data set or (images, labels) pairs, got "
            f"{'none' if pairs is None else type(pairs).__name__}"
        )
    mean, std = normalization(model)
    bar = tqdm(pairs, total=total, desc="scores", unit="batch", leave=False, delay=2)
    for number, pair in enumerate(bar, start=1):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(
                f"batches: expected (images, labels) pairs, got {_shown(pair)} as batch {number}"
            )
        images, labels = pair
        if not isinstance(images, Tensor) or images.ndim != 4 or not len(images):
            raise ValueError(
                f"batches: expected images [B, C, H, W] in batch {number}, got {_shown(images)}"
            )
        whole = isinstance(labels, Tensor) and labels.dtype in (torch.int64, torch.int32)
        if not whole or labels.shape != images.shape[:1]:
            raise ValueError(
                f"batches: expected integer labels [{len(images)}] in batch {number}, "
                f"got {_shown(labels)}"
            )
        images = images.to(like.device)
        if images.dtype == torch.uint8:
            images = normalize(images, mean, std)
        yield images.to(like.dtype), labels.to(like.device, torch.int64)


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return "none" if value is None else type(value).__name__


def _check_labels(labels: Tensor, classes: int, number: int) -> None:
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise ValueError(
            f"batches: expected labels of 0 to {classes - 1}, the model's classes, "
            f"got {int(wrong[0])} in batch {number}"
        )


def _check_finite(
    products: Tensor, counts: Sequence[int], names: Sequence[str], number: int
) -> None:
    if products.isfinite().all():
        return
    bad = [
        name
        for name, part in zip(names, products.split(list(counts)), strict=True)
        if not part.isfinite().all()
    ]
    raise ValueError(
        f"batches: gradients of batch {number} are not finite ({bad[0]}"
        f"{f' and {len(bad) - 1} more' if len(bad) > 1 else ''}); expected finite images and "
        "weights"
    )


@contextmanager
def _evaluating_with_gradients(
    model: nn.Module, parameters: Sequence[nn.Parameter]
) -> Iterator[None]:
    """The model evaluates and these parameters require gradients; all comes back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    try:
        model.eval()
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training
        for parameter in frozen:
            parameter.requires_grad_(False)

"""Weights under which a law can fail: a fresh model's residual norms and biases are all zero."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import torch
from torch import nn

from evitlab import create_model

SMALL = re.compile(r"(\.m|pw2|proj\.1|qkvs\.\d)\.bn\.")
Model = TypeVar("Model", bound=nn.Module)


def randomise(model: Model, seed: int = 0) -> Model:
    """Fill parameters and BatchNorm statistics in place.

    The values depend on the seed and the state dict's names and shapes alone. What a residual adds
    is kept below what it adds to: activations stay near 1 through all blocks and attention stays
    soft, so float32 keeps its precision, while two images' logits still differ by a tenth.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            values = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                values = 0.8 + 0.4 * values.abs()
            elif name.endswith("bn.weight"):
                values = (1 + 0.1 * values) * (0.3 if SMALL.search(name) else 1.0)
            elif tensor.ndim == 1:
                values *= 0.1
            elif not name.endswith("attention_biases"):
                values *= (
                    1.6 / tensor[0].numel()
                ) ** 0.5  # between a linear layer's scale and ReLU's
            tensor.copy_(values)
    return model


def random_model(name: str, *, seed: int = 0, **options: Any) -> Any:
    """`create_model`, randomised and evaluating. `Any`, as modules' attributes have no types."""
    return randomise(create_model(name, **options), seed).eval()


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal values in float64, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())

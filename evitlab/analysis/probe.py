"""One layer of any model as a feature map that captum's methods can hook into."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from evitlab.analysis.layout import global_layout, grid_of
from evitlab.wording import did_you_mean


@contextmanager
def watch_layer(model: nn.Module, name: str) -> Iterator[nn.Identity]:
    """Lead one layer's output through an identity, as a feature map: what captum's methods for
    convolutional layers hook into, whatever the layer's own form is.

    Args:
        model: called as a whole inside; gradients pass.
        name: dotted path of the layer; its output is [B, C, rows, columns], [B, rows, columns, C]
            or tokens [B, N, C], whose class tokens go around the identity.

    Yields:
        The identity; it sees [B, C, rows, columns].

    Raises:
        ValueError: no such layer; in the forward pass, an output that is no such map.
    """
    layers = dict(model.named_modules())
    if name not in layers:
        hint = did_you_mean(name, layers)
        raise ValueError(f"layer: expected a module of the model, got {name!r}{hint}")
    probe, img_size = nn.Identity(), [0, 0]

    def measure(_model: nn.Module, inputs: tuple[Any, ...]) -> None:
        img_size[:] = inputs[0].shape[2:]

    def lead(_layer: nn.Module, _inputs: object, output: Any) -> Tensor:
        shape = list(output.shape) if isinstance(output, Tensor) else []
        if len(shape) == 3:
            layout = global_layout(
                shape[1], tuple(img_size), getattr(model, "num_prefix_tokens", None)
            )
            if layout is not None:
                before, tokens = output[:, : layout.prefix], output[:, layout.prefix :]
                seen = probe(tokens.transpose(1, 2).unflatten(2, layout.grid))
                return torch.cat([before, seen.flatten(2).transpose(1, 2)], 1)
        elif len(shape) == 4 and grid_of(shape[2] * shape[3], img_size) == (shape[2], shape[3]):
            return probe(output)
        elif len(shape) == 4 and grid_of(shape[1] * shape[2], img_size) == (shape[1], shape[2]):
            return probe(output.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        got = shape or type(output).__name__
        raise ValueError(f"layer: expected a feature map or tokens from {name!r}, got {got}")

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(measure).remove)
        stack.callback(layers[name].register_forward_hook(lead).remove)
        yield probe

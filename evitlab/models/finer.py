"""Convolutional networks of timm for small images: finer features, as the `_p4` variants of ours.

Published for 224 pixels, they halve the map five times: 32 pixels would leave one position.
"""

from __future__ import annotations

from typing import Any

import timm
from torch import nn

from evitlab.wording import did_you_mean

STRIDES_LEFT_OUT = 2  # so many fewer than at 224 pixels has the stem of `_p4`, too


def finer_features(name: str, *, img_size: int = 32, num_classes: int = 1000) -> nn.Module:
    """A network of timm whose first two strided convolutions keep the map's size.

    At 32 pixels it then sees, and costs, what it does at 128.

    Args:
        name: of timm, such as "mobilenetv3_small_100"; weights are drawn, not loaded.
        img_size: pixels of both sides, kept in the model's card; it takes other sizes too.
        num_classes: of the classifier.

    Raises:
        ValueError: no such model, or one without as many strided convolutions that overlap.
    """
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        raise ValueError(f"name: expected a model of timm, got {name!r}{hint}")
    model: nn.Module = timm.create_model(name, num_classes=num_classes)
    strided = [
        module
        for module in model.modules()
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2) and module.kernel_size > (2, 2)
    ]
    if len(strided) <= STRIDES_LEFT_OUT:
        raise ValueError(
            f"name: expected a network with more than {STRIDES_LEFT_OUT} convolutions of stride 2, "
            f"got {name!r} with {len(strided)}"
        )
    for module in strided[:STRIDES_LEFT_OUT]:
        module.stride = (1, 1)
    card: Any = model.pretrained_cfg
    model.pretrained_cfg = {**card, "input_size": (3, img_size, img_size)}  # type: ignore[assignment]
    return model

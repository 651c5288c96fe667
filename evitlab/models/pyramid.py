"""The levels that a detector looks at: a backbone's maps, and a neck that makes five of them.

Paper: Table 5; the official downstream code says how.

Shape legend: B images, C channels, H x W pixels of a padded batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evitlab.models.config import EfficientViTConfig
from evitlab.models.cost import without_values
from evitlab.models.zoo import MODELS, create_model
from evitlab.wording import did_you_mean, on_one_line

STRIDES = (8, 16, 32, 64, 128)  # of the levels
# From here on no map of a stage is smaller than a window, so all windows are 7 x 7, as in the
# official detector; the attention-bias tables of weights for 224 pixels are resized.
WINDOW_SIZE_FROM = 448


class Pyramid(nn.Module):
    """Backbone and neck: [B, 3, H, W] -> a map [B, channels, H / stride, W / stride] per level."""

    def __init__(self, body: nn.Module, channels: int) -> None:
        super().__init__()
        self.out_channels = channels  # torchvision asks for it
        widths, reductions = _features_of(body)
        self.used = [i for i, stride in enumerate(reductions) if stride in STRIDES]
        strides = [reductions[i] for i in self.used]
        first = STRIDES.index(strides[0]) if strides else 0
        if not strides or tuple(strides) != STRIDES[first : first + len(strides)]:
            raise ValueError(
                f"backbone_name: expected maps of strides that follow one another in {STRIDES}, "
                f"got {reductions}"
            )
        self.body = body
        self.neck = Neck([widths[i] for i in self.used], strides, channels)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict((str(i), level) for i, level in enumerate(self.neck(self.maps(images))))

    def maps(self, images: Tensor) -> list[Tensor]:
        """What the neck takes of the backbone's maps, finest first."""
        body: Any = self.body
        maps = body.forward_stages(images) if hasattr(body, "forward_stages") else body(images)
        return [maps[i] for i in self.used]


class Neck(nn.Module):
    """A feature pyramid; levels that the backbone lacks are made of its finest and coarsest.

    Finer levels come from the finest sum by transposed convolutions, coarser ones from the
    coarsest output by leaving out every second row and column.

    Args:
        in_channels: of each map, finest first.
        reductions: their strides, each twice the one before.
        channels: of every level.

    Paper: Lin et al., "Feature Pyramid Networks" (2017), with the official code's additions.
    """

    def __init__(
        self, in_channels: Sequence[int], reductions: Sequence[int], channels: int
    ) -> None:
        super().__init__()
        finer = STRIDES.index(reductions[0])
        self.coarser = len(STRIDES) - 1 - STRIDES.index(reductions[-1])
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in in_channels)
        self.output = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(finer + len(in_channels))
        )
        self.finer = nn.ModuleList(
            nn.ConvTranspose2d(channels, channels, 2, stride=2) for _ in range(finer)
        )
        for name, value in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(value)
            elif name.startswith("finer"):
                nn.init.kaiming_normal_(value, mode="fan_out", nonlinearity="relu")
            else:
                nn.init.xavier_uniform_(value)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """[B, in_channels, h, w] each, finest first -> [B, channels, …] per level."""
        sums = [conv(level) for conv, level in zip(self.lateral, maps, strict=True)]
        for i in reversed(range(len(sums) - 1)):
            sums[i] = sums[i] + F.interpolate(sums[i + 1], size=sums[i].shape[2:])
        for conv in self.finer:
            sums.insert(0, conv(sums[0]))
        levels = [conv(level) for conv, level in zip(self.output, sums, strict=True)]
        for _ in range(self.coarser):
            levels.append(F.max_pool2d(levels[-1], 1, stride=2))
        return levels


def build_body(name: str) -> nn.Module:
    """The backbone of a name, its weights drawn, without a classifier.

    Raises ValueError where there is none, or its maps are of no use.
    """
    if isinstance(MODELS.get(name), EfficientViTConfig):
        return create_model(name, img_size=WINDOW_SIZE_FROM, num_classes=0)
    family = [name for name, config in MODELS.items() if isinstance(config, EfficientViTConfig)]
    known = timm.list_models()
    if name in MODELS or name.removeprefix("timm/") not in known:
        hint = did_you_mean(name, [*family, *known])
        raise ValueError(
            f"backbone_name: expected an EfficientViT or a model of timm, got {name!r}{hint}"
        )
    try:
        body = build_timm(name)
        _check_maps(body)
    except (RuntimeError, AttributeError, NotImplementedError, AssertionError) as error:
        reason = on_one_line(error) or type(error).__name__
        raise ValueError(
            "backbone_name: expected a model that gives maps [B, C, H, W] of several strides for "
            f"images of any size, got {name!r} ({reason})"
        ) from error
    return body


def build_timm(name: str, *, pretrained: bool = False) -> nn.Module:
    """A network of timm up to its last map; `pretrained` with the hub's weights."""
    return timm.create_model(
        name.removeprefix("timm/"), features_only=True, pretrained=pretrained
    )


def _check_maps(body: nn.Module) -> None:
    """Raise an AssertionError where maps are not what `feature_info` says; nothing is computed."""
    height, width = 128, 192
    ghost = without_values(body).eval()
    maps = ghost(torch.empty(1, 3, height, width, device="meta"))
    for level, channels, stride in zip(maps, *_features_of(body), strict=True):
        wanted = [1, channels, -(-height // stride), -(-width // stride)]
        assert list(level.shape) == wanted, f"a map is {list(level.shape)}, not {wanted}"


def _features_of(body: Any) -> tuple[list[int], list[int]]:
    """Channels and stride of each map, finest first."""
    info = body.feature_info if isinstance(body.feature_info, list) else body.feature_info.info
    return [level["num_chs"] for level in info], [level["reduction"] for level in info]

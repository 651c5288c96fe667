"""The recipe "detection" and the detector beside the official RetinaNet, field by field.

Our side is read from the recipe, from a detector that is built, and from torchvision's signatures.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torchvision.ops import sigmoid_focal_loss

from evitlab import paper
from evitlab.models.detector import (
    DIVISOR,
    OCTAVE_SCALE,
    SCALES_PER_OCTAVE,
    RetinaNet,
    create_detector,
)
from evitlab.models.pyramid import STRIDES
from evitlab.training.recipe import Recipe


@lru_cache
def _detector() -> RetinaNet:
    """The paper's, without values."""
    with torch.device("meta"):
        return create_detector("efficientvit_m4", num_classes=80)


def _neck() -> Any:
    return _detector().backbone.neck


def _focal(name: str) -> Any:
    """What torchvision's head, which names none, takes."""
    return inspect.signature(sigmoid_focal_loss).parameters[name].default


SETTINGS: dict[str, Callable[[Recipe], Any]] = {
    "lr_steps": lambda r: r.lr_steps if r.schedule == "steps" else None,
    "lr": lambda r: r.peak_lr,
    "betas": lambda r: r.betas,
    "warmup_iters": lambda r: r.warmup_steps,
    "warmup_ratio": lambda r: r.warmup_lr / r.peak_lr,
    "img_size": lambda r: _detector().config.img_size[::-1],
    "size_divisor": lambda r: DIVISOR,
    "clip_grad": lambda r: None if r.clip == "none" else r.clip_grad,
    "fp16": lambda r: {"float32": False, "bfloat16": True}.get(r.precision, "bfloat16 on a GPU"),
    "neck_in_channels": lambda r: tuple(conv.in_channels for conv in _neck().lateral),
    "neck_out_channels": lambda r: _detector().config.channels,
    "neck_outputs": lambda r: len(_neck().output) + _neck().coarser,
    "neck_extra_transposed_convs": lambda r: len(_neck().finer),
    "octave_scale": lambda r: OCTAVE_SCALE,
    "scales_per_octave": lambda r: SCALES_PER_OCTAVE,
    "strides": lambda r: STRIDES,
    "focal_gamma": lambda r: _focal("gamma"),
    "focal_alpha": lambda r: _focal("alpha"),
    "box_loss": lambda r: _detector().head.regression_head._loss_type,
}
CIRCUMSTANCES: dict[str, Callable[[], Any]] = {
    "images_per_gpu": lambda: "batch_total over the processes and the accumulated parts",
}
WHY = {
    "no_weight_decay": "biases and norms do not decay either, as in all recipes here; the official "
    "configuration names the attention biases alone",
}


def published() -> dict[str, Any]:
    """The official configuration in one flat table, as far as it is of RetinaNet."""
    fields = paper.recipe("detection")
    neck, retinanet = fields.pop("neck"), fields.pop("retinanet")
    del fields["mask_rcnn"]  # not built here
    extra = neck.pop("extra_transposed_convs")["retinanet"]
    fields |= {f"neck_{name}": value for name, value in neck.items()}
    return {**fields, "neck_extra_transposed_convs": extra, **retinanet}

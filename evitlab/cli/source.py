"""The model that a command is about: by its name, or from trained weights."""

from __future__ import annotations

import argparse
from difflib import get_close_matches
from typing import Any

SOURCE = (
    "a name of `evitlab models`, a run's folder, a .safetensors file, or a name in data/checkpoints"
)


def open_source(args: argparse.Namespace) -> tuple[Any, bool]:
    """The model in evaluation mode, and whether its weights were loaded.

    Args:
        args: with `source`, and the options `weights`, `num_classes` and `img_size` of a new model.

    Raises:
        ValueError: such an option beside trained weights, or one that does not fit.
        FileNotFoundError: neither a model's name nor weights.
    """
    import torch

    from evitlab.models.zoo import create_model, list_models, load_model, native_img_size

    if args.source not in list_models():
        for option in ("weights", "num_classes"):
            if getattr(args, option) is not None:
                name = f"--{option.replace('_', '-')}"
                raise ValueError(f"{name}: expected the name of a model, got {args.source!r}")
        try:
            return load_model(args.source), True
        except FileNotFoundError:
            if get_close_matches(args.source, list_models()):
                create_model(args.source)  # its error names the closest model
            raise
    side = args.img_size or native_img_size(args.source)
    classes = 1000 if args.num_classes is None else args.num_classes
    with torch.random.fork_rng([]):
        torch.manual_seed(0)  # the same file each time
        model = create_model(args.source, img_size=side, num_classes=classes, weights=args.weights)
    return model.eval(), args.weights is not None

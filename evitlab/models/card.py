"""The card beside the tensors of a weights file: what it takes to rebuild the model.

A file may come from anywhere, so the card is checked before anything is built by it: the type of
each entry, and that the model is not far larger than the file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from evitlab.models.weights import find_checkpoint
from evitlab.wording import on_one_line

_MOST_PIXELS = 2**26  # of an image that a model is built for
# A model may be larger than its file, which stores it in half precision or pruned.
_TIMES_LARGER, _SLACK_BYTES = 16, 2**28
_COUNTS = ("depth", "num_heads", "ffns")  # each of these many parts has tensors of its own


def read_card(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save_weights` wrote beside the tensors: architecture, config, classes, normalisation.

    Raises:
        FileNotFoundError: no such file or checkpoint name.
        ValueError: not a safetensors file of this library.
    """
    file = find_checkpoint(path)
    try:
        with safe_open(file, "pt") as tensors:
            card = json.loads((tensors.metadata() or {})["evitlab"])
            _check_entries(card)
            _check_counts(card["config"], len(tensors.keys()))
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected safetensors written by evitlab, with the model's card ({error})"
        ) from error
    return card


def check_size(path: str | os.PathLike[str], build: Callable[[], nn.Module]) -> None:
    """Raise a ValueError where the model of a card cannot be built, or is far larger than its file.

    Args:
        path: of the weights.
        build: what builds the model; called where tensors take no memory.
    """
    try:
        with torch.device("meta"):
            model = build()
    except ValueError:
        raise
    except Exception as error:  # whatever torch and timm raise where numbers make no sense
        reason = on_one_line(error).partition(". ")[0]
        raise ValueError(
            f"{path}: expected the card of a model that can be built, got another "
            f"({type(error).__name__}: {reason})"
        ) from error
    tensors = chain(model.parameters(), model.buffers())
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    held = find_checkpoint(path).stat().st_size
    if needed > _TIMES_LARGER * held + _SLACK_BYTES:
        raise ValueError(
            f"{path}: expected the card of a model that fits its {held / 2**20:.1f} MiB, got one "
            f"of {needed / 2**20:,.0f} MiB"
        )


def _check_entries(card: Any) -> None:
    """Raise a ValueError that names the first entry of another type."""
    _require(isinstance(card, dict), "card", "an object", card)
    _require(isinstance(card["architecture"], str), "architecture", "a name", card["architecture"])
    config = card["config"]
    _require(isinstance(config, dict), "config", "an object", config)
    _require(_all(card["class_names"], str), "class_names", "a list of names", card["class_names"])
    lengths = (3, config.get("in_chans", 3))
    for name, least in (("mean", -math.inf), ("std", 0)):
        values = card.get(name)
        fine = not values or (_all(values, (int, float)) and len(values) in lengths)
        _require(
            fine and all(least < value < math.inf for value in values or ()),
            name, "a finite number for each channel", values,
        )  # fmt: skip
    ids = card.get("category_ids", [])
    _require(_all(ids, int), "category_ids", "a list of integers", ids)
    widths = card.get("channel_widths", {})
    fine = isinstance(widths, dict) and all(isinstance(one, dict) for one in widths.values())
    _require(
        fine and all(_all(list(one.values()), int) for one in widths.values()),
        "channel_widths", "integers by layer and part", widths,
    )  # fmt: skip
    size = config.get("img_size", [1, 1])
    _require(
        _all(size, int) and len(size) == 2 and 0 < size[0] * size[1] <= _MOST_PIXELS,
        "config.img_size", f"height and width of at most {_MOST_PIXELS:,} pixels", size,
    )  # fmt: skip


def _check_counts(config: Mapping[str, Any], most: int) -> None:
    """Raise a ValueError where there would be more blocks or heads than the file has tensors."""
    for name in _COUNTS:
        value = config.get(name)
        for number in value if isinstance(value, list) else [value]:
            fine = not isinstance(number, (int, float)) or number <= most
            _require(fine, f"config.{name}", f"at most {most}, as many as tensors", number)


def _all(values: Any, kind: type | tuple[type, ...]) -> bool:
    """Whether a value is a list of nothing else; true is no number."""
    return isinstance(values, list) and all(
        isinstance(value, kind) and not isinstance(value, bool) for value in values
    )


def _require(fine: bool, name: str, expected: str, got: Any) -> None:
    if not fine:
        shown = repr(got)
        shown = shown if len(shown) <= 80 else f"{shown[:80]}…"
        raise ValueError(f"{name}: expected {expected}, got {shown}")

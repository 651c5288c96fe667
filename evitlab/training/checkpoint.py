"""Checkpoints and final weights: written whole or not at all, read without running code."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialize
from torch import nn
from tqdm.auto import tqdm

from evitlab.models.weights import read_file
from evitlab.models.zoo import config_fields
from evitlab.records import write_atomically

FORMAT = 1


def save_checkpoint(state: dict[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write tensors and plain values with `torch.save`, atomically; the last one before is kept.

    Raises OSError where the folder cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    before = one_before(Path(path))
    if Path(path).exists():  # there is never a third one on the disk
        before.unlink(missing_ok=True)
    return write_atomically(path, buffer.getvalue(), keep=before)


def one_before(path: Path) -> Path:
    """Where the checkpoint goes that a new one takes the place of."""
    return path.with_name("previous.pt")


def newest_checkpoint(path: Path) -> dict[str, Any] | None:
    """The last checkpoint; where it is damaged or gone, the one before, which takes its place.

    Raises ValueError where one is damaged and there is none before it.
    """
    before = one_before(path)
    try:
        if path.exists():
            return load_checkpoint(path)
    except ValueError as error:
        if not before.exists():
            raise
        tqdm.write(f"{error}; going on from the checkpoint before it", file=sys.stderr)
    if not before.exists():
        return None
    state = load_checkpoint(before)
    os.replace(before, path)
    return state


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, onto the CPU.

    Raises ValueError where the file is truncated, holds code, or is no checkpoint of a run.
    """
    state = read_file(Path(path))
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path}: expected a checkpoint of format {FORMAT} of this library")
    return state


def save_weights(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    class_names: tuple[str, ...] = (),
    half: bool = False,
) -> Path:
    """Write a state dict as safetensors, with what it takes to rebuild the model.

    Args:
        model: from `create_model` or timm, pruned or not.
        path: target; written atomically.
        class_names: kept beside the weights.
        half: store kernels and matrices as float16; biases and the norms' statistics, which may
            be larger than float16 holds, stay as they are.

    Raises:
        OSError: the folder cannot be written.
    """
    tensors = {
        key: (value.half() if half and value.ndim > 1 else value).cpu().contiguous()
        for key, value in model.state_dict().items()
    }
    cfg = dict(getattr(model, "pretrained_cfg", None) or {})
    card = {**cfg, "config": config_fields(model), "class_names": class_names}
    if pruned := getattr(model, "channel_widths", {}):
        card["channel_widths"] = pruned
    data = serialize(tensors, metadata={"evitlab": json.dumps(card)})
    return write_atomically(path, data)

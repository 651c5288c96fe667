"""Models out of Python: ONNX files and torch.export programs, checked before they stay.

Both take normalised images [batch, in_chans, H, W] of one size, with a free batch dimension.
"""

import contextlib
import copy
import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evitlab.models.deploy import deploy
from evitlab.models.efficientvit import EfficientViT
from evitlab.models.onnx_graph import (
    CARD,
    onnx_session,
    quietly,
    require_onnx,
    set_card,
    trace_onnx,
)
from evitlab.models.zoo import config_fields, normalization

TOLERANCE = 1e-4  # largest difference over the largest logit


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    img_size: int | tuple[int, int] | None = None,
    batch_sizes: Sequence[int] = (1, 8),
    verify: bool = True,
) -> Path:
    """Write a model's inference form as ONNX: "images" [batch, in_chans, H, W] -> "logits".

    Args:
        model: an EfficientViT, its deployed form, or another module that says its `config` or
            `pretrained_cfg`; float32 and in evaluation mode. It is not changed.
        path: target; written atomically.
        img_size: int or (height, width) in pixels; None takes the model's own.
        batch_sizes: at which the file is compared with PyTorch.
        verify: False writes without the comparison, and without ONNX Runtime.

    Returns:
        The path. `describe_onnx` tells what the file holds and how well it agreed.

    Raises:
        ImportError: onnx, onnxscript or (to verify) onnxruntime is not installed.
        ValueError: a model in training mode, not in float32 or of unknown image size; a file whose
            logits differ from PyTorch's by more than `TOLERANCE`, which does not stay.
        OSError: the folder cannot be written.
    """
    require_onnx("onnx", "onnxscript", *["onnxruntime"] * verify)
    _check(model, batch_sizes)
    example = _example(model, img_size)
    with new_file(path) as temporary:
        # On the CPU: a GPU's convolutions may round to TF32, which no file would agree with.
        model = copy.deepcopy(model).cpu()
        proto = trace_onnx(inference_form(model, onnx=True), example)
        card = model_card(model, (example.shape[2], example.shape[3]))
        if verify:
            call = onnx_session(proto.SerializeToString())
            card["verified"] = _agreement(model, call, example, batch_sizes, Path(path).name)
        set_card(proto, card)
        temporary.write_bytes(proto.SerializeToString())
    return Path(path)


def export_program(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    img_size: int | tuple[int, int] | None = None,
    batch_sizes: Sequence[int] = (1, 8),
    verify: bool = True,
) -> Path:
    """Write a model's inference form as a torch.export program (.pt2), for the model's device.

    `torch.export.load(path).module()` runs it without this library. The card that `model_card`
    makes is its extra file "evitlab". Arguments as for `export_onnx`.

    Raises:
        ValueError: as for `export_onnx`.
        OSError: the folder cannot be written.
    """
    _check(model, batch_sizes)
    example = _example(model, img_size).to(next(model.parameters()).device)
    with new_file(path) as temporary, torch.no_grad():
        dynamic = ({0: torch.export.Dim("batch")},)
        with quietly():
            program = torch.export.export(inference_form(model), (example,), dynamic_shapes=dynamic)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # folders of this machine
        card = model_card(model, (example.shape[2], example.shape[3]))
        archive = BytesIO()
        with quietly():  # it warns of weights that are views; the comparison below is the test
            torch.export.save(program, archive, extra_files={CARD: json.dumps(card)})
        if verify:
            archive.seek(0)
            call = torch.export.load(archive).module()
            _agreement(model, call, example, batch_sizes, Path(path).name)
        temporary.write_bytes(archive.getvalue())
    return Path(path)


def inference_form(model: nn.Module, *, onnx: bool = False) -> nn.Module:
    """The deployed form of an EfficientViT with BatchNorm; any other module is taken as it is.

    With `onnx`, a module may offer a form of its own to be traced, by a method `for_onnx`.
    """
    folds = isinstance(model, EfficientViT) and model.config.norm == "batch"
    form = deploy(model) if folds else model
    own_form: Callable[[], nn.Module] | None = getattr(form, "for_onnx", None)
    return own_form() if onnx and own_form is not None else form


def model_card(model: nn.Module, img_size: tuple[int, int]) -> dict[str, Any]:
    """What a user of an exported file must know, as plain values."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    pruned: Any = getattr(model, "channel_widths", {})
    mean, std = normalization(model)
    try:
        release = version("evitlab")
    except PackageNotFoundError:  # imported from a folder on the path
        release = "unknown"
    return {
        "architecture": cfg.get("architecture", type(model).__name__),
        "config": config_fields(model),
        **({"channel_widths": pruned} if pruned else {}),
        "img_size": img_size,
        "class_names": tuple(getattr(model, "class_names", ())),
        "mean": mean,
        "std": std,
        "evitlab": release,
    }


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty file beside the target that takes its place at the end, or goes after an error.

    Raises OSError at once where the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch(exist_ok=False)
        except OSError as error:
            reason = f"cannot write here ({error.strerror})"
            raise OSError(error.errno, reason, str(path)) from error
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # the folder is not there or not ours: nothing is left
            temporary.unlink(missing_ok=True)


def _check(model: nn.Module, batch_sizes: Sequence[int]) -> None:
    if model.training:
        raise ValueError("model: expected evaluation mode, got training mode; call model.eval()")
    others = {str(p.dtype) for p in model.parameters()} - {"torch.float32"}
    if others:
        raise ValueError(f"model: expected float32, got {', '.join(others)}; use model.float()")
    if not batch_sizes or min(batch_sizes) < 1:
        raise ValueError(f"batch_sizes: expected numbers of at least 1, got {list(batch_sizes)}")


def _example(model: nn.Module, img_size: int | tuple[int, int] | None) -> Tensor:
    """Two images of normally distributed values, the same each time."""
    config = getattr(model, "config", None)
    said = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 0, 0))
    channels = getattr(config, "in_chans", said[0])
    size = getattr(config, "img_size", said[1:]) if img_size is None else img_size
    height, width = size if isinstance(size, Sequence) else (size, size)
    if min(height, width) < 1:
        name = type(model).__name__
        raise ValueError(f"img_size: expected pixels, got {img_size} (and {name} says no size)")
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _agreement(
    model: nn.Module,
    call: Callable[[Tensor], Tensor],
    example: Tensor,
    batch_sizes: Sequence[int],
    name: str,
) -> dict[str, Any]:
    """Largest relative difference from the model's logits; ValueError beyond the tolerance."""
    generator = torch.Generator().manual_seed(1)
    worst = 0.0
    for batch in batch_sizes:
        images = torch.randn(batch, *example.shape[1:], generator=generator).to(example.device)
        expected, found = model(images), call(images)
        error = float((found - expected).abs().max() / expected.abs().max())
        if not error <= TOLERANCE:  # also where it is not a number
            raise ValueError(
                f"{name}: expected PyTorch's logits within {TOLERANCE:.0e} at batch size {batch}, "
                f"got a relative error of {error:.1e}; the file was not kept"
            )
        worst = max(worst, error)
    return {"relative_error": worst, "batch_sizes": list(batch_sizes)}

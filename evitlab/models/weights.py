"""Weights from the official files, timm, the hub or our own safetensors into a model."""

import math
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table_simple
from torch import Tensor, nn

from evitlab.models.deploy import DEPLOYED
from evitlab.resources import data_dir
from evitlab.wording import on_one_line, shown


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did, by state-dict key of the model.

    Attributes:
        layout: "official" where names had to be mapped, else "timm".
        loaded: keys that were copied, resized ones included.
        resized: attention-bias tables that were interpolated to another window, and a ViT's
            position embeddings to another grid.
        missing: keys of the model that the source lacks.
        unexpected: keys of the source that the model lacks.
        mismatched: keys in both, of another shape; left as they were in the model.
    """

    layout: str
    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]


def load_weights(
    model: nn.Module, source: str | os.PathLike[str] | Mapping[str, Tensor], *, strict: bool = True
) -> LoadReport:
    """Copy weights into a model; nothing is copied when an error is raised.

    Args:
        model: from `create_model`, or any module whose names the source uses.
        source: a path (.pth, .pt, .safetensors), a state dict, "timm" for the hub's ImageNet
            weights of this model, or a name in data/checkpoints.
        strict: False accepts missing and unexpected keys, and leaves tensors of another shape
            (a classifier of another class count) as they are.

    Pitfall: a bare state dict does not say whether the table of an oblong window is 5 x 3 or 3 x 5;
    only tables of square windows are resized.

    Raises:
        ValueError: a file that is truncated, needs code to be unpickled or holds no state dict;
            weights that are NaN or infinite; with `strict`, keys or shapes that differ.
        FileNotFoundError: no such file, checkpoint or hub model.
    """
    if isinstance(model, DEPLOYED):
        model.load_state_dict({})  # says why not, and what to do instead
    tensors = _read(model, source)
    official = any(re.match(r"blocks\d\.|patch_embed\.\d", key) for key in tensors)
    if official:
        tensors = {_timm_name(key): value for key, value in tensors.items()}
    windows = {
        f"{name}.attention_biases": module.window
        for name, module in model.named_modules()
        if hasattr(module, "attention_biases") and hasattr(module, "window")
    }
    relative: dict[str, Any] = {  # Swin's
        f"{name}.relative_position_bias_table": module.window_size
        for name, module in model.named_modules()
        if hasattr(module, "relative_position_bias_table") and hasattr(module, "window_size")
    }
    target = model.state_dict()
    copies: dict[str, Tensor] = {}
    resized, mismatched = [], []
    for key in (key for key in target if key in tensors):
        value, shape = tensors[key], target[key].shape
        if value.ndim == 2 and shape[2:] == (1, 1):  # official files keep 1x1 kernels as matrices
            value = value[:, :, None, None]
        if key in windows and value.shape != shape and value.shape[:1] == shape[:1]:
            value = resize_bias_table(value, windows[key])
            resized.append(key)
        if key in relative and value.shape != shape and value.ndim == len(shape) == 2:
            value = resize_rel_pos_bias_table_simple(value, relative[key], tuple(shape))
            resized.append(key)
        if key == "pos_embed" and value.shape != shape and value.ndim == len(shape) == 3:
            value = _resize_positions(value, model)
            resized.append(key)
        if value.shape == shape:
            copies[key] = value
        else:
            mismatched.append(key)
    report = LoadReport(
        layout="official" if official else "timm",
        loaded=tuple(key for key in target if key in copies),
        resized=tuple(sorted(resized)),
        missing=tuple(key for key in target if key not in tensors),
        unexpected=tuple(sorted(tensors.keys() - target.keys())),
        mismatched=tuple(sorted(mismatched)),
    )
    if strict and (report.missing or report.unexpected or report.mismatched):
        raise ValueError(f"source: does not fit the model: {_differences(report, target, tensors)}")
    if not copies:
        raise ValueError("source: expected a state dict of this model, got none of its keys")
    copies = {key: value.to(target[key].dtype) for key, value in copies.items()}
    broken = [key for key, value in copies.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"source: expected finite numbers, got NaN or infinity in {len(broken)} of "
            f"{len(copies)} tensors, such as {shown(broken[0])}: weights of a run that diverged, "
            "or a damaged file"
        )
    with torch.no_grad():
        for key, value in copies.items():
            target[key].copy_(value)
    return report


def resize_bias_table(table: Tensor, window: tuple[int, int]) -> Tensor:
    """Interpolate attention biases [h, rows * columns] of a square window to another window.

    Bicubic with antialiasing, as timm does.

    Raises ValueError where the table is not a square window's.
    """
    side = math.isqrt(table.shape[1])
    if side * side != table.shape[1]:
        raise ValueError(
            f"attention_biases: expected the table of a square window, got {table.shape[1]} "
            "offsets; build the model at the image size of these weights"
        )
    grid = table.float().view(1, table.shape[0], side, side)
    grid = F.interpolate(grid, size=window, mode="bicubic", antialias=True, align_corners=False)
    return grid.view(table.shape[0], -1).to(table.dtype)


def _resize_positions(embedding: Tensor, model: Any) -> Tensor:
    """A ViT's position embeddings [1, N, C] of a square grid for the model's own grid."""
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    apart = getattr(model, "no_embed_class", False)  # the class token has no position
    prefix = 0 if apart else getattr(model, "num_prefix_tokens", 0)
    tokens = embedding.shape[1] - prefix
    if grid is None or tokens < 1 or math.isqrt(tokens) ** 2 != tokens:
        return embedding
    return resample_abs_pos_embed(embedding, list(grid), num_prefix_tokens=prefix)


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """A weights file from its path, a training run's folder, or a name in data/checkpoints."""
    given = Path(path)
    shipped = data_dir() / "checkpoints" / f"{given.name}.safetensors"
    is_name = len(given.parts) == 1  # else a mistyped path would find another file of that name
    for file in (given, given / "model.safetensors", *([shipped] if is_name else [])):
        if file.is_file():
            return file
    names = sorted(file.stem for file in shipped.parent.glob("*.safetensors"))
    raise FileNotFoundError(
        f"{path}: expected a weights file, a run's folder, or one of {', '.join(names) or 'no'} "
        "checkpoints; found nothing there"
    )


def _read(model: nn.Module, source: str | os.PathLike[str] | Mapping[str, Tensor]) -> dict:
    if isinstance(source, Mapping):
        state: Any = source
    elif source == "timm":
        state = _from_hub(model)
    else:
        state = read_file(find_checkpoint(source))
    for key in ("model", "state_dict"):  # the official and timm's training checkpoints nest it
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise ValueError(f"source: expected a state dict of tensors, got {type(state).__name__}")
    for key, value in state.items():
        if not isinstance(key, str) or not _is_plain(value):
            got = type(value).__name__
            if isinstance(value, Tensor):
                got = f"one of {value.dtype}, {value.layout}"
            raise ValueError(
                f"source: expected a state dict of tensors, got {got} as {shown(key)}; tensors "
                "are to be dense, of real numbers and go by names"
            )
    # Index tables and cached biases follow from the window; they are not weights.
    derived = ("attention_bias_idxs", ".ab")
    return {key: value for key, value in state.items() if not key.endswith(derived)}


def _is_plain(value: Any) -> bool:
    """Whether a value is a tensor of real numbers that lie in memory one after another."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_nested or value.is_quantized or value.is_meta or value.is_complex())
    )


def read_file(path: Path) -> Any:
    """What a .safetensors file or a pickle of plain values and tensors holds, on the CPU.

    Raises ValueError, naming the file, where it is damaged, needs code to be unpickled, or holds
    more than its size.
    """
    try:
        _check_entries(path)
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as tensors:
                return {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no pickle raise whatever they lead the reader to
        if isinstance(error, OSError) and error.filename:  # without: torch's, of a truncated file
            raise
        if isinstance(error, MemoryError):
            raise ValueError(f"{path}: declares more than the memory holds") from error
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            raise ValueError(
                f"{path}: needs code to be unpickled ({code[1]}), which is refused; "
                "save its state dict alone"
            ) from error
        # Torch's own advice comes first in its message, and is to run the code.
        reason = str(error).partition("WeightsUnpickler error:")[2] or str(error)
        reason = on_one_line(reason.strip().partition("\n")[0].partition(". ")[0])
        reason = f"{type(error).__name__}: {reason}"
        raise ValueError(f"{path}: truncated or not a weights file ({reason})") from error


def _check_entries(path: Path) -> None:
    """Raise a ValueError where a zip would unpack to more than its size, which torch's never do."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or unpacked > path.stat().st_size:
            raise ValueError(f"holds {unpacked:,} bytes packed into {path.stat().st_size:,}")


def _from_hub(model: nn.Module) -> Any:
    from timm.models import load_state_dict_from_hf

    cfg = getattr(model, "pretrained_cfg", None) or {}
    repository = cfg.get("hf_hub_id")
    if not repository:
        raise ValueError(f"source: 'timm' needs a model by name, got a {type(model).__name__}")
    try:
        return load_state_dict_from_hf(repository, weights_only=True)
    except Exception as error:  # the hub's client raises a dozen types for "not reachable"
        raise FileNotFoundError(
            f"weights='timm': {repository} is not in the local cache and cannot be fetched "
            f"({type(error).__name__}); download it and pass its path"
        ) from error


def _timm_name(key: str) -> str:
    """Official name -> timm's: patch_embed.2.c.weight -> patch_embed.conv2.conv.weight."""
    key = re.sub(r"\.c\.", ".conv.", key)
    key = re.sub(r"^(head|head_dist)\.l\.", r"\1.linear.", key)
    stem = re.match(r"patch_embed\.(\d+)\.(.*)", key)
    if stem:
        return f"patch_embed.conv{int(stem[1]) // 2 + 1}.{stem[2]}"
    block = re.match(r"blocks(\d)\.(\d+)\.(.*)", key)
    if not block:
        return key
    stage, index, rest = int(block[1]) - 1, int(block[2]), block[3]
    # Later stages begin with the three parts of the subsampling.
    if stage > 0 and index < 3:
        return f"stages.{stage}.downsample.{('res1', 'patchmerge', 'res2')[index]}.{rest}"
    return f"stages.{stage}.blocks.{index - 3 * (stage > 0)}.{rest}"


def _differences(report: LoadReport, target: Mapping, tensors: Mapping) -> str:
    parts = [
        f"{shown(key)} is {list(tensors[key].shape)}, expected {list(target[key].shape)}"
        for key in report.mismatched[:2]
    ]
    for kind in ("missing", "unexpected"):
        keys = getattr(report, kind)
        if keys:
            first = ", ".join(map(shown, keys[:2]))
            parts.append(f"{len(keys)} {kind} ({first}{', …' * (len(keys) > 2)})")
    return "; ".join(parts) + "; strict=False takes what fits"

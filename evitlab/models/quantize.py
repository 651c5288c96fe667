"""int8: an ONNX file quantized by ONNX Runtime's own tool, calibrated on real images.

Activations are unsigned and weights signed, which integer kernels of x86 processors multiply
fastest. Weights use 7 of their 8 bits: processors with AVX2 but without VNNI add two products in
16 bits, which two full-range weights can overflow.
"""

import copy
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from evitlab.models.export import new_file
from evitlab.models.onnx_graph import (
    describe_onnx,
    onnx_session,
    quietly,
    read_onnx,
    require_onnx,
    set_card,
)

BATCH = 32  # images at once where they come as one tensor
# What moves or views values without computing: no layer, whatever its type.
_LAYOUT = {
    "Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "ReorderInput",
    "ReorderOutput", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
    "QuantizeLinear", "DequantizeLinear",
}  # fmt: skip


def quantize_onnx(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    images: Tensor | Iterable[Tensor],
) -> Path:
    """Write an ONNX file in int8, every operator that the engine computes in integers.

    There is no choice of layers to spare: ONNX Runtime quantizes a convolution between quantized
    neighbours again when it loads the file, and where accuracy was measured none needed it.

    Args:
        source: a float32 file, from `export_onnx` or elsewhere.
        path: target; written atomically.
        images: float32 [n, C, H, W] or batches of them, normalised as the model expects: real
            ones, since the range of each tensor is what they give it (a mean over batches of
            the smallest and the largest value). Some hundred are enough.

    Returns:
        The path. Its card (`describe_onnx(path).card["quantized"]`) says which layers the engine
        has no integer form of and computes in float32, and by how much the logits of the
        calibration images changed.

    Raises:
        ImportError: onnx or onnxruntime is not installed.
        ValueError: no ONNX file, no images, or images of another shape.
        OSError: the folder cannot be written.

    Pitfall: on processors without integer instructions for dot products (before AVX2) int8 may be
    slower than float32; measure it there.
    """
    require_onnx("onnx", "onnxruntime")
    proto = read_onnx(source)
    batches = _batches(images, _input_shape(proto))
    with new_file(path) as temporary:
        _quantize(proto, temporary, batches)
        card = describe_onnx(source).card | {
            "quantized": {
                "activations": "unsigned 8 bits",
                "weights": "signed 7 bits, per channel",
                "images": sum(len(batch) for batch in batches),
                "relative_error": _difference(source, temporary, batches),
                "float32": float_layers(temporary),
            }
        }
        card.pop("verified", None)  # that was the float file
        quantized = read_onnx(temporary)
        set_card(quantized, card)
        temporary.write_bytes(quantized.SerializeToString())
    return Path(path)


def float_layers(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Layers of a quantized file that ONNX Runtime computes in float32 on this machine.

    Read from the engine's own plan, which joins what it can into integer operators.
    """
    require_onnx("onnx", "onnxruntime")
    import onnxruntime

    with TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = os.path.join(folder, "plan.onnx")
        options.log_severity_level = 4  # also the advice to run such a file on this machine only
        onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        plan = read_onnx(options.optimized_model_filepath)
    return tuple(
        node.name.removesuffix("_nchwc")
        for node in plan.graph.node
        if not node.op_type.startswith(("QLinear", "QGemm")) and node.op_type not in _LAYOUT
    )


def _quantize(proto: Any, path: Path, batches: list[Tensor]) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        """Hands out each batch once."""

        def __init__(self) -> None:
            name = proto.graph.input[0].name
            self.inputs: Iterator[dict[str, Any]] = ({name: b.numpy()} for b in batches)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.inputs, None)

    with quietly():
        quantize_static(
            copy.deepcopy(proto),  # the tool writes into it
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,  # 7 bits
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"CalibMovingAverage": True},
        )


def _input_shape(proto: Any) -> list[int]:
    """[C, H, W]"""
    return [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim][1:]


def _batches(images: Tensor | Iterable[Tensor], shape: list[int]) -> list[Tensor]:
    batches = list(images.split(BATCH) if isinstance(images, Tensor) else images)
    for batch in batches:
        if batch.dtype != torch.float32 or list(batch.shape[1:]) != shape:
            raise ValueError(
                f"images: expected float32 [n, {', '.join(map(str, shape))}], "
                f"got {batch.dtype} {list(batch.shape)}"
            )
    batches = [batch.cpu() for batch in batches if len(batch)]
    if not batches:
        raise ValueError("images: expected some to calibrate with, got none")
    return batches


def _difference(source: str | os.PathLike[str], path: Path, batches: list[Tensor]) -> float:
    """Root mean square of the logits' change over that of the logits."""
    before, after = (torch.cat([*map(onnx_session(file), batches)]) for file in (source, path))
    error = float((after - before).square().mean().sqrt() / before.square().mean().sqrt())
    if not error < float("inf"):
        raise ValueError(f"{source}: its logits are not finite, with the images or in int8")
    return error

"""An exported file measured: its accuracy, and int8 beside float32."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from evitlab.analysis.comparison import interleave
from evitlab.analysis.conditions import cpu_threads
from evitlab.datasets import AnyDataset
from evitlab.models.onnx_graph import describe_onnx, onnx_session
from evitlab.models.quantize import quantize_onnx
from evitlab.models.zoo import normalization
from evitlab.records import (
    Accuracy,
    QuantizationRecord,
    QuantizationSpeed,
    environment_card,
    quartiles,
)
from evitlab.training.augment import normalize
from evitlab.training.evaluation import evaluate

CALIBRATION_BATCH = 32


class OnnxModel(nn.Module):
    """A file that this library exported, run by ONNX Runtime as a module: images -> logits.

    Raises:
        ImportError: onnx or onnxruntime is not installed.
        ValueError: not an ONNX file, or without a card.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        card = describe_onnx(path).card
        if not card:
            raise ValueError(f"{path}: expected a file that evitlab exported, with its card")
        self.pretrained_cfg = {key: tuple(card[key]) for key in ("mean", "std")}
        self.num_classes: int = card["config"].get("num_classes", 0)
        self.img_size: tuple[int, int] = tuple(card["img_size"])
        self.session = onnx_session(path)

    def forward(self, images: Tensor) -> Tensor:
        return self.session(images)


def evaluate_onnx(
    path: str | os.PathLike[str], data: AnyDataset, *, batch_size: int = 256
) -> Accuracy:
    """Accuracy of an exported file over a data set; raises as `evaluate` and `OnnxModel`."""
    accuracy = evaluate(OnnxModel(path), data, batch_size=batch_size)
    precision = "int8" if "quantized" in describe_onnx(path).card else "float32"
    environment = replace(accuracy.environment, precision=precision, layout="contiguous")
    return replace(accuracy, environment=environment)


def calibration_batches(model: nn.Module, data: AnyDataset) -> list[Tensor]:
    """All images of a data set as the model takes them, in batches."""
    mean, std = normalization(model)
    batches = data.batches(torch.arange(len(data)), CALIBRATION_BATCH)
    return [normalize(pixels, mean, std).contiguous() for pixels, _ in batches]


def quantize_and_measure(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    calibration: AnyDataset,
    data: AnyDataset | None,
    batch_sizes: Sequence[int] = (1, 16),
    rounds: int = 15,
    threads: int = 1,
    command: str = "",
) -> QuantizationRecord:
    """Quantize an exported file and put the result beside it: accuracy, speed, size.

    Args:
        source: from `export_onnx`.
        path: the int8 file to write.
        calibration: training images, all of which are used.
        data: labelled images for the accuracy; None measures none.
        batch_sizes: of the timed batches, noise of the model's image size.
        rounds: measurements of each; the two files take turns within a round.
        threads: of ONNX Runtime.
        command: for the record.

    Raises:
        ValueError: a number below one, images of another size, and as for `quantize_onnx`.
    """
    if min(batch_sizes, default=0) < 1 or rounds < 1:
        given = f"{list(batch_sizes)} and {rounds}"
        raise ValueError(f"batch_sizes and rounds: expected at least 1, got {given}")
    with cpu_threads(threads):
        images = calibration_batches(OnnxModel(source), calibration)
        quantize_onnx(source, path, images)
        files = {"float32": source, "int8": path}
        models = {name: OnnxModel(file) for name, file in files.items()}
        accuracies = {
            name: None if data is None else evaluate_onnx(file, data)
            for name, file in files.items()
        }
        speed = tuple(_speed(models, batch, rounds) for batch in batch_sizes)
        card = environment_card(layout="contiguous", dataset=calibration.title)
    summary = describe_onnx(path)
    quantized = summary.card["quantized"]
    return QuantizationRecord(
        model=summary.card["architecture"],
        img_size=models["int8"].img_size,
        dataset=calibration.title,
        calibration_images=quantized["images"],
        float32_layers=tuple(quantized["float32"]),
        relative_error=quantized["relative_error"],
        float32_bytes=Path(source).stat().st_size,
        int8_bytes=summary.size_bytes,
        float32=accuracies["float32"],
        int8=accuracies["int8"],
        speed=speed,
        threads=threads,
        rounds=rounds,
        command=command,
        environment=card,
    )


def _speed(models: dict[str, OnnxModel], batch: int, rounds: int) -> QuantizationSpeed:
    generator = torch.Generator().manual_seed(0)
    channels = len(models["int8"].pretrained_cfg["mean"])
    images = torch.randn(batch, channels, *models["int8"].img_size, generator=generator)
    times = interleave({n: partial(m, images) for n, m in models.items()}, rounds=rounds)
    ratios = [a / b for a, b in zip(times["float32"], times["int8"], strict=True)]
    low, middle, high = quartiles(ratios)
    return QuantizationSpeed(
        batch_size=batch,
        float32_ms=1e3 * median(times["float32"]),
        int8_ms=1e3 * median(times["int8"]),
        ratio=middle,
        ratio_low=low,
        ratio_high=high,
    )

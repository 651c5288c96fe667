"""A small model and its ONNX file, exported once for all tests: it takes seconds."""

from __future__ import annotations

import functools
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from randomised import random_model

from evitlab.models.deploy import deploy
from evitlab.models.export import export_onnx

CLASSES = tuple("abcdefghij")


@functools.cache
def _folder() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="evitlab-tests-")


def small_model(**options: Any) -> Any:
    """A model of every part with random weights, ten classes, 32-pixel images.

    Of its 8 x 8 map, windows of 5 x 5 leave a part that is padded.
    """
    defaults = {"img_size": 32, "num_classes": 10, "embed_dim": (16, 24, 32), "depth": (1, 1, 1),
                "num_heads": (2, 2, 2), "window_size": (5, 7, 7)}  # fmt: skip
    model = random_model("efficientvit_m0_p4", **{**defaults, **options})
    model.class_names = CLASSES
    return model


@functools.cache
def small_file() -> Path:
    """`small_model()`, deployed before, as ONNX. Read only."""
    return export_onnx(deploy(small_model()), Path(_folder().name) / "small.onnx")

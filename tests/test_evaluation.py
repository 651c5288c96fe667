"""Evaluation of sets in which some images cannot be read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from evitlab.datasets import StreamingDataset, open_dataset
from evitlab.training.evaluation import evaluate


class AlwaysFirst(nn.Module):
    """Certain of class 0, whatever it sees."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.tensor([[30.0, 0.0]]).repeat(len(images), 1)


def streamed(root: Path, *, broken: int) -> StreamingDataset:
    """Two classes of four pictures each; the first `broken` ones cannot be read."""
    for number in range(8):
        path = root / ("cat" if number < 4 else "dog") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        if number < broken:
            path.write_bytes(b"broken")
        else:
            Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    data = open_dataset(root, "all", img_size=8, streaming=True, on_error="skip")
    assert isinstance(data, StreamingDataset)
    return replace(data, num_workers=0)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_skipped_images_do_not_count(tmp_path: Path, batch_size: int) -> None:
    result = evaluate(AlwaysFirst(), streamed(tmp_path, broken=3), batch_size=batch_size)
    assert (result.n, result.top1, result.top5) == (5, 20, 100)
    assert result.loss == pytest.approx(4 / 5 * 30)


def test_nothing_but_skipped_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data: expected at least one image, got none"):
        evaluate(AlwaysFirst(), streamed(tmp_path, broken=8))

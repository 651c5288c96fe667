"""Deletion and insertion curves, worked by hand on a model that counts pixels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evitlab import FaithfulnessCurves, deletion_insertion
from evitlab.analysis.faithfulness import _ranks


class Counts(nn.Module):
    """Class 1's probability is the share of 4 x 4 pixels that are bright where they count."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 4))
        with torch.no_grad():
            self.weight[0] = 0.25  # the first row

    def forward(self, x: Tensor) -> Tensor:
        share = (x[:, 0] * self.weight).sum((1, 2)).clamp(1e-6, 1 - 1e-6)
        return torch.stack([torch.zeros_like(share), share.logit()], 1)


DARK = torch.zeros(3, 1, 1)
RIGHT = torch.arange(16.0, 0.0, -1.0).view(1, 4, 4)  # the first row first
WRONG = -RIGHT


def curves(attributions: Any, **options: Any) -> FaithfulnessCurves:
    chosen = {"steps": 4, "deletion_baseline": DARK, "insertion_baseline": DARK, **options}
    return deletion_insertion(Counts(), torch.ones(1, 3, 4, 4), attributions, 1, **chosen)


def test_curves_by_hand() -> None:
    """Taken first, the first row takes everything at once; taken last, nothing till the end."""
    record = curves({"right": RIGHT, "wrong": WRONG})
    right, wrong, *random = record.curves
    assert record.fractions == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert right.deletion == pytest.approx((1, 0, 0, 0, 0), abs=1e-5)
    assert right.insertion == pytest.approx((0, 1, 1, 1, 1), abs=1e-5)
    assert wrong.deletion == pytest.approx((1, 1, 1, 1, 0), abs=1e-5)
    assert wrong.insertion == pytest.approx((0, 0, 0, 0, 1), abs=1e-5)
    assert right.deletion_area == pytest.approx(0.125, abs=1e-5)
    assert right.insertion_area == pytest.approx(0.875, abs=1e-5)
    assert [curve.method for curve in random] == ["random pixels", "random patches"]


def test_steps_and_batches_do_not_move_the_curves() -> None:
    together, alone = (curves(RIGHT, steps=16, batch_size=size).curves[0] for size in (64, 1))
    assert together == alone
    assert together.deletion[:6] == pytest.approx((1, 0.75, 0.5, 0.25, 0, 0), abs=1e-5)
    assert together.method == "attribution"


def test_only_the_order_counts() -> None:
    assert curves(RIGHT).curves[0] == curves(RIGHT.exp() * 3).curves[0]


def test_ranks_by_hand() -> None:
    values = torch.tensor([[[0.1, 0.9], [-5.0, 0.5]]])
    assert _ranks(values, torch.randperm(4)).tolist() == [[[2, 0], [3, 1]]]


def test_equal_pixels_go_in_a_random_order() -> None:
    """Not row by row: the first row, which counts, would go first."""
    ranks = _ranks(torch.zeros(2, 8, 8), torch.randperm(64, generator=torch.Generator()))
    assert sorted(ranks[0].flatten().tolist()) == list(range(64))
    assert ranks[0, 0].tolist() != list(range(8))
    assert torch.equal(ranks[0], ranks[1])


def test_small_maps_are_enlarged() -> None:
    coarse = torch.tensor([[[4.0, 4.0], [0.0, 0.0]]])
    fine = torch.tensor([4.0, 3.0, 1.0, 0.0]).view(1, 4, 1).expand(1, 4, 4)
    assert curves(coarse).curves[0] == curves(fine).curves[0]


def test_the_seed_decides_the_random_orders() -> None:
    assert curves(RIGHT).curves == curves(RIGHT).curves
    assert curves(RIGHT, steps=16, seed=1).curves[1] != curves(RIGHT, steps=16).curves[1]


def test_frames_and_files(tmp_path: Path) -> None:
    images = torch.rand(3, 3, 4, 4)
    record = deletion_insertion(Counts(), images, {"a": torch.rand(3, 4, 4)}, steps=4)
    frame = record.to_frame()
    assert len(frame) == 3 * 2 * 5
    assert set(frame["method"]) == {"a", "random pixels", "random patches"}
    areas = record.areas().set_index("method")
    assert areas.loc["a", "deletion"] == pytest.approx(record.curves[0].deletion_area)
    assert areas.loc["a", "insertion_se"] >= 0
    assert (record.deletion_baseline, record.insertion_baseline) == ("mean", "blurred")
    assert FaithfulnessCurves.load(record.save(tmp_path / "curves.json")) == record
    short = dataclasses.replace(record.curves[0], deletion=(1.0,))
    with pytest.raises(ValueError, match="deletion: expected 5 of a, got 1"):
        dataclasses.replace(record, curves=(short,))


@pytest.mark.parametrize(
    ("attributions", "options", "message"),
    [
        ({}, {}, "attributions: expected at least one method, got none"),
        (RIGHT[0], {}, r"expected \[1, rows, columns\] of 'attribution', got \[4, 4\]"),
        ({"a": RIGHT.expand(2, 4, 4)}, {}, r"of 'a', got \[2, 4, 4\]"),
        (RIGHT / 0.0 * 0.0, {}, "attributions: expected finite numbers"),
        (RIGHT, {"steps": 0}, "steps: expected at least 1, got 0"),
        (RIGHT, {"insertion_baseline": "grey"}, "baseline: expected one of mean, black, blurred"),
    ],
)
def test_mistakes_are_named(attributions: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        curves(attributions, **options)

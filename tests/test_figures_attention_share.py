"""Fig. 3 shows the paper's numbers and ours, each at its place."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from timed_records import CARD

from evitlab import figures, paper
from evitlab.records import (
    Accuracy,
    AttentionShareRun,
    EpochLog,
    ThroughputMatch,
    TrainingRecord,
    WidthSpeed,
)


def run(
    line: str, share: float, top1: float, *, speedup: float = 1.25, dataset: str = "CIFAR-10"
) -> AttentionShareRun:
    """A point as `evitlab study attention-share` records it."""
    card = dataclasses.replace(CARD, dataset=dataset, scale="lab", seed=0)
    width = WidthSpeed(24, 10**6, 500.0, speedup, speedup - 0.1, speedup + 0.1)
    match = ThroughputMatch(
        "deit_t_p4", 48, (32, 32), 1.25, share, False, 24, (width,), 5, card
    )  # fmt: skip
    training = TrainingRecord(
        model="deit_t_p4", img_size=(32, 32), num_classes=10, params=1000, macs=10**6,
        dataset=dataset, train_images=20_000, recipe={"epochs": 1},
        history=(EpochLog(1, 2.0, 1e-3, 200.0, 100.0, top1, 90.0, 1.5),),
        final=Accuracy(top1, 90.0, 1.5, 10_000, card), best_epoch=1, seconds=100.0,
        command="evitlab study attention-share --scale lab", environment=card,
    )  # fmt: skip
    return AttentionShareRun(line, share, match, training, card)


POINTS = {0.0: 30.0, 0.2: 42.0, 0.4: 44.0, 1.0: 28.0}


def drawn(runs: list[AttentionShareRun]) -> dict[str, Any]:
    figure = figures.fig3_attention_share(paper.load("fig3"), runs)
    figure.canvas.draw()
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def test_the_papers_points_and_ours():
    axes = drawn([run("DeiT-T-1.25x", share, top1) for share, top1 in POINTS.items()])
    theirs = axes["DeiT-T, the paper (ImageNet)"]
    printed = [line for line in theirs.lines if line.get_gid() == "published"]
    shown = {(round(x), y) for line in printed for x, y in zip(*line.get_data(), strict=True)}
    published = paper.load("fig3").query("model.str.startswith('DeiT-T')")
    assert shown == {(round(100 * r.mhsa_share), r.value) for r in published.itertuples()}
    ours = axes["DeiT-T, here (CIFAR-10)"]
    (bars,) = ours.containers
    x, y = bars.lines[0].get_data()
    assert dict(zip((round(share) / 100 for share in x), y, strict=True)) == POINTS
    assert not axes["Swin-T, here (CIFAR-10)"].containers


def test_bars_are_the_interval_of_the_images():
    frame = run("DeiT-T-1.25x", 0.2, 50.0).to_frame()
    assert frame["top1_error"].item() == pytest.approx(0.98)  # 1.96 x sqrt(0.5 x 0.5 / 10,000)


def test_points_off_their_lines_speed_are_crossed():
    axes = drawn([
        run("DeiT-T-1.25x", 0.2, 42.0), run("DeiT-T-1.25x", 1.0, 28.0, speedup=1.05)
    ])["DeiT-T, here (CIFAR-10)"]  # fmt: skip
    (crosses,) = [line for line in axes.lines if line.get_gid() == "off speed"]
    assert list(crosses.get_xdata()) == [100.0]


def test_seeds_are_averaged():
    axes = drawn([run("DeiT-T-1.25x", 0.2, 42.0), run("DeiT-T-1.25x", 0.2, 44.0)])
    bars = axes["DeiT-T, here (CIFAR-10)"].containers[0]
    assert list(bars.lines[0].get_ydata()) == [43.0]


def test_wrong_runs_are_named():
    with pytest.raises(ValueError, match="runs: expected at least one, got none"):
        figures.fig3_attention_share(paper.load("fig3"), [])
    mixed = [run("DeiT-T-1.25x", 0.2, 42.0), run("DeiT-T-1.25x", 0.4, 42.0, dataset="embedded")]
    with pytest.raises(ValueError, match="runs: expected one data set, got"):
        figures.fig3_attention_share(paper.load("fig3"), mixed)

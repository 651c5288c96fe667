"""Figures of channels say what their records say."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from matplotlib.figure import Figure
from test_figures import CARD, training_record

from evitlab import figures, paper
from evitlab.figures.channels import accuracies_line
from evitlab.records import (
    Accuracy,
    ChannelCut,
    ChannelCuts,
    ChannelImportance,
    ChannelScores,
    ChannelWidths,
    PruningRecord,
)

COMPONENTS = ("q", "k", "v", "ffn")


def accuracy(top1: float) -> Accuracy:
    return Accuracy(top1, 95.0, 1.0, 10_000, CARD)


def pruned(model: str = "swin_t_p2", blocks: int = 12, *, with_v: bool = True) -> PruningRecord:
    widths = []
    for block in range(1, blocks + 1):
        name, dim = f"blocks.{block - 1}", 24 * block
        widths.append(ChannelWidths(block, f"{name}.attn", "qk", dim, dim - 12, dim))
        if with_v:
            widths.append(ChannelWidths(block, f"{name}.attn", "v", dim, dim, dim))
        widths.append(ChannelWidths(block, f"{name}.mlp", "ffn", 4 * dim, 3 * dim, dim))
    return PruningRecord(
        model=model,
        criterion="taylor",
        images=512,
        budget={"macs": 0.7},
        steps=5,
        macs_before=50_000_000,
        macs_after=34_900_000,
        params_before=2_000_000,
        params_after=1_500_000,
        widths=tuple(widths),
        command="evitlab prune",
        environment=CARD,
        before=accuracy(75.3),
        pruned=accuracy(41.2),
        recovered=accuracy(74.1),
        recovery=training_record(model, epochs=4, top1=74.1),
    )


def importance() -> ChannelImportance:
    groups = tuple(
        ChannelScores(
            block, f"blocks.{block - 1}.{'mlp' if name == 'ffn' else 'attn'}", name, 1, 8,
            tuple(10.0 ** (-2 - block / 4 - i / 8) for i in range(8)),
        )
        for block in range(1, 13)
        for name in COMPONENTS
    )  # fmt: skip
    return ChannelImportance("deit_t_p4", "taylor", 512, 8, groups, CARD)


def cuts() -> ChannelCuts:
    rows = tuple(
        ChannelCut(
            3, "blocks.2.attn", name, i, 10.0 ** (i - 8), i / 5, (-1) ** i * 10 ** (i / 2 - 4)
        )
        for name in COMPONENTS
        for i in range(6)
    )
    return ChannelCuts("deit_t_p4", "taylor", 512, 1.1, rows, "evitlab study", CARD)


def bars(axes: Any, gid: str) -> list[float]:
    return [bar.get_height() for bar in axes.patches if bar.get_gid() == gid]


def panel(figure: Figure, title: str, row: int = 0) -> Any:
    return [axes for axes in figure.axes if axes.get_title(loc="left") == title][row]


def test_fig5_draws_the_ratios_to_the_blocks_input():
    record = pruned()
    figure = figures.fig5_channels([record])
    frame = record.to_frame()
    for title, component in (("Q, K", "qk"), ("V", "v"), ("FFN", "ffn")):
        rows = frame[frame["component"] == component]
        axes = panel(figure, title)
        assert bars(axes, "origin") == pytest.approx(rows["ratio_before"].tolist())
        assert bars(axes, "pruned") == pytest.approx(rows["ratio_after"].tolist())


def test_fig5_shows_the_papers_swin_beside_ours_only():
    figure = figures.fig5_channels([pruned(), pruned("deit_t_p4"), pruned("swin_t", blocks=3)])
    table = paper.load("fig5").query("state == 'pruned' and projection == 'v'")
    shown = [c for c in panel(figure, "V").containers if str(c.get_label()).startswith("paper")]
    (points, *_) = shown[0].lines
    assert points.get_ydata().tolist() == table["value"].tolist()
    for row in (1, 2):  # another model, and a Swin of another depth
        labels = [str(c.get_label()) for c in panel(figure, "V", row).containers]
        assert not any("paper" in label for label in labels)
    caption = figure.get_supxlabel()
    assert "79.1 % → 76.5 % pruned" in caption and "CIFAR-10" in caption


def test_fig5_says_which_width_is_not_free():
    figure = figures.fig5_channels([pruned("efficientvit_m0", 3, with_v=False)])
    assert [text.get_text() for text in panel(figure, "V").texts] == ["not free: tied to the split"]


def test_fig5_takes_the_mean_of_a_blocks_ffns():
    record = pruned(blocks=1)
    ffn = ChannelWidths(1, "blocks.0.mlp2", "ffn", 48, 24, 24)
    record = dataclasses.replace(record, widths=(*record.widths, ffn))
    assert bars(panel(figures.fig5_channels([record]), "FFN"), "pruned") == [2.0]


def test_accuracies_are_named():
    assert accuracies_line(pruned()) == (
        "swin_t_p2: top-1 75.3 % → 41.2 % pruned → 74.1 % recovered; 70 % of the MACs left, "
        "criterion taylor"
    )
    bare = dataclasses.replace(pruned(), before=None, pruned=None, recovered=None)
    assert accuracies_line(bare) == "swin_t_p2: 70 % of the MACs left, criterion taylor"


def test_scores_are_drawn_by_block_and_component():
    figure = figures.channel_scores(importance())
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Q", "K", "V", "FFN"]
    medians: list[Any] = [line for line in figure.axes[0].lines if line.get_gid() == "median"]
    assert [line.get_xdata()[0] for line in medians] == list(range(1, 13))
    expected = (10 ** (-2.25 - 3 / 8) + 10 ** (-2.25 - 4 / 8)) / 2
    assert medians[0].get_ydata()[0] == pytest.approx(expected)


def test_cuts_stand_beside_what_their_scores_predict():
    figure = figures.channel_cuts(cuts())
    panels: list[Any] = list(figure.axes)
    left, right = panels
    drawn = sum(len(line.get_xdata()) for line in left.lines if line.get_gid() == "cut")
    assert drawn == len(cuts().cuts)
    (predicted,) = (line for line in left.lines if line.get_gid() == "predicted")
    assert predicted.get_ydata()[-1] == pytest.approx(predicted.get_xdata()[-1] ** 0.5)
    lowest = [10 ** (i / 2 - 4) for i in range(3)]
    assert bars(right, "lowest") == pytest.approx([sum(lowest) / 3] * 4)
    assert min(bars(right, "highest")) > max(bars(right, "lowest"))


def test_recovery_begins_right_after_the_cut():
    record = pruned()
    axes: Any = figures.recovery_curve([record]).axes[0]
    curve = next(line for line in axes.lines if line.get_gid() != "before")
    assert curve.get_xdata().tolist() == [0, 1, 2, 3, 4]
    assert curve.get_ydata()[0] == 41.2 and curve.get_ydata()[-1] == pytest.approx(74.1)
    (before,) = (line for line in axes.lines if line.get_gid() == "before")
    assert set(before.get_ydata()) == {75.3}


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: figures.fig5_channels([]), "records: expected at least one pruning record"),
        (lambda: figures.recovery_curve([]), "records: expected at least one pruning record"),
        (
            lambda: figures.recovery_curve([dataclasses.replace(pruned(), recovery=None)]),
            "expected accuracies and a recovery, 'swin_t_p2' has none",
        ),
        (
            lambda: figures.channel_cuts(dataclasses.replace(cuts(), cuts=())),
            "record: expected at least one cut",
        ),
        (
            lambda: figures.channel_scores(dataclasses.replace(importance(), channels=())),
            "importance: expected channels",
        ),
    ],
)
def test_nothing_to_draw_is_said(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()

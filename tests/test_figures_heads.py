"""Figures of heads: what is drawn is what the records say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from timed_records import CARD

from evitlab import figures, paper
from evitlab.records import (
    Accuracy,
    BlockHeads,
    EpochLog,
    HeadSimilarity,
    HeadSimilarityRun,
    ThroughputMatch,
    TrainingRecord,
    WidthSpeed,
)


def matrix(h: int, value: float) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(1.0 if i == j else value for j in range(h)) for i in range(h))


def block(number: int, similarity: float, heads: int = 3) -> BlockHeads:
    return BlockHeads(
        block=number,
        name=f"blocks.{number - 1}.attn",
        kind="global",
        num_heads=heads,
        windows=1,
        queries=64,
        keys=64,
        similarity=matrix(heads, similarity),
        correlation=matrix(heads, similarity / 2),
        centred=matrix(heads, -0.1),
        permuted=matrix(heads, similarity - 0.2),
        entropy=(0.9,) * heads,
        image_quartiles=(similarity - 0.05, similarity, similarity + 0.05) if heads > 1 else None,
    )


def record(values: list[float], weights: str = "trained", heads: int = 3) -> HeadSimilarity:
    blocks = tuple(block(i, value, heads) for i, value in enumerate(values, start=1))
    return HeadSimilarity("toy", weights, 100, "map", blocks, CARD)


TRAINING = TrainingRecord(
    model="deit_t_p4",
    img_size=(32, 32),
    num_classes=10,
    params=1,
    macs=1,
    dataset="CIFAR-10",
    train_images=50_000,
    recipe={},
    history=(EpochLog(1, 2.0, 1e-3, 100.0, 10.0, 51.5, 90.0, 1.3),),
    final=Accuracy(51.5, 90.0, 1.3, 10_000, CARD),
    best_epoch=1,
    seconds=10.0,
    command="evitlab study head-similarity",
    environment=CARD,
)
WIDTH = ThroughputMatch(
    "deit_t_p4", 48, (32, 32), 1.25, 0.5, False, 42,
    (WidthSpeed(**{field.name: 42 if field.name == "embed_dim" else 1 for field in
                   dataclasses.fields(WidthSpeed)}),), 3, CARD,
)  # fmt: skip


def run(line: str, split: bool, values: list[float]) -> HeadSimilarityRun:
    return HeadSimilarityRun(
        line, split, WIDTH, TRAINING, record(values), record([0.99] * len(values), "untrained"),
        CARD,
    )  # fmt: skip


RUNS = [
    run(line, split, [base + 0.02 * i for i in range(12)])
    for line, base in (("Swin-T-1.25x", 0.4), ("DeiT-T-1.25x", 0.6))
    for split in (False, True)
]


def drawn(axes: Axes, gid: str) -> list[np.ndarray]:
    return [np.asarray(line.get_ydata(), float) for line in axes.lines if line.get_gid() == gid]


def texts(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(Text))


def test_fig4_draws_ours_the_papers_and_chance() -> None:
    figure = figures.fig4_head_similarity(RUNS)
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in panels] == ["Swin-T-1.25x", "DeiT-T-1.25x"]
    known = paper.load("fig4")
    for axes in panels:
        line = axes.get_title(loc="left")
        ours = drawn(axes, "ours max_similarity")
        of_line = [r for r in RUNS if r.line == line]
        assert len(ours) == 2
        for values, one in zip(ours, of_line, strict=True):
            expected = [100 * (b.max_similarity or 0) for b in one.trained.blocks]
            assert values == pytest.approx(expected)
        published = drawn(axes, "paper")
        for values, split in zip(published, (False, True), strict=True):
            rows = known[(known["model"] == line) & (known["head_splits"] == split)]
            assert values == pytest.approx(rows["value"].to_numpy()) and len(values) == 12
        assert drawn(axes, "chance")[0] == pytest.approx(drawn(axes, "ours max_similarity")[0] - 20)
        assert drawn(axes, "untrained max_similarity")[0] == pytest.approx([99.0] * 12)
    assert "51.5 %" in texts(figure) and "50,000 images" in texts(figure)


def test_fig4_without_the_papers_lines() -> None:
    figure = figures.fig4_head_similarity(RUNS[:1], published=False)
    assert not any(drawn(axes, "paper") for axes in figure.axes)
    assert "paper (digitised)" not in texts(figure)


def test_fig4_shows_a_line_that_the_paper_has_not() -> None:
    figure = figures.fig4_head_similarity([run("Mine", False, [0.5, 0.6])])
    assert not drawn(figure.axes[0], "paper") and drawn(figure.axes[0], "ours max_similarity")


def test_fig4_refuses_doubles_and_nothing() -> None:
    with pytest.raises(ValueError, match="Swin-T-1.25x, all channels stands there twice"):
        figures.fig4_head_similarity([RUNS[0], RUNS[0]])
    with pytest.raises(ValueError, match="expected at least one, got none"):
        figures.fig4_head_similarity([])


def test_curves_draw_every_measure_with_its_quartiles() -> None:
    figure = figures.head_curves([record([0.5, 0.6]), record([0.9, 0.9], "untrained")])
    top = figure.axes[0]
    assert drawn(top, "ours max_similarity")[0] == pytest.approx([50, 60])
    bands = [c for c in top.collections if c.get_gid() == "quartiles"]
    heights = np.asarray(bands[0].get_paths()[0].vertices, float)[:, 1]
    assert len(bands) == 2 and {round(float(y)) for y in heights} == {45, 55, 65}
    measures = ("max_similarity", "max_correlation", "max_centred", "entropy")
    for axes, column in zip(figure.axes, measures, strict=True):
        assert len(drawn(axes, f"ours {column}")) == 2
    with pytest.raises(ValueError, match="expected 1 to 8, got 0"):
        figures.head_curves([])


def test_curves_leave_out_blocks_with_one_head() -> None:
    mixed = dataclasses.replace(record([0.5, 0.6]), blocks=(block(1, 0.5, 1), block(2, 0.6)))
    values = drawn(figures.head_curves([mixed]).axes[0], "ours max_similarity")[0]
    assert np.isnan(values[0]) and values[1] == pytest.approx(60)


@pytest.mark.parametrize(("quantity", "low"), [("similarity", 0), ("correlation", -1)])
def test_maps_show_each_blocks_matrix(quantity: str, low: float) -> None:
    shown = record([0.5, 0.6, 0.7, 0.8])
    figure = figures.head_maps(shown, quantity=quantity, columns=3)
    pictures = [axes.images[0] for axes in figure.axes if axes.images]
    assert len(pictures) == 4
    for picture, one in zip(pictures, shown.blocks, strict=True):
        assert np.asarray(picture.get_array()) == pytest.approx(np.array(getattr(one, quantity)))
        assert picture.get_clim() == (low, 1.0)
    cells = [text.get_text() for text in figure.axes[0].texts]
    assert len(cells) == 9 and {"1.00", ".50" if low == 0 else ".25"} == set(cells)


def test_maps_of_many_heads_have_no_numbers() -> None:
    figure = figures.head_maps(record([0.5], heads=12))
    assert not figure.axes[0].texts


def test_maps_refuse_what_they_cannot_draw() -> None:
    with pytest.raises(ValueError, match="quantity: expected one of similarity, .*'entropy'"):
        figures.head_maps(record([0.5]), quantity="entropy")
    with pytest.raises(ValueError, match="columns: expected at least 1, got 0"):
        figures.head_maps(record([0.5]), columns=0)
    with pytest.raises(ValueError, match="block with at least two heads"):
        figures.head_maps(record([0.5], heads=1))

"""Figures say what their records say; they are read by their artists, not by their pixels."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text
from matplotlib.transforms import BboxBase
from PIL import Image
from timed_records import deploy_ratios, family_sweep, profile

from evitlab import figures, paper
from evitlab.figures.style import HouseFigure
from evitlab.records import (
    Accuracy,
    BlockNode,
    BlockTrace,
    Environment,
    EpochLog,
    TrainingRecord,
)

CARD = Environment(
    device="cpu",
    cpu_model="Abacus 2",
    cores=2,
    threads=2,
    python="3.11.7",
    torch="2.11.0+cpu",
    timm="1.0.20",
    precision="float32",
    layout="contiguous",
    batch_size=128,
    seed=0,
    dataset="CIFAR-10 (JPEG q75)",
    scale="lab",
    date="2026-01-02T03:04:05+00:00",
    git_commit=None,
)
MEASURED = pd.DataFrame(
    {
        "model": ["efficientvit_m0", "efficientvit_m3", "deit_t"],
        "family": ["EfficientViT", "EfficientViT", "DeiT"],
        "top1": [80.0, 86.0, 71.0],
        "img_per_s": [900.0, 500.0, 200.0],
        "dataset": "CIFAR-10",
        "device": "Abacus 2",
        "scale": "lab",
    }
)

LONGEST = "timm/swin_tiny_patch4_window7_224"


def training_record(model="efficientvit_m0", epochs=30, top1=85.0, every=1, card=CARD):
    def log(epoch: int) -> EpochLog:
        checked = epoch % every == 0
        value = top1 * epoch / epochs
        return EpochLog(
            epoch, 2.0 / epoch, 1e-3, 500.0, 9.0, *((value, 99.0, 1.0) if checked else ())
        )

    return TrainingRecord(
        model=model,
        img_size=(32, 32),
        num_classes=10,
        params=2_000_000,
        macs=10_000_000,
        dataset=card.dataset,
        train_images=50_000,
        recipe={},
        history=tuple(log(epoch) for epoch in range(1, epochs + 1)),
        final=Accuracy(top1, 99.0, 1.0, 10_000, card),
        best_epoch=epochs,
        seconds=1.0,
        command="evitlab train",
        environment=card,
    )


def block_trace(heads=4, *, cascade=True, split=True, ffns=1, channels=128):
    """What a model of that configuration would report, one node per operation."""
    x, width = (channels, 14, 14), channels // heads
    part = (width, 14, 14) if split else x
    nodes = [
        BlockNode("patch_embed", "stem", (3, 224, 224), x, 25_000, 12_000_000, "4 × conv 3×3"),
        BlockNode("stages.0", "stage", x, x, 110_000, 22_000_000, f"1 block, {heads} heads"),
        BlockNode("stages.1.downsample", "subsample", x, (192, 7, 7), 150_000, 8_000_000),
        BlockNode("stages.1", "stage", (192, 7, 7), (192, 7, 7), 520_000, 17_000_000),
        BlockNode("global_pool", "pool", (192, 7, 7), (192,), 0, 0),
        BlockNode("head", "classifier", (192,), (1000,), 193_000, 192_000),
    ]
    side = [("dwconv", "3×3"), *[("ffn", "128 → 256 → 128")] * ffns]
    for i, (kind, detail) in enumerate([*side, ("attention", "window 7×7"), *side]):
        nodes.append(BlockNode(f"b.{i}", kind, x, x, 33_000, 6_400_000, detail))
        nodes.append(BlockNode(f"b.{i}.add", "add", x, x, 0, 0))
    if split:
        nodes.append(BlockNode("split", "split", x, part, 0, 0, f"{heads} × {width}"))
    for j in range(heads):
        if cascade and j:
            nodes.append(BlockNode(f"h{j}.add", "add", part, part, 0, 0, head=j))
        kernel = (7, 5, 3)[min(j, 2)]
        nodes += [
            BlockNode(f"h{j}.qkv", "qkv", part, part, 2_400, 300_000, "Q 16, K 16, V 32", j),
            BlockNode(f"h{j}.dw", "dwconv", part, part, 400, 50_000, f"{kernel}×{kernel} on Q", j),
            BlockNode(f"h{j}", "head", part, part, 49, 600_000, "softmax", j),
        ]
    nodes += [
        BlockNode("concat", "concat", part, x, 0, 0),
        BlockNode("act", "act", x, x, 0, 0, "ReLU"),
        BlockNode("proj", "proj", x, x, 4_200, 800_000, "1×1 conv"),
    ]
    return BlockTrace(tuple(nodes), model="efficientvit_m0", block="stages.0.blocks.0")


def table1() -> Figure:
    computed = pd.DataFrame(
        {"model": [f"efficientvit_m{i}" for i in range(6)], "params_m": 1.0, "macs_m": 2.0}
    )
    return figures.table1_architecture(paper.architecture(computed))


DRAW: dict[str, Callable[[], Figure]] = {
    "fig1": lambda: figures.fig1_speed_accuracy(paper.speed_accuracy()),
    "fig1_measured": lambda: figures.fig1_speed_accuracy(paper.speed_accuracy(), MEASURED),
    "table1": table1,
    "fig6": lambda: figures.fig6_block(block_trace()),
    "fig2": lambda: figures.fig2_operators([profile(fused=f) for f in (False, True)]),
    "fig2_parts": lambda: figures.fig2_operators([profile(LONGEST)], by="module"),
    "roofline": lambda: figures.roofline([profile(), profile(LONGEST)]),
    "deploy": lambda: figures.deploy_ratios(deploy_ratios()),
    "speed_map": lambda: figures.speed_map(family_sweep()),
    "speed_ratios": lambda: figures.speed_ratios(paper.speed_ratios()),
    "curves": lambda: figures.training_curves(
        [training_record(), training_record("deit_t", 20, 70)]
    ),
}


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def points_of(line: Line2D) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in zip(*map(np.asarray, line.get_data()), strict=True)]


def marked(axes: Axes) -> list[Line2D]:
    """The artists that draw points alone; the others draw lines."""
    return [line for line in axes.lines if line.get_linestyle() == "None"]


def extents(figure: Figure, artists: Sequence[Text]) -> list[BboxBase]:
    """Bounding boxes in pixels; fresh ones, since annotations move when the figure is drawn."""
    assert isinstance(figure.canvas, FigureCanvasAgg)
    with figures.house_style():
        figure.draw_without_rendering()
        renderer = figure.canvas.get_renderer()
        return [Text.get_window_extent(artist, renderer) for artist in artists]


def test_no_global_state_is_touched():
    before = dict(matplotlib.rcParams)
    with figures.house_style():
        assert matplotlib.rcParams["svg.hashsalt"] == "evitlab"
    for draw in DRAW.values():
        draw()
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []


def test_a_readers_settings_do_not_change_a_figure(tmp_path):
    plain = figures.save_figure(DRAW["curves"](), "a", MEASURED, out_dir=tmp_path)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "xtick.top": True}):
        other = figures.save_figure(DRAW["curves"](), "b", MEASURED, out_dir=tmp_path)
    assert [p.read_bytes() for p in plain] == [p.read_bytes() for p in other]


@pytest.mark.parametrize("name", ["fig1", "curves"])
def test_saved_files_are_the_same_bytes_every_time(name, tmp_path):
    first = figures.save_figure(DRAW[name](), name, MEASURED, out_dir=tmp_path / "1")
    second = figures.save_figure(DRAW[name](), name, MEASURED, out_dir=tmp_path / "2")
    assert [path.suffix for path in first] == [".png", ".svg", ".csv"]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
    pd.testing.assert_frame_equal(pd.read_csv(first[2]), MEASURED)
    assert first[1].read_text().lstrip().startswith("<?xml")
    drawing = first[1].read_text()
    assert "<dc:date>" not in drawing and matplotlib.__version__ not in drawing


def test_photographs_keep_their_colours(tmp_path):
    with figures.house_style():
        figure = figures.new_figure(2, 2)
        gradient = np.linspace(0, 1, 64 * 64 * 3).reshape(64, 64, 3)
        figure.subplots().imshow(gradient, interpolation="nearest")
    png, _, _ = figures.save_figure(figure, "photo", MEASURED, out_dir=tmp_path)
    with Image.open(png) as image:
        assert image.mode != "P"


def test_default_folder_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("EVITLAB_FIGURES", str(tmp_path / "here"))
    png, _, _ = figures.save_figure(figures.new_figure(1, 1, layout=None), "f", MEASURED)
    assert png == tmp_path / "here" / "f.png" and png.is_file()


@pytest.mark.parametrize("name", ["", "a/b", "../x"])
def test_a_name_is_not_a_path(name, tmp_path):
    with pytest.raises(ValueError, match="name: expected a file name"):
        figures.save_figure(figures.new_figure(1, 1), name, MEASURED, out_dir=tmp_path)


def test_jupyter_gets_a_small_png():
    figure = figures.fig6_block(block_trace())
    assert isinstance(figure, HouseFigure)
    data = figure._repr_mimebundle_()["image/png"]
    assert data.startswith(b"\x89PNG") and len(data) < 100_000


@pytest.mark.parametrize("name", DRAW)
def test_nothing_is_cut_off(name):
    figure = DRAW[name]()
    written = [text for axes in figure.axes for text in axes.texts if text.get_text()]
    for text, box in zip(written, extents(figure, written), strict=True):
        assert float(text.get_fontsize()) >= 5.9, f"{text.get_text()!r} is too small to read"
        assert _holds(figure.bbox, box), f"{text.get_text()!r} leaves the page"
    with figures.house_style():
        drawn = figure.get_tightbbox()  # inches; everything that is drawn, ticks in view alone
    assert _holds(figure.bbox_inches, drawn, tolerance=0.02)


def _holds(page: BboxBase, box: BboxBase, tolerance: float = 2.0) -> bool:
    return (
        box.x0 >= page.x0 - tolerance
        and box.y0 >= page.y0 - tolerance
        and box.x1 <= page.x1 + tolerance
        and box.y1 <= page.y1 + tolerance
    )


def test_caption_states_data_scale_and_device():
    figure = figures.add_caption(figures.new_figure(6, 2), CARD, note="A note.")
    caption = figure.get_supxlabel()
    assert caption == (
        "A note. · CIFAR-10 (JPEG q75) · scale lab · Abacus 2, 2 threads · float32 · torch 2.11.0"
        " · 2026-01-02"
    )


# Fig. 1


@pytest.mark.parametrize("log", [True, False])
def test_fig1_draws_every_point_once_with_its_label(log):
    points = paper.speed_accuracy()
    figure = figures.fig1_speed_accuracy(points, log=log)
    (axes,) = figure.axes
    drawn = {point for line in marked(axes) for point in points_of(line)}
    assert drawn == set(zip(points["img_per_s"], points["top1"], strict=True))
    labels = [text for text in axes.findobj(Annotation) if text.get_text()]
    assert sorted(label.get_text() for label in labels) == sorted(points["model"])
    for label in labels:
        row = points[points["model"] == label.get_text()].iloc[0]
        assert label.xy == (row["img_per_s"], row["top1"])


@pytest.mark.parametrize("measured", [None, MEASURED], ids=["one panel", "two panels"])
@pytest.mark.parametrize("log", [True, False])
def test_fig1_labels_neither_overlap_nor_cover_a_marker(measured, log):
    figure = figures.fig1_speed_accuracy(paper.speed_accuracy(), measured, log=log)
    for axes in figure.axes:
        labels = [text for text in axes.findobj(Annotation) if text.get_text()]
        boxes = extents(figure, labels)
        for (a, one), (b, two) in itertools.combinations(zip(labels, boxes, strict=True), 2):
            assert not one.overlaps(two), f"{a.get_text()} overlaps {b.get_text()}"
        for label in labels:
            x, y = axes.transData.transform(label.xy)
            for other, box in zip(labels, boxes, strict=True):
                assert not box.contains(x, y), f"{other.get_text()} covers {label.get_text()}"


def test_fig1_shows_provenance_by_fill():
    points = paper.speed_accuracy().iloc[[0, 6]].reset_index(drop=True)
    assert points["provenance"].tolist() == ["printed", "digitised"]
    (axes,) = figures.fig1_speed_accuracy(points).axes
    faces = {
        points_of(line)[0][0]: to_hex(str(line.get_markerfacecolor())) for line in marked(axes)
    }
    assert faces[points["img_per_s"][1]] == "#ffffff"
    assert faces[points["img_per_s"][0]] != "#ffffff"
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["printed", "digitised"]


def test_fig1_families_differ_in_marker_or_colour():
    (axes,) = figures.fig1_speed_accuracy(paper.speed_accuracy()).axes
    looks = {
        str(line.get_label()).partition(" (")[0]: (line.get_marker(), line.get_color())
        for line in marked(axes)
    }
    assert len(set(looks.values())) == len(looks) == paper.speed_accuracy()["family"].nunique()


def test_fig1_second_panel_states_what_was_measured():
    figure = figures.fig1_speed_accuracy(paper.speed_accuracy(), MEASURED)
    title = figure.axes[1].get_title(loc="left")
    assert all(part in title for part in ("CIFAR-10", "Abacus 2", "lab"))
    assert figure.axes[1].get_ylabel() == "CIFAR-10 top-1 (%)"


def test_fig1_refuses_frames_it_cannot_draw():
    points = paper.speed_accuracy()
    with pytest.raises(ValueError, match="paper: .* missing family"):
        figures.fig1_speed_accuracy(points.drop(columns="family"))
    with pytest.raises(ValueError, match="measured: expected at least one point"):
        figures.fig1_speed_accuracy(points, MEASURED.iloc[:0])
    mixed = MEASURED.assign(device=["a", "b", "a"])
    with pytest.raises(ValueError, match="measured: expected one device"):
        figures.fig1_speed_accuracy(points, mixed)


# Table 1


def test_table1_shows_ours_beside_the_papers():
    computed = pd.DataFrame(
        {"model": ["efficientvit_m0"], "params_m": [2.354], "macs_m": [79.39]}
    )
    shown = texts(figures.table1_architecture(paper.architecture(computed)))
    for expected in ("64 · 128 · 192", "1 · 2 · 3", "2.35", "2.3", "+0.05", "79.4", "79", "+0.49"):
        assert expected in shown


def test_table1_has_a_dash_where_the_paper_has_no_number():
    frame = paper.architecture(
        pd.DataFrame({"model": ["efficientvit_m0"], "params_m": [2.0], "macs_m": [70.0]})
    )
    gaps = ["paper_params_m", "params_diff_m", "paper_macs_m", "macs_diff_pct"]
    frame[gaps] = math.nan
    assert texts(figures.table1_architecture(frame)).count("–") == 4


def test_table1_refuses_a_frame_without_our_counts():
    with pytest.raises(ValueError, match="missing params_m"):
        figures.table1_architecture(paper.architecture())


# Fig. 6


def arrows(figure: Figure, gid: str) -> int:
    return len(figure.findobj(lambda artist: artist.get_gid() == gid))


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 8])
def test_fig6_has_a_column_per_head_and_an_arrow_between_neighbours(heads):
    figure = figures.fig6_block(block_trace(heads))
    shown = texts(figure)
    assert [t for t in shown if t.startswith("Attend")] == [f"Attend {j + 1}" for j in range(heads)]
    assert arrows(figure, "cascade") == heads - 1


def test_fig6_without_cascade_or_split_looks_so():
    figure = figures.fig6_block(block_trace(3, cascade=False, split=False))
    assert arrows(figure, "cascade") == 0
    shown = " ".join(texts(figure))
    assert "no cascade, 3 heads" in shown and "Split channels" not in shown
    assert "Split channels" in " ".join(texts(figures.fig6_block(block_trace(3))))


@pytest.mark.parametrize("ffns", [1, 2, 3])
def test_fig6_draws_every_layer_of_the_block_and_its_residual(ffns):
    figure = figures.fig6_block(block_trace(cascade=False, ffns=ffns))
    shown = texts(figure)
    assert shown.count("FFN") == 2 * ffns
    assert shown.count("+") == 2 * ffns + 3


def test_fig6_shows_shapes_and_costs_of_the_nodes():
    shown = texts(figures.fig6_block(block_trace()))
    for expected in ("3×224×224", "192×7×7", "1000", "Q 16, K 16, V 32", "110k params, 22M MACs"):
        assert expected in shown
    assert shown.count("32×14×14") == 4


@pytest.mark.parametrize("trace", [{}, {"heads": 8}, {"heads": 2, "ffns": 3}, {"split": False}])
def test_fig6_text_stays_inside_its_box_and_is_legible(trace):
    figure = figures.fig6_block(block_trace(**trace))
    (axes,) = figure.axes
    boxes = [p.get_window_extent() for p in axes.patches if type(p).__name__ == "FancyBboxPatch"]
    labels = [text for text in axes.texts if text.get_zorder() == 4 and text.get_text() != "+"]
    inside = 0
    for text, extent in zip(labels, extents(figure, labels), strict=True):
        assert float(text.get_fontsize()) >= 5.9
        centre = (extent.x0 + extent.x1) / 2, (extent.y0 + extent.y1) / 2
        for box in boxes:
            if box.contains(*centre):
                inside += 1
                assert extent.x0 >= box.x0 - 1 and extent.x1 <= box.x1 + 1, text.get_text()
                assert extent.y0 >= box.y0 - 2 and extent.y1 <= box.y1 + 2, text.get_text()
    assert inside > len(boxes)


def test_fig6_refuses_unknown_kinds_and_missing_parts():
    nodes = block_trace().nodes
    odd = dataclasses.replace(nodes[0], kind="stemm")
    with pytest.raises(ValueError, match="unknown kind 'stemm' .*did you mean 'stem'"):
        figures.fig6_block(BlockTrace((odd, *nodes[1:])))
    with pytest.raises(ValueError, match="nodes of the attention's heads"):
        figures.fig6_block(BlockTrace(tuple(n for n in nodes if n.head is None)))
    with pytest.raises(ValueError, match="nodes of the model"):
        figures.fig6_block(BlockTrace(()))


# Training curves


def test_training_curves_draw_the_history():
    record = training_record(epochs=12, every=3)
    loss, top1 = figures.training_curves([record]).axes
    training, validation = loss.lines[:2]
    assert points_of(training) == [(log.epoch, log.train_loss) for log in record.history]
    assert [epoch for epoch, _ in points_of(validation)] == [3, 6, 9, 12]
    assert [y for _, y in points_of(top1.lines[0])] == pytest.approx([21.25, 42.5, 63.75, 85.0])
    assert "85.0 %" in [text.get_text().strip() for text in top1.texts]


def test_training_curves_label_each_run_in_the_order_of_its_accuracy():
    runs = [training_record("a", top1=80.2), training_record("b", top1=80.0)]
    figure = figures.training_curves(runs)
    labels = list(figure.axes[1].texts)
    assert sorted(text.get_text().split()[0] for text in labels) == ["a", "b"]
    heights = {text.get_text().split()[0]: text.get_position()[1] for text in labels}
    assert heights["a"] > heights["b"]
    one, two = extents(figure, labels)
    assert not one.overlaps(two)


def test_training_curves_caption_keeps_different_conditions_apart():
    other = dataclasses.replace(CARD, dataset="Tiny-ImageNet", scale="quick")
    same = figures.training_curves([training_record("a"), training_record("b")]).get_supxlabel()
    assert same.startswith("a, b · 32×32 px · 50,000 training images · CIFAR-10 (JPEG q75)")
    mixed = figures.training_curves([training_record("a"), training_record("b", card=other)])
    first, second = mixed.get_supxlabel().split("\n")
    assert "scale lab" in first and "Tiny-ImageNet · scale quick" in second


def test_training_curves_of_one_epoch_show_their_points():
    loss, top1 = figures.training_curves([training_record(epochs=1)]).axes
    assert all(line.get_marker() == "o" for line in loss.lines)


def test_training_curves_refuse_an_empty_run():
    with pytest.raises(ValueError, match="at least one training record"):
        figures.training_curves([])
    with pytest.raises(ValueError, match="the run of 'm' has no epoch"):
        figures.training_curves([dataclasses.replace(training_record("m"), history=())])

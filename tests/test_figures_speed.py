"""Figures of time: operators, roofline, sweeps, ratios, and Fig. 1 with measured speeds."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from timed_records import CARD, ROOFLINE, deploy_ratios, family_sweep, profile, sweep, timing

from evitlab import figures, paper

PROFILES = [profile(model, fused=fused) for model in ("deit_t", "m4") for fused in (False, True)]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def bars(figure: Figure, panel: int) -> list[Rectangle]:
    return [patch for patch in figure.axes[panel].patches if isinstance(patch, Rectangle)]


def lines(figure: Figure, gid: str) -> list[Line2D]:
    return [line for axes in figure.axes for line in axes.lines if line.get_gid() == gid]


def at(line: Line2D) -> tuple[float, float]:
    """Where a line begins: the place of a single point."""
    x, y = (np.asarray(values, float) for values in line.get_data())
    return float(x[0]), float(y[0])


def dots(axes: Axes) -> list[Line2D]:
    return [line for line in axes.lines if line.get_linestyle() == "None"]


# Fig. 2


@pytest.mark.parametrize("by", ["category", "module"])
def test_fig2_bars_fill_the_whole_time_in_both_states(by):
    figure = figures.fig2_operators(PROFILES, by=by)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Attention unfused, as in 2023",
        "Attention fused, as today",
    ]
    for panel in (0, 1):
        for row in (0, 1):
            solid = [
                bar
                for bar in bars(figure, panel)
                if not bar.get_hatch() and round(bar.get_y() + bar.get_height() / 2) == row
            ]
            assert sum(bar.get_width() for bar in solid) == pytest.approx(1)
            edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in solid)
            for (_, end), (start, _) in zip(edges, edges[1:], strict=False):
                assert end == pytest.approx(start)


def test_fig2_states_shares_time_and_the_profilers_overhead():
    shown = texts(figures.fig2_operators(PROFILES))
    assert shown.count("memory-bound 36 %") == 2  # 8 + 6 + 10 + 12 of 100
    assert shown.count("memory-bound 20 %") == 2  # 6 + 10 of 80
    assert shown.count("25 ms per image · with the profiler 1.25 ×") == 4
    assert "63" in shown and "12" in shown  # matmul/conv 40 + 20 + 3; reshape/copy
    assert "Abacus 2, 1 thread" in " ".join(shown) and "batch 4 · 224×224 px" in " ".join(shown)


def test_fig2_groups_the_memory_bound_categories():
    figure = figures.fig2_operators(PROFILES[:1])
    (bracket,) = figure.axes[0].lines
    assert np.asarray(bracket.get_xdata()) == pytest.approx([0.63, 0.99])


def test_fig2_hatches_the_memory_bound_share_of_each_part():
    figure = figures.fig2_operators(PROFILES[:1], by="module")
    hatched = [bar.get_width() for bar in bars(figure, 0) if bar.get_hatch()]
    assert hatched == pytest.approx([0.2, 0.1, 0.06])  # attention 8 + 12, ffn 10, norm 6


def test_fig2_leaves_a_gap_for_what_was_not_profiled():
    assert len(figures.fig2_operators(PROFILES[:1]).axes) == 1
    shown = texts(figures.fig2_operators([*PROFILES[:2], profile("m4")]))
    assert shown.count("not profiled") == 1


@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        ([], "at least one operator profile"),
        ([profile(), profile()], "'deit_t' stands twice with attention unfused"),
        ([dataclasses.replace(profile(), rows=())], "no operator of 'deit_t' took any time"),
        (
            [
                profile(),
                dataclasses.replace(
                    profile("b"), environment=dataclasses.replace(CARD, cpu_model="Slide rule")
                ),
            ],
            "expected one device, got Abacus 2, 1 thread, Slide rule, 1 thread",
        ),
    ],
)
def test_fig2_refuses_what_it_cannot_compare(profiles, message):
    with pytest.raises(ValueError, match=message):
        figures.fig2_operators(profiles)


def test_fig2_refuses_an_unknown_breakdown():
    with pytest.raises(ValueError, match="by: expected 'category' or 'module', got 'operator'"):
        figures.fig2_operators(PROFILES, by="operator")  # type: ignore[arg-type]


# Roofline


def test_roofline_draws_the_ceilings_of_the_record():
    figure = figures.roofline(PROFILES[:1])
    roof, slope = lines(figure, "roof")[0], lines(figure, "roof")[1]
    x, y = (np.asarray(values, float) for values in roof.get_data())
    assert x[1] == ROOFLINE.ridge == 8 and y[1] == y[2] == 80
    assert y[0] == pytest.approx(10 * x[0])
    assert at(slope)[0] == 10  # the bandwidth, in the right panel
    for said in ("peak 80", "memory 10 GB/s", "ridge 8", "Abacus 2, 1 thread: roofline"):
        assert said in texts(figure)


def test_roofline_puts_each_operator_where_it_belongs():
    left, right = figures.roofline(PROFILES[:1]).axes
    points = {(round(at(dot)[0], 3), round(at(dot)[1], 3)) for dot in dots(left)}
    # MACs per byte and 1e9 MACs per second of addmm, bmm and convolution, as made up
    assert points == {(10, 40), (1.667, 10), (15, 30)}
    moved = sorted(at(dot)[0] for dot in dots(right))
    assert moved == pytest.approx([5, 7, 8, 9])  # GB/s of softmax, norm, gelu, copy


def test_roofline_sizes_points_by_their_share():
    left, _ = figures.roofline(PROFILES[:1]).axes
    sizes = {round(at(dot)[1]): dot.get_markersize() for dot in dots(left)}
    assert sizes[40] > sizes[10] > sizes[30]  # 40, 20 and 3 % of the time


def test_roofline_names_the_state_where_both_are_drawn():
    shown = texts(figures.roofline(PROFILES[:2]))
    assert {"deit_t (unfused)", "deit_t (fused)"} <= set(shown)
    assert "deit_t" in texts(figures.roofline(PROFILES[:1]))


def test_roofline_refuses_none_too_many_or_one_twice():
    with pytest.raises(ValueError, match="expected 1 to 8, got 0"):
        figures.roofline([])
    with pytest.raises(ValueError, match="expected 1 to 8, got 9"):
        figures.roofline([profile(str(i)) for i in range(9)])
    with pytest.raises(ValueError, match="'deit_t' stands twice"):
        figures.roofline([profile(), profile()])


# Speed map


def test_speed_map_has_a_panel_per_model_and_a_line_per_engine_and_layout():
    figure = figures.speed_map(family_sweep())
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[:2] == ["efficientvit_m0", "efficientvit_m1"]
    assert titles[-2:] == ["deit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]
    for axes in figure.axes:
        looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
        assert len(axes.lines) == 6 and len(looks) == 6
    first = figure.axes[0].lines[0]
    assert np.asarray(first.get_ydata()) == pytest.approx(
        [1e3 * size / (24 + 2 * size) for size in (1, 4, 16, 64, 256)]
    )
    assert "contiguous" in texts(figure) and "channels_last" in texts(figure)


def test_speed_map_shades_what_is_launch_bound():
    """24 ms a call and 2 ms an image: half speed at 12 images, but not seen at batch 256."""
    rows = [timing("m", size, 1e3 * size / (24 + 2 * size)) for size in (1, 2, 4, 8, 16, 32, 64)]
    flat = [timing("m", size, 100.0, engine="onnxruntime") for size in (1, 64)]
    figure = figures.speed_map(sweep([*rows, *flat]))
    shaded = [
        artist
        for artist in figure.axes[0].collections
        if isinstance(artist, FillBetweenPolyCollection) and artist.get_gid() == "launch-bound"
    ]
    assert len(shaded) == 1
    ends = np.asarray(shaded[0].get_paths()[0].vertices)[:, 0]
    half = sweep(rows).half_speed()["half_batch_size"][0]
    assert ends.min() == 1 and ends.max() == pytest.approx(half)


def test_speed_map_says_how_many_measurements_failed():
    assert "6 of 240 measurements failed" in str(figures.speed_map(family_sweep()).get_supxlabel())
    with pytest.raises(ValueError, match="at least one row with a speed"):
        figures.speed_map(sweep([timing("m", 1, None)]))
    with pytest.raises(ValueError, match="columns: expected at least 1, got 0"):
        figures.speed_map(family_sweep(), columns=0)


def test_speed_map_keeps_a_name_that_only_the_library_tells_apart():
    rows = [timing(name, 1, 10.0) for name in ("efficientvit_m0", "timm/efficientvit_m0", "timm/x")]
    figure = figures.speed_map(sweep(rows))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["efficientvit_m0", "timm/efficientvit_m0", "x"]


# Ratios


def test_speed_ratios_draw_every_number_once():
    measured = pd.DataFrame(
        [("efficientvit_m5", "cpu", 30.0), ("timm/mobilenetv3_large_100", "cpu", 20.0)],
        columns=["model", "column", "img_per_s"],
    )
    frame = paper.speed_ratios(measured)
    figure = figures.speed_ratios(frame, environment=CARD, note="Ours: eager.")
    published, ours = lines(figure, "paper"), lines(figure, "ours")
    values = sorted(at(line)[0] for line in published)
    assert values == pytest.approx(sorted(frame["paper"].dropna()))
    assert [at(line)[0] for line in ours] == [1.5]
    assert "M5 ÷ MobileNetV3-Large 1.0x" in texts(figure)
    assert "Ours: eager. · scale quick · Abacus 2" in str(figure.get_supxlabel())
    assert "measured here" in texts(figure)


def test_speed_ratios_show_provenance_and_leave_gaps():
    figure = figures.speed_ratios(paper.speed_ratios())
    assert len(figure.axes) == 3 and not lines(figure, "ours")
    (onnx,) = [axes for axes in figure.axes if axes.get_title(loc="left") == "ONNX Runtime"]
    faces = {
        round(at(line)[0], 2): line.get_markerfacecolor()
        for line in onnx.lines
        if line.get_gid() == "paper"
    }
    assert len(faces) == 4  # M0 over M4, and M2, M4, M4 over a peer each
    assert faces[7.4] != "white" and faces[3.7] == faces[1.34] == "white"


def test_speed_ratios_refuse_another_frame():
    with pytest.raises(ValueError, match="missing provenance"):
        figures.speed_ratios(paper.speed_ratios().drop(columns="provenance"))
    with pytest.raises(ValueError, match="at least one ratio"):
        figures.speed_ratios(paper.speed_ratios().assign(paper=math.nan))


# Deploy


def test_deploy_ratios_have_a_panel_per_engine_and_batch_size():
    figure = figures.deploy_ratios(deploy_ratios())
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "PyTorch, batch 1",
        "ONNX Runtime, batch 1",
        "ONNX Runtime, batch 16",
        "Share of the peak",
    ]
    for axes, peers in zip(figure.axes, (2, 1, 1), strict=False):
        ratios = sorted(at(line)[0] for line in axes.lines if line.get_gid() == "ratio")
        assert ratios == pytest.approx(sorted([1, 1.1, 1.2, 1.3, 1.4, 1.5] * peers))
    widths = [bar.get_width() for bar in bars(figure, 3) if bar.get_gid() == "peak"]
    assert widths == pytest.approx([50, 55, 60, 65, 70, 75] * 2)


def test_a_peak_of_one_model_stands_in_the_caption():
    record = deploy_ratios()
    figure = figures.deploy_ratios(dataclasses.replace(record, peak=record.peak[-1:]))
    assert len(figure.axes) == 3
    said = "efficientvit_m5, ONNX Runtime, batch 16: 75 % of torch's matrix product."
    assert said in str(figure.get_supxlabel())


def test_deploy_ratios_say_what_failed_and_refuse_what_they_do_not_know():
    record = deploy_ratios()
    failed = dataclasses.replace(record, failed=("x",), peak=())
    assert "1 measurements failed" in str(figures.deploy_ratios(failed).get_supxlabel())
    with pytest.raises(ValueError, match="at least one ratio"):
        figures.deploy_ratios(dataclasses.replace(record, rows=()))
    odd = dataclasses.replace(record.rows[0], peer="compiled")
    with pytest.raises(ValueError, match="peers eager, folded, exported, got 'compiled'"):
        figures.deploy_ratios(dataclasses.replace(record, rows=(odd,)))


# Fig. 1, measured


def test_fig1_says_whose_accuracy_stands_beside_our_speed():
    rows = [("efficientvit_m0", 224, 90.0), ("timm/pvt_v2_b0", 224, 20.0)]
    measured = paper.measured_speed_accuracy(
        pd.DataFrame(rows, columns=["model", "img_size", "img_per_s"])
    ).assign(dataset="ImageNet-1k", device="Abacus 2", top1_source="timm")
    figure = figures.fig1_speed_accuracy(paper.speed_accuracy(), measured, note="Ours deployed.")
    assert str(figure.get_supxlabel()).endswith("ways. Ours deployed.")
    right = figure.axes[1]
    assert right.get_title(loc="left") == "Speed measured here: Abacus 2"
    assert right.get_ylabel() == "ImageNet-1k top-1 (%), published by timm"
    faces = {at(dot)[0]: dot.get_markerfacecolor() for dot in dots(right)}
    assert faces[20.0] == "white" and faces[90.0] != "white"  # digitised, and timm's
    assert "open markers: read off the paper's figure" in str(figure.get_supxlabel())

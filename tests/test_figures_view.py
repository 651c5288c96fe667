"""The explorer's picture: what is drawn is what the view says, and clicks find it again."""

from __future__ import annotations

import dataclasses
import io
import re
from typing import Any

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from evitlab.figures import Hit, ViewCanvas, attention_view, describe, house_style
from evitlab.figures.style import _render
from evitlab.figures.view_ink import Label, Pixels, Strokes, shortened, text_width
from evitlab.figures.view_layout import (
    Layout,
    Rect,
    arrange,
    head_boxes,
    importance_box,
    map_box,
    matrix_box,
    picture_box,
)
from evitlab.figures.view_panels import PAINTERS
from evitlab.records import AttentionView

LONG = "American Staffordshire terrier, American pit bull terrier, and any dog that resembles one"


def make(
    heads: int = 4, grid: tuple[int, int] = (6, 6), size: tuple[int, int] = (48, 48), **fields: Any
) -> AttentionView:
    random = np.random.default_rng(0)
    rows, columns = grid
    given: dict[str, Any] = {
        "model": "toy_vit",
        "weights": "trained on nothing",
        "picture": random.integers(0, 256, (*size, 3), np.uint8),
        "picture_name": "noise 3",
        "label": "cat",
        "block": 2,
        "blocks": 3,
        "block_name": "blocks.1.attn",
        "kind": "global",
        "head": 1,
        "query": (0, 0),
        "has_class_token": False,
        "grid": grid,
        "query_grid": grid,
        "window": None,
        "shift": (0, 0),
        "maps": np.exp2(random.normal(0, 1.5, (heads, rows, columns))),
        "class_weights": None,
        "similarity": random.uniform(0, 1, (heads, heads)),
        "pair": None,
        "entropy": random.uniform(0, 1, heads),
        "distance": random.uniform(0, 1, heads),
        "on_object": None,
        "mask": None,
        "off": (),
        "classes": (("cat", 0.6, None), ("dog", 0.3, None)),
        "overlay": "attention",
        "heat": None,
        "importance": None,
    }
    return AttentionView(**{**given, **fields})


def windowed(**fields: Any) -> AttentionView:
    """Windows of 3 x 3, shifted by one: the first wraps around to all four corners."""
    maps = np.full((2, 6, 6), np.nan)
    maps[:, [[0], [4], [5]], [0, 4, 5]] = 1.0  # never seen together: the window of a shift by -1
    fields = {"maps": maps, "kind": "window", "window": (3, 3), "shift": (1, 1), **fields}
    return make(2, **fields)


def full(**fields: Any) -> AttentionView:
    """Everything that a view can hold."""
    importance = np.array([[0.1, -0.02, np.nan], [0.3, 0.0, 0.01], [0.0, np.nan, np.nan]])
    mask = np.zeros((48, 48), bool)
    mask[10:30, 0:20] = True
    given: dict[str, Any] = {
        "kind": "cascade",
        "has_class_token": True,
        "class_weights": np.array([0.5, 2.0, 12.0]),
        "pair": 2,
        "on_object": np.array([0.1, 0.2, 0.3]),
        "mask": mask,
        "off": ((1, 1), (2, 3)),
        "classes": (("cat", 0.6, 0.4), (LONG, 0.3, 0.5)),
        "importance": importance,
    }
    return make(3, **{**given, **fields})


def labels(figure: Figure, gid: str) -> list[str]:
    found = figure.findobj(lambda artist: isinstance(artist, Label) and artist.get_gid() == gid)
    return [artist.text for artist in found]  # type: ignore[attr-defined]


def words(figure: Figure) -> list[str]:
    return [artist.text for artist in figure.findobj(Label)]


def pixels(figure: Figure, gid: str) -> Any:
    found = figure.findobj(lambda artist: isinstance(artist, Pixels) and artist.get_gid() == gid)
    assert len(found) == 1, f"{gid}: {len(found)}"
    return np.asarray(found[0].get_array())  # type: ignore[attr-defined]


def strokes(figure: Figure, gid: str) -> list[Any]:
    found = figure.findobj(lambda artist: isinstance(artist, Strokes) and artist.get_gid() == gid)
    return [line for artist in found for line in artist.lines]  # type: ignore[attr-defined]


def decoded(png: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(png)))


def plan_of(view: AttentionView, width: int = 1100) -> Layout:
    return arrange(view, None, width)


def rect_of(plan: Layout, part: str, model: int = 0) -> Rect:
    return next(p.rect for p in plan.panels if (p.part, p.model) == (part, model))


# The record


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"maps": np.ones((4, 5, 6))}, "maps: expected shape"),
        ({"similarity": np.ones((3, 3))}, "similarity: expected shape"),
        ({"mask": np.ones((4, 4), bool)}, "mask: expected shape"),
        ({"head": 5}, "head: expected 1 to 4, got 5"),
        ({"pair": 0}, "pair: expected 1 to 4, got 0"),
        ({"block": 4}, "block: expected 1 to 3, got 4"),
        ({"overlay": "heat"}, "overlay: expected one of attention"),
        ({"query": None}, "query: expected"),
        ({"query": (6, 0)}, "query: expected a patch of 6 x 6"),
    ],
)
def test_view_names_what_does_not_fit(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**fields)


# What is drawn


def test_scale_is_fixed_and_labelled() -> None:
    maps = np.array([[[0.1, 0.5, 1.0], [4.0, 32.0, 100.0]]])
    figure = attention_view(make(1, (2, 3), maps=maps))
    low, high = colormaps["cividis"]([0.0, 1.0], bytes=True)
    drawn = pixels(figure, "map")
    assert (drawn[0, :2] == low).all() and (drawn[1, 1:] == high).all()
    assert (drawn[1, 0] == colormaps["cividis"](3 / 6, bytes=True)).all()
    assert {"½", "1", "2", "4", "8", "16", "32", "× uniform"} <= set(words(figure))


def test_heads_show_maps_and_numbers() -> None:
    view = full()
    figure = attention_view(view)
    assert labels(figure, "entropy of 2") == [f"{view.entropy[1]:.2f}".removeprefix("0")]
    assert labels(figure, "object of 3") == [".30"]
    assert labels(figure, "class of 3") == ["12 ×"]
    assert labels(figure, "head name 3") == ["Head 3 off"]
    assert len(strokes(figure, "off")) == 2  # a cross
    grey = pixels(figure, "head 3")
    assert (np.ptp(grey[..., :3], axis=-1) == 0).all(), "a head that is off keeps its colours"
    assert (np.ptp(pixels(figure, "head 2")[..., :3], axis=-1) > 0).any()
    assert len(strokes(figure, "order")) == 4  # two arrows, each a line and a tip
    assert strokes(attention_view(make()), "order") == []


def test_similarity_and_pair() -> None:
    view = full()
    figure, box = attention_view(view), matrix_box(view, rect_of(plan_of(view), "similarity"))
    expected = f"{view.similarity[0, 1]:.2f}".removeprefix("0")
    assert labels(figure, "similarity 1 2") == [expected]
    frame = next(line for line in strokes(figure, "pair") if line[0][0] >= box.x)
    cell = box.cell(0, 1, 3, 3)
    assert frame[0] == pytest.approx((cell.x, cell.y))


def test_classes_before_and_after() -> None:
    view = full()
    figure = attention_view(view)
    assert labels(figure, "probability 1") == ["60.0 % → 40.0 % (−20.0)"]
    assert labels(figure, "probability 2") == ["30.0 % → 50.0 % (+20.0)"]
    assert labels(figure, "class 1") == ["✓ cat"]
    assert labels(figure, "class 2")[0].endswith("…")
    before, after = strokes(figure, "before"), strokes(figure, "after")
    assert np.ptp(before[0][:, 0]) / np.ptp(before[1][:, 0]) == pytest.approx(2.0)
    assert np.ptp(after[0][:, 0]) / np.ptp(before[0][:, 0]) == pytest.approx(2 / 3)
    assert labels(attention_view(make()), "no change") == ["all heads on"]


def test_a_change_that_rounds_to_nothing_has_no_sign() -> None:
    figure = attention_view(make(classes=(("cat", 0.5, 0.5001), ("dog", 0.2, 0.1999))))
    assert labels(figure, "probability 1") == ["50.0 % → 50.0 % (±0.0)"]


def test_shifted_window_shows_as_pieces() -> None:
    view = windowed()
    figure = attention_view(view)
    box = map_box(view, rect_of(plan_of(view), "map"))
    pieces = [line for line in strokes(figure, "window") if line[0][0] >= box.x]
    areas = [round(np.ptp(x) * np.ptp(y) / (box.width * box.height) * 36) for x, y in
             (line.T for line in pieces)]  # fmt: skip
    assert sorted(areas) == [1, 2, 2, 4]
    grey = pixels(figure, "map")
    assert (grey[1:3, 1:3] == grey[1, 1]).all() and not (grey[0, 0] == grey[1, 1]).all()
    whole = attention_view(windowed(shift=(0, 0), query=(4, 4)))
    assert len(strokes(whole, "window")) == 2  # on the picture and on the map
    assert pixels(whole, "head 1").shape == (3, 3, 4)  # the window alone


def test_window_is_put_together_again() -> None:
    """What stands in four corners is one square, as it is computed."""
    maps = np.full((1, 4, 4), np.nan)
    maps[0, [[3], [0]], [3, 0]] = [[0.5, 1.0], [2.0, 32.0]]
    view = make(1, (4, 4), maps=maps, kind="window", window=(2, 2), shift=(1, 1))
    drawn, scale = pixels(attention_view(view), "head 1"), colormaps["cividis"]
    for weight, got in zip((0.5, 1.0, 2.0, 32.0), drawn.reshape(4, 4), strict=True):
        assert (got == scale((np.log2(weight) + 1) / 6, bytes=True)).all()


def test_object_outline_lies_in_the_picture() -> None:
    view = full()
    box = picture_box(view, rect_of(plan_of(view), "picture"))
    outline = np.concatenate(strokes(attention_view(view), "object"))
    assert box.x <= outline[:, 0].min() and outline[:, 0].max() <= box.x + box.width * 20.5 / 48
    assert outline[:, 1].min() == pytest.approx(box.y + box.height * 9.5 / 48, abs=box.height / 48)


@pytest.mark.parametrize("overlay", ["rollout", "grad_cam", "integrated_gradients"])
def test_overlay_has_its_own_scale(overlay: str) -> None:
    figure = attention_view(make(overlay=overlay, heat=np.eye(3)))
    assert pixels(figure, "map").shape == (3, 3, 4)
    assert "of largest" in labels(figure, "unit") and labels(figure, "tick 0.5")
    assert strokes(figure, "window") == []
    attention_view(make(overlay=overlay, heat=None))  # not computed yet


def test_importance_leaves_out_heads_that_are_not_there() -> None:
    figure = attention_view(full(), dark=True)
    drawn = pixels(figure, "importance")
    assert (drawn[0, 2, :3] == 0x11).all()
    assert labels(figure, "importance 1 1") == ["10.0"] and not labels(figure, "importance 1 3")
    nothing = full(importance=np.full((3, 3), np.nan))
    attention_view(nothing)


CASES = {
    "one head": make(1),
    "one class": make(classes=(("cat", 1.0, None),)),
    "no class": make(classes=()),
    "many classes": make(classes=tuple((LONG, 0.1, 0.2) for _ in range(10))),
    "one token": make(2, (1, 1)),
    "24 heads": make(24, (7, 7), pair=20, head=24),
    "24 heads in a cascade": make(24, (7, 7), kind="cascade", has_class_token=True,
                                  class_weights=np.ones(24), on_object=np.ones(24)),
    "wide": make(4, (3, 12), (32, 128)),
    "tall": make(4, (12, 3), (128, 32)),
    "class token": full(query=None),
    "everything": full(model=LONG, weights=LONG, picture_name=LONG, label=LONG,
                       off=tuple((2, 1 + i % 3) for i in range(40))),
    "windows": windowed(),
    "window larger than the grid": make(2, (2, 2), kind="cascade", window=(7, 7)),
    "grid that windows do not fill": make(2, (5, 5), kind="cascade", window=(3, 3), query=(4, 4)),
    "queries on a coarser grid": make(2, (4, 4), query_grid=(2, 2), query=(1, 1)),
    "nothing known": make(2, entropy=np.full(2, np.nan), distance=np.full(2, np.nan),
                          maps=np.full((2, 6, 6), np.nan), similarity=np.full((2, 2), np.nan)),
}  # fmt: skip


@pytest.mark.parametrize("width", [380, 520, 900, 1280])
@pytest.mark.parametrize("name", CASES)
def test_nothing_overlaps_or_is_cut_off(name: str, width: int) -> None:
    view = CASES[name]
    figure = attention_view(view, width=width)
    plan = plan_of(view, width)
    sheet = Rect(0, 0, plan.width, plan.height)
    with house_style():
        shown = [(a.text, a.box) for a in figure.findobj(Label) if a.text]
    for text, box in shown:
        assert sheet.x <= box.x and box.right <= sheet.right + 1, f"{text!r} is cut off"
        assert sheet.y <= box.y and box.bottom <= sheet.bottom, f"{text!r} is cut off"
    for i, (text, box) in enumerate(shown):
        for other, beside in shown[:i]:
            across = min(box.right, beside.right) - max(box.x, beside.x)
            along = min(box.bottom, beside.bottom) - max(box.y, beside.y)
            assert across < 2 or along < 3, f"{text!r} lies over {other!r}"
    for first in plan.panels:
        for second in plan.panels:
            if first != second:
                a, b = first.rect, second.rect
                apart = (a.right <= b.x or b.right <= a.x or a.bottom <= b.y or b.bottom <= a.y)
                assert apart, f"{first.part} and {second.part}"


def test_names_are_shortened_to_their_room() -> None:
    with house_style():
        text = shortened(LONG, 120.0, 8.5)
        assert text.endswith("…") and LONG.startswith(text[:-1].rstrip())
        assert text_width(text, 8.5) <= 120.0
        assert shortened("cat", 120.0, 8.5) == "cat"


def test_other_model_stands_below() -> None:
    other = make(6, (3, 3), model="other_vit", kind="window", window=(3, 3))
    for width in (520, 1100):
        figure = attention_view(make(), other, width=width)
        assert any("other_vit" in text for text in labels(figure, "title 0"))
        images = figure.findobj(Pixels)
        assert [image.get_gid() for image in images].count("picture") == 2


def test_theme_and_file_formats() -> None:
    for dark, ground in ((False, 255), (True, 0x11)):
        figure = attention_view(full(), dark=dark)
        with house_style():
            png, svg = _render(figure, "png", dpi=150), _render(figure, "svg", dpi=150)
        drawn = decoded(png)
        assert (drawn[2, 2, :3] == ground).all() and (drawn[-2, -2, :3] == ground).all()
        assert drawn.shape[1] == 1650 and b"<image" in svg
        assert re.search(rb'(?:x|y|d|width|height|transform)="[^"]*nan', svg) is None


def test_figure_and_canvas_draw_alike() -> None:
    """The same artists; only what is blended into the picture has another resolution."""
    view = full(query=(2, 3))
    figure = attention_view(view)
    with house_style():
        still = decoded(_render(figure, "png", dpi=100)).astype(int)[..., :3]
    live = decoded(ViewCanvas().draw(view)).astype(int)
    assert still.shape == live.shape
    assert np.abs(still - live).mean() < 1.0


# The canvas

CHANGES: dict[str, Any] = {
    "model": "another", "weights": "other", "picture": np.zeros((48, 48, 3), np.uint8),
    "picture_name": "noise 4", "label": "dog", "block": 3, "blocks": 5, "block_name": "b",
    "kind": "global", "head": 2, "query": (3, 3), "query_grid": (3, 3), "window": (3, 3),
    "maps": np.ones((3, 6, 6)), "class_weights": None, "similarity": np.ones((3, 3)),
    "pair": 3, "entropy": np.zeros(3), "distance": np.zeros(3), "on_object": None,
    "mask": None, "off": ((2, 2),), "classes": (("cat", 0.61, 0.4), ("dog", 0.3, 0.5)),
    "overlay": "rollout", "importance": None,
}  # fmt: skip


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_changes_the_picture(field: str) -> None:
    canvas, base = ViewCanvas(), full(heat=np.eye(4))
    first = canvas.draw(base)
    changed = dataclasses.replace(base, **{field: CHANGES[field]})
    assert canvas.draw(changed) != first
    assert canvas.draw(changed) == ViewCanvas().draw(changed), "something old is left"
    assert canvas.draw(base) == first


@pytest.mark.parametrize("field", ["shift", "heat", "grid"])
def test_fields_that_need_another_change_the_picture(field: str) -> None:
    base = windowed(overlay="grad_cam" if field == "heat" else "attention", heat=np.eye(4))
    more: dict[str, dict[str, Any]] = {
        "shift": {"shift": (2, 1)},
        "heat": {"heat": np.ones((4, 4))},
        "grid": {"grid": (4, 9), "query_grid": (4, 9), "maps": base.maps.reshape(2, 4, 9)},
    }
    canvas = ViewCanvas()
    first = canvas.draw(base)
    assert canvas.draw(dataclasses.replace(base, **more[field])) != first


def test_canvas_keeps_no_trace_of_what_it_drew() -> None:
    """Through sizes, heads and models, each picture is that of a fresh canvas."""
    canvas = ViewCanvas(900, dark=True)
    other = make(2, (3, 3), model="other")
    for view, beside in [
        (make(), None), (full(), None), (full(head=2), other), (windowed(), other),
        (make(24, (7, 7)), None), (make(), None),
    ]:  # fmt: skip
        assert canvas.draw(view, beside) == ViewCanvas(900, dark=True).draw(view, beside)


def test_a_part_that_could_not_be_painted_is_painted_next_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    canvas, view = ViewCanvas(), full()
    first = canvas.draw(view)
    painter, fields = PAINTERS["similarity"]

    def fail(pen: Any, shown: AttentionView, rect: Rect) -> None:
        raise ArithmeticError("stop")

    with monkeypatch.context() as broken:
        broken.setitem(PAINTERS, "similarity", (fail, fields))
        with pytest.raises(ArithmeticError):
            canvas.draw(dataclasses.replace(view, head=2))
    assert canvas.draw(view) == first


def test_canvas_sizes_and_ratio() -> None:
    view = make()
    plan = plan_of(view, 600)
    for ratio in (1.0, 1.5, 2.0):
        drawn = decoded(ViewCanvas(600, pixel_ratio=ratio).draw(view))
        assert drawn.shape == (round(plan.height * ratio), round(600 * ratio), 3)
    with pytest.raises(ValueError, match="width: expected at least 380 pixels, got 200"):
        ViewCanvas(200)
    with pytest.raises(ValueError, match="pixel_ratio: expected more than 0, got 0"):
        ViewCanvas(pixel_ratio=0)
    with pytest.raises(ValueError, match="width"):
        attention_view(view, width=100)


# Clicks


@pytest.mark.parametrize("width", [520, 1100])
def test_every_part_is_found_where_it_is_drawn(width: int) -> None:
    view, other = full(), make(5, (3, 5), model="other")
    canvas = ViewCanvas(width)
    assert canvas.locate(0.5, 0.5) is None, "nothing drawn yet"
    canvas.draw(view, other)
    plan = arrange(view, other, width)

    def at(box: Rect) -> Hit | None:
        x, y = box.center
        return canvas.locate(x / plan.width, y / plan.height)

    for model, shown in enumerate((view, other)):
        box = picture_box(shown, rect_of(plan, "picture", model))
        rows, columns = shown.query_grid
        for row in range(rows):
            for column in range(columns):
                hit = at(box.cell(row, column, rows, columns))
                assert hit == Hit("query", model, row=row, column=column)
        for head, box in enumerate(head_boxes(shown, rect_of(plan, "heads", model)), start=1):
            assert at(box) == Hit("head", model, block=2, head=head)
    box = map_box(view, rect_of(plan, "map"))
    assert at(box.cell(5, 1, 6, 6)) == Hit("query", 0, row=5, column=1)
    box = matrix_box(view, rect_of(plan, "similarity"))
    assert at(box.cell(2, 1, 3, 3)) == Hit("pair", 0, block=2, head=3, other=2)
    box = importance_box(view, rect_of(plan, "importance"))
    assert at(box.cell(1, 2, 3, 3)) == Hit("importance", 0, block=2, head=3)
    assert at(box.cell(0, 2, 3, 3)) is None, "no such head"
    assert canvas.locate(0.001, 0.001) is None and canvas.locate(1.0, 1.0) is None
    assert canvas.locate(-0.5, 0.5) is None


def test_clicks_follow_the_latest_picture() -> None:
    canvas = ViewCanvas()
    canvas.draw(make(4))
    view = make(24, (7, 7))
    canvas.draw(view)
    plan = plan_of(view)
    x, y = head_boxes(view, rect_of(plan, "heads"))[23].center
    assert canvas.locate(x / plan.width, y / plan.height) == Hit("head", 0, block=2, head=24)


def test_description() -> None:
    text = describe(full())
    assert text == (
        "Attention of toy_vit (trained on nothing) on noise 3, true class cat: block 2 of 3 "
        "(cascade, one window), head 1 of 3 beside head 2, query (0, 0); predicted "
        "cat, 60 %, with 2 heads off 40 %."
    )
    assert "(global)" in describe(make()) and "(one window)" in describe(make(kind="window"))
    assert "query class token" in describe(full(query=None))
    assert "windows of 3 × 3, shifted" in describe(windowed(label=None, classes=()))

"""The image grid shows every image unchanged, in order, under its own title."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from evitlab import figures

IMAGES = torch.randint(256, (11, 3, 6, 5), dtype=torch.uint8)  # N, RGB, height, width


def shown(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_visible()]


def pixels(axes: Axes) -> np.ndarray:
    (image,) = axes.images
    return np.asarray(image.get_array())


def test_every_image_is_drawn_once_in_order_and_unchanged():
    figure = figures.image_grid(IMAGES, columns=4)
    assert len(figure.axes) == 12 and len(shown(figure)) == 11  # three rows of four, one empty
    for image, axes in zip(IMAGES, shown(figure), strict=True):
        np.testing.assert_array_equal(pixels(axes), image.permute(1, 2, 0).numpy())
        assert axes.images[0].get_interpolation() == "nearest"
    assert plt.get_fignums() == []


def test_floats_are_shown_as_they_are_within_0_and_1():
    images = IMAGES / 255 * 1.5 - 0.2  # as an augmentation with erasing leaves them
    for image, axes in zip(images, shown(figures.image_grid(images)), strict=True):
        np.testing.assert_allclose(pixels(axes), image.clip(0, 1).permute(1, 2, 0).numpy())


def test_a_wrong_answer_differs_by_sign_and_by_colour():
    names = [f"name {i}" for i in range(11)]
    correct = [i % 3 > 0 for i in range(11)]
    axes = shown(figures.image_grid(IMAGES, names, correct=correct))
    titles = [one.get_title() for one in axes]
    judged = zip(names, correct, strict=True)
    assert titles == [name if right else f"✗ {name}" for name, right in judged]
    colors = [to_hex(one.title.get_color()) for one in axes]
    assert len(set(colors)) == 2
    assert [color == colors[0] for color in colors] == [not right for right in correct]


def test_without_a_judgement_titles_are_plain():
    axes = shown(figures.image_grid(IMAGES, ["a"] * 11))
    assert {one.get_title() for one in axes} == {"a"}
    assert len({one.title.get_color() for one in axes}) == 1


def test_row_names_stand_at_the_first_image_of_their_row():
    axes = shown(figures.image_grid(IMAGES, columns=4, row_names=["one", "two", "three"]))
    named = {i: one.get_ylabel() for i, one in enumerate(axes) if one.get_ylabel()}
    assert named == {0: "one", 4: "two", 8: "three"}


def test_fewer_images_than_columns_leave_no_gap():
    assert len(figures.image_grid(IMAGES[:2]).axes) == 2


def test_titles_do_not_touch_the_images_above():
    figure = figures.image_grid(IMAGES, ["one\ntwo"] * 11, columns=4, note="note")
    with figures.house_style():
        figure.draw_without_rendering()
        above, below = figure.axes[0], figure.axes[4]
        title = below.title.get_window_extent()
        assert title.y1 <= above.get_window_extent().y0 + 0.5
        for axes in shown(figure):
            box = axes.title.get_window_extent()
            assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 + 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": IMAGES[0]}, r"images: expected \[N, 3, H, W\] with N > 0, got \[3, 6, 5\]"),
        ({"images": IMAGES[:0]}, r"images: .* got \[0, 3, 6, 5\]"),
        ({"images": IMAGES[:, :1]}, r"images: .* got \[11, 1, 6, 5\]"),
        ({"columns": 0}, "columns: expected at least 1, got 0"),
        ({"titles": ["a"]}, "titles: expected 11, one per image, got 1"),
        ({"titles": ["a"] * 11, "correct": [True]}, "correct: expected 11, one per image, got 1"),
        ({"row_names": ["a"]}, "row_names: expected 2, one per row, got 1"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        figures.image_grid(**{"images": IMAGES, **change})

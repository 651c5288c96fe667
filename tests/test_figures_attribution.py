"""Figures of attribution: what is drawn is what the records say, on scales that are shared."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from timed_records import CARD

from evitlab import figures
from evitlab.records import AttributionPicture, FaithfulnessCurve, FaithfulnessCurves

RNG = np.random.default_rng(0)


def picture(model: str = "toy", **changes: Any) -> AttributionPicture:
    given: dict[str, Any] = {
        "model": model,
        "weights": "untrained",
        "picture": RNG.integers(0, 256, (8, 8, 3), np.uint8),
        "target": "ship",
        "probability": 0.4,
        "maps": {
            "integrated_gradients": RNG.normal(size=(8, 8)),
            "attention_rollout": RNG.random((2, 2)),
            "grad_cam": RNG.random((8, 8)),
        },
        "completeness_error": 0.0123,
        "environment": CARD,
    }
    return AttributionPicture(**{**given, **changes})


def drawn(figure: Figure) -> list[Any]:
    return [image for axes in figure.axes for image in axes.images]


def texts(axes: Axes) -> list[str]:
    return [axes.get_title(loc="center"), axes.get_xlabel(), axes.get_ylabel()]


def test_each_map_is_drawn_in_multiples_of_its_mean() -> None:
    rows = [picture("one"), picture("two")]
    figure = figures.attribution_grid(rows)
    images = drawn(figure)
    order = ["picture", "attention_rollout", "grad_cam", "integrated_gradients"]
    assert [image.get_gid() for image in images] == order * 2
    for row, start in zip(rows, (0, 4), strict=True):
        np.testing.assert_array_equal(images[start].get_array(), row.picture)
        for image in images[start + 1 : start + 4]:
            values = row.maps[image.get_gid()]
            np.testing.assert_allclose(image.get_array(), values / np.abs(values).mean())


def test_scales_are_shared_and_safe_for_the_colour_blind() -> None:
    images = drawn(figures.attribution_grid([picture("one"), picture("two")]))
    limits = {
        gid: {(i.get_cmap().name, *i.get_clim()) for i in images if i.get_gid() == gid}
        for gid in ("attention_rollout", "grad_cam", "integrated_gradients")
    }
    assert limits["attention_rollout"] == limits["grad_cam"] == {("cividis", 0.25, 4.0)}
    assert limits["integrated_gradients"] == {("PuOr_r", -16.0, 16.0)}


def test_what_is_known_is_written() -> None:
    figure = figures.attribution_grid([picture("one")])
    written = [text for axes in figure.axes for text in texts(axes)]
    assert "completeness error 1.2 %" in written
    assert "ship, 40 %" in written and "one" in written
    assert "Integrated gradients" in written and "× mean of the map" in written
    assert figure.get_suptitle() == "What predictions rest on; weights: untrained"
    mixed = figures.attribution_grid([picture(), picture(weights="trained")])
    assert mixed.get_suptitle() == "What predictions rest on"
    assert any("trained" in axes.get_ylabel() for axes in mixed.axes)
    tiny = figures.attribution_grid([picture(completeness_error=1e-7)])
    assert any(axes.get_xlabel().endswith("< 0.01 %") for axes in tiny.axes)


def test_a_map_of_nothing_is_drawn() -> None:
    maps = {"grad_cam": np.zeros((4, 4)), "occlusion": np.zeros((4, 4))}
    figure = figures.attribution_grid([picture(maps=maps, completeness_error=None)])
    assert all(np.isfinite(np.asarray(image.get_array())).all() for image in drawn(figure))


def test_wrong_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="pictures: expected at least one"):
        figures.attribution_grid([])
    other = picture("two", maps={"grad_cam": RNG.random((8, 8))})
    with pytest.raises(ValueError, match="pictures: expected .* of each, got grad_cam of two"):
        figures.attribution_grid([picture(), other])
    with pytest.raises(ValueError, match=r"picture: expected uint8 \[H, W, 3\]"):
        picture(picture=RNG.random((8, 8, 3)))
    with pytest.raises(ValueError, match=r"maps: expected finite \[rows, columns\] of grad_cam"):
        picture(maps={"grad_cam": np.full((2, 2), np.nan)})


def curve(method: str, deletion: tuple[float, ...]) -> FaithfulnessCurve:
    return FaithfulnessCurve(method, deletion, deletion[::-1], (0.25,), (0.75,))


RECORD = FaithfulnessCurves(
    model="toy",
    images=1,
    fractions=(0.0, 0.5, 1.0),
    deletion_baseline="mean",
    insertion_baseline="blurred",
    curves=(
        curve("grad_cam", (0.9, 0.2, 0.1)),
        curve("occlusion", (0.9, 0.4, 0.1)),
        curve("random pixels", (0.9, 0.5, 0.1)),
    ),
    environment=CARD,
)


def test_curves_are_the_records() -> None:
    figure = figures.faithfulness_curves(RECORD)
    for axes, name in zip(figure.axes, ("deletion", "insertion"), strict=True):
        lines = {line.get_gid(): line for line in axes.lines}
        assert list(lines) == ["grad_cam", "occlusion", "random pixels"]
        for given in RECORD.curves:
            line = lines[given.method]
            found = np.asarray(line.get_xydata())
            np.testing.assert_allclose(found[:, 0], [0, 50, 100])
            np.testing.assert_allclose(found[:, 1], np.multiply(100, getattr(given, name)))
        assert lines["random pixels"].get_linestyle() == "--"
        assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] >= 90
        legend = axes.get_legend()
        assert legend is not None
        area = "25.0 %" if name == "deletion" else "75.0 %"
        assert legend.get_texts()[0].get_text() == f"Grad-CAM  {area}"
    assert figure.get_suptitle() == "toy: do the important pixels matter? Mean of 1 image"


def test_the_baselines_are_named() -> None:
    record = dataclasses.replace(RECORD, deletion_baseline="black", insertion_baseline="given")
    note = figures.faithfulness_curves(record).get_supxlabel()
    assert "taken away show black; those not yet put in what was given" in note.replace("\n", " ")

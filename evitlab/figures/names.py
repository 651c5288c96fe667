"""Names of boxes on a picture in matplotlib's axes, each where it covers no other where it can."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from matplotlib.axes import Axes

from evitlab.figures.boxes import text_width

_POINTS, _FEWER_POINTS = 6.5, 4.8  # of the letters; the second in crowded pictures
_HIGH = 1.36  # lines of text that a plate is high

Area = tuple[float, float, float, float]


class NameTags:
    """The names on one picture, in the order in which they are added.

    Args:
        axes: they show the picture with its upper left corner at (0, 0).
        width: of the picture, in the axes' units.
        height: the same.
        inches: what the width comes to on the page.
        crowded: smaller letters.
    """

    def __init__(
        self, axes: Axes, width: float, height: float, *, inches: float, crowded: bool = False
    ) -> None:
        self.axes, self.width, self.height = axes, width, height
        self.per_inch = width / inches
        self.points = _FEWER_POINTS if crowded else _POINTS
        self.taken: list[Area] = []

    def add(self, box: Sequence[float], text: str, color: str) -> None:
        """Write a name at its box, (x1, y1, x2, y2) in the axes' units."""
        size = (
            (text_width(text, self.points) + 0.06) * self.per_inch,
            _HIGH * self.points / 72 * self.per_inch,
        )
        places = self._places(box, size)
        area = min(places, key=self._covered)
        self.taken.append(area)
        self.axes.text(
            area[0] + 0.03 * self.per_inch, (area[1] + area[3]) / 2, text, color="white",
            fontsize=self.points, va="center", parse_math=False, gid="name",
            bbox={"fc": color, "ec": "none", "pad": 0.15 * self.points},
        )  # fmt: skip

    def _places(self, box: Sequence[float], size: tuple[float, float]) -> list[Area]:
        """Where a name may stand, best first, inside the picture."""
        x1, y1, x2, y2 = box
        wide, high = size
        found = []
        for top, left in itertools.product((y1 - high, y1, y2, y2 - high), (x1, x2 - wide)):
            x = min(max(left, 0.0), max(0.0, self.width - wide))
            y = min(max(top, 0.0), max(0.0, self.height - high))
            found.append((x, y, x + wide, y + high))
        return found

    def _covered(self, area: Area) -> float:
        """How much of the names that are there already, in square units."""
        return sum(
            max(0.0, min(area[2], other[2]) - max(area[0], other[0]))
            * max(0.0, min(area[3], other[3]) - max(area[1], other[1]))
            for other in self.taken
        )

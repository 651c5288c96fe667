"""Table 5: detection on COCO, published and beside what was trained here."""

from __future__ import annotations

import pandas as pd

from evitlab.paper.published import known, load

FRAMEWORK = "RetinaNet 1x"  # 12 epochs
LEARNT_FROM, MEASURED_ON = "COCO train2017, 118,287 images", "COCO val2017"
_MEASURES = ("ap", "ap50", "ap75")
_OURS = ("model", *_MEASURES, "learnt_from", "measured_on", "scale")


def table5(trained: pd.DataFrame | None = None) -> pd.DataFrame:
    """Table 5's RetinaNets, then our runs, one row each.

    Columns: source ("paper" or "ours"), model (the backbone), ap, ap50, ap75 (percent; NaN where
    it was not found), provenance (of the paper's: "printed", or "derived" from a stated
    difference), learnt_from, measured_on, scale ("paper" for the paper's).

    Args:
        trained: one row per run: model, ap, ap50, ap75 (percent), learnt_from, measured_on, scale.

    Raises:
        ValueError: a column is missing.

    Paper: Table 5.
    Pitfall: an AP belongs to the images it was measured on. One on few images, or on those that
    were learnt from, is no smaller or larger than the paper's: it is of something else.
    """
    published = load("coco").query("framework == @FRAMEWORK and quantity in @_MEASURES")
    rows = []
    for backbone in published["backbone"].unique():
        own = published[published["backbone"] == backbone].set_index("quantity")
        rows.append({
            "source": "paper",
            "model": backbone,
            **{name: own["value"].get(name) for name in _MEASURES},
            "provenance": own["provenance"].iloc[0],
            "learnt_from": LEARNT_FROM,
            "measured_on": MEASURED_ON,
            "scale": "paper",
        })  # fmt: skip
    frame = pd.DataFrame(rows).astype(dict.fromkeys(_MEASURES, float))
    if trained is None or trained.empty:
        return frame
    for column in _OURS:
        known("column of trained", column, list(trained.columns))
    ours = trained[list(_OURS)].assign(source="ours", provenance="measured")
    return pd.concat([frame, ours[list(frame.columns)]], ignore_index=True)

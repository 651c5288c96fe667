"""Table 6 and Fig. 7: what each design choice brings, published and beside what was found here.

Accuracies are differences to the paper's own design, speeds are ratios to it: levels differ with
data, budget and machine, and only what a change does can be held beside the paper's.
"""

from __future__ import annotations

import math

import pandas as pd

from evitlab.paper.published import known, load

BASELINE = "row-1"  # the design as published
ENGINES = {"gpu": "traced", "onnx": "onnxruntime"}  # the paper's column -> ours
_SPREAD = ("diff", "diff_low", "diff_high", "seeds")


def table6(trained: pd.DataFrame, speeds: pd.DataFrame | None = None) -> pd.DataFrame:
    """Table 6 beside our runs, one row per row of it.

    Columns: row, variant (as published), paper_diff (top-1 points over row 1), diff (ours, the mean
    over the seeds, each against row 1 of the same seed), diff_low, diff_high (the seeds' extremes),
    seeds (0: not run), chance (what a difference of two accuracies may be by chance, 95 %, from the
    number of validation images), paper_gpu, paper_onnx (speed over row 1's), gpu, onnx (ours).

    Args:
        trained: one row per run: variant ("row-2"), seed, top1 (percent), val_images.
        speeds: model (the variant), engine, img_per_s; of the engines of ENGINES.

    Raises:
        ValueError: a column is missing, or row 1 was not trained or not measured.

    Paper: Table 6 (M4, 100 epochs on ImageNet).
    Pitfall: the paper's speeds are a V100's and ONNX Runtime's on a CPU; ours are of one machine.
    """
    published = load("ablations").query("table == 'Table 6'")
    cells = published.pivot(index="row", columns="quantity", values="value")
    names = published.drop_duplicates("row").set_index("row")["variant"]
    rows = []
    for row, cell in cells.iterrows():
        first = cells.loc[1]
        paper = {
            "row": int(str(row)),
            "variant": str(names[row]).replace("->", "→"),
            "paper_diff": cell["top1"] - first["top1"],
            "paper_gpu": cell["gpu_img_s"] / first["gpu_img_s"],
            "paper_onnx": cell["onnx_img_s"] / first["onnx_img_s"],
        }
        rows.append({**paper, **_ours(f"row-{row}", trained, speeds)})
    columns = ["row", "variant", "paper_diff", *_SPREAD, "chance"]
    return pd.DataFrame(rows)[[*columns, "paper_gpu", "gpu", "paper_onnx", "onnx"]]


def fig7(trained: pd.DataFrame, speeds: pd.DataFrame | None = None) -> pd.DataFrame:
    """Both sweeps of Fig. 7 beside our runs, one row per point.

    Columns: sweep ("key_dim": Q's and K's width; "value_ratio": V's width over its split), setting,
    paper_diff, paper_error (reading error of the top-1, points), paper_gpu, then diff, diff_low,
    diff_high, seeds, chance, gpu, onnx as in `table6`. What all are held against is the published
    design: key_dim 16, value_ratio 1.

    Args:
        trained: as for `table6`, with the variants "key-dim-8", "value-ratio-0.8" and "row-1".
        speeds: as for `table6`.

    Raises:
        ValueError: as `table6`.

    Paper: Fig. 7, digitised.
    """
    published = load("ablations").query("table == 'Fig. 7'")
    rows = []
    for sweep, points in published.groupby("variant", sort=False):
        cells = points.pivot(index="setting", columns="quantity", values="value")
        errors = points[points["quantity"] == "top1"].set_index("setting")["error"]
        # The published design is in both sweeps: its top-1 is Table 6's.
        first = cells.loc[_design(str(sweep))]
        for setting, cell in cells.iterrows():
            number = float(str(setting))
            paper = {
                "sweep": sweep,
                "setting": number,
                "paper_diff": cell["top1"] - first["top1"],
                "paper_error": errors[setting],
                "paper_gpu": cell["gpu_img_s"] / first["gpu_img_s"],
            }
            name = f"{str(sweep).replace('_', '-')}-{number:g}"
            design = setting == _design(str(sweep))
            rows.append({**paper, **_ours(BASELINE if design else name, trained, speeds)})
    return pd.DataFrame(rows)


def _design(sweep: str) -> float:
    return {"key_dim": 16.0, "value_ratio": 1.0}[sweep]


def _ours(variant: str, trained: pd.DataFrame, speeds: pd.DataFrame | None) -> dict[str, float]:
    """What was found here for a variant: NaN, and no seeds, where it was not run."""
    for column in ("variant", "seed", "top1", "val_images"):
        known("column of trained", column, list(trained.columns))
    base = trained[trained["variant"] == BASELINE].set_index("seed")
    if base.empty:
        raise ValueError(f"trained: expected a run of {BASELINE}, which all are held against")
    runs = trained[trained["variant"] == variant].set_index("seed")
    differences = (runs["top1"] - base["top1"]).dropna()  # of the seeds that both have
    found = {
        "diff": differences.mean(),
        "diff_low": differences.min(),
        "diff_high": differences.max(),
        "seeds": len(differences),
        "chance": _chance(base),
    }
    return {
        **found,
        **{column: _ratio(variant, engine, speeds) for column, engine in ENGINES.items()},
    }


def _chance(base: pd.DataFrame) -> float:
    """Half of the 95 % interval of a difference of two accuracies near the design's, in points."""
    share = base["top1"].mean() / 100
    return 196 * math.sqrt(2 * share * (1 - share) / base["val_images"].min())


def _ratio(variant: str, engine: str, speeds: pd.DataFrame | None) -> float:
    if speeds is None:
        return math.nan
    for column in ("model", "engine", "img_per_s"):
        known("column of speeds", column, list(speeds.columns))
    timed = speeds[speeds["engine"] == engine].set_index("model")["img_per_s"].dropna()
    if BASELINE not in timed:
        return math.nan  # this engine was not measured here
    return float(timed[variant] / timed[BASELINE]) if variant in timed else math.nan

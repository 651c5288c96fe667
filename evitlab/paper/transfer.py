"""Table 4: transfer to other data sets, published and beside what was found here."""

from __future__ import annotations

import pandas as pd

from evitlab.datasets.hub import NAMED_SETS
from evitlab.paper.published import known, load

MEMBER = "EfficientViT-M5"  # the one that the paper transfers


def transfer(trained: pd.DataFrame) -> pd.DataFrame:
    """Table 4 beside our runs, one row per data set.

    Columns: data (its name, or the title of what a run was given in its stead), dataset (ours, as
    shown to the reader, None where it was not run), paper (top-1 of M5, percent), paper_others (the
    best of the networks it is compared with), then for `finetuned` and `scratch` the mean over the
    seeds, and `_low`, `_high` and `_seeds` (0: not run), and gain (points, the mean over the seeds
    that both have).

    Args:
        trained: one row per run: variant ("finetuned-cifar10", "scratch-cifar10"), seed, top1
            (percent), dataset.

    Raises:
        ValueError: a column is missing.

    Paper: Table 4, weights from ImageNet.
    Pitfall: the paper has no training from scratch; ours says what pretraining brought here.
    """
    for column in ("variant", "seed", "top1", "dataset"):
        known("column of trained", column, list(trained.columns))
    published = load("downstream").query("quantity == 'top1' and dataset != 'imagenet'")
    cells = published.pivot(index="dataset", columns="model", values="value")
    ours = trained[trained["variant"].str.match("(finetuned|scratch)-")]
    data_names = map(_data_name, ours["variant"], ours["dataset"])
    ours = ours.assign(data=pd.Series(data_names, index=ours.index, dtype=object))
    names = [*published["dataset"].unique(), *ours["data"].unique()]
    rows = []
    for data in dict.fromkeys(names):
        by_start = {start: _runs(ours, start, data) for start in ("finetuned", "scratch")}
        both = pd.concat([runs["dataset"] for runs in by_start.values()])
        row = {"data": data, "dataset": both.iloc[0] if len(both) else None}
        if data in cells.index:
            others = cells.loc[data].drop(MEMBER)
            row |= {"paper": cells.loc[data, MEMBER], "paper_others": others.max()}
        for start, runs in by_start.items():
            top1 = runs["top1"]
            row |= {start: top1.mean(), f"{start}_low": top1.min(), f"{start}_high": top1.max()}
            row[f"{start}_seeds"] = len(top1)
        gains = by_start["finetuned"]["top1"] - by_start["scratch"]["top1"]
        rows.append({**row, "gain": gains.mean()})
    return pd.DataFrame(rows)


def _data_name(variant: str, title: str) -> str:
    """The name behind the run's start, or the data's title where they are not that set."""
    name = variant.partition("-")[2]
    stated = title.partition(" (")[0]  # without what sets this copy apart
    return name if name not in NAMED_SETS or NAMED_SETS[name].title == stated else title


def _runs(ours: pd.DataFrame, start: str, data: str) -> pd.DataFrame:
    begun = ours["variant"].str.startswith(f"{start}-")
    return ours[begun & ours["data"].eq(data)].set_index("seed")

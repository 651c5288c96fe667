"""The published numbers the project holds its own beside, each with where it comes from.

They lie in `data/paper/`, one number per row: key columns, `quantity`, `value`, `unit`,
`provenance`, `error` (of a digitised number, in its unit), `source`, `note`. A number that was not
found has no row. The unit is also in the quantity's name: `gpu_img_s` (V100, half precision, batch
2,048), `cpu_img_s`, `onnx_img_s` (images per second), `macs_m`, `params_m` (millions), `top1`
(percent). What the paper calls FLOPs are multiply-accumulates, hence `macs_m`.

Pitfall: two statements of the sources are wrong and are put right here. "Boosts the accuracy of
MHSA layers by 20 to 40 %" is the *share* of MHSA layers that works best (Fig. 3; `claims`), and the
"learning rate" of 2.5e-2 is the weight decay (`recipe("imagenet")`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import pandas as pd

from evitlab.resources import data_dir

PROVENANCES = ("printed", "digitised", "secondary", "derived")  # meaning: data/paper/README.md

_FIELDS = ("quantity", "value", "unit", "provenance", "error", "source", "note")
_INTEGERS = ("img_size", "epochs", "stage", "head", "block", "row", "batch_size")


@dataclass(frozen=True)
class PublishedNumber:
    """One published number; `str()` gives it as a table shows it."""

    value: float
    provenance: str  # one of PROVENANCES
    source: str
    unit: str  # "1" for a pure ratio
    error: float | None = None  # reading error, in the number's unit; only where digitised
    note: str = ""

    def __str__(self) -> str:
        error = "" if self.error is None else f" ± {self.error:g}"
        unit = "" if self.unit == "1" else f" {self.unit}"
        provenance = "" if self.provenance == "printed" else f" ({self.provenance})"
        return f"{self.value:,.10g}{error}{unit}{provenance}"


def tables() -> list[str]:
    """Names of the tables `load` knows."""
    return sorted(path.stem for path in (data_dir() / "paper").glob("*.csv"))


def load(table: str) -> pd.DataFrame:
    """A table of published numbers, one number per row.

    Raises:
        ValueError: there is no such table; the closest name is suggested.
    """
    return _read(known("table", table, tables())).copy()


def number(table: str, **where: Any) -> PublishedNumber:
    """The one number whose columns have the given values.

    Example: `number("imagenet", model="EfficientViT-M5", quantity="top1")`.

    Raises:
        ValueError: an unknown table, column or value (the closest one is suggested), or more than
            one number fits.
    """
    rows = load(table)
    for column, wanted in where.items():
        known(f"column of {table!r}", column, list(rows.columns))
        found = rows[rows[column] == wanted]
        if found.empty:
            known(f"{column} of {table!r}{_given(where, column)}", wanted, list(rows[column]))
        rows = found
    if len(rows) > 1:
        keys = [c for c in rows if c not in _FIELDS[1:] and rows[c].nunique(dropna=False) > 1]
        raise ValueError(
            f"{len(rows)} numbers of {table!r} fit {where}; choose by {' or '.join(keys)}"
        )
    row = rows.iloc[0]
    return PublishedNumber(
        value=float(row["value"]),
        provenance=row["provenance"],
        source=row["source"],
        unit=row["unit"],
        error=None if pd.isna(row["error"]) else float(row["error"]),
        note=row["note"],
    )


def wide(table: str, *, show: str = "value") -> pd.DataFrame:
    """A table with one column per quantity, in the file's order; NaN where nothing was found.

    Args:
        show: which field fills the cells: "value", "provenance", "error", "source", "unit", "note".
    """
    rows = load(table)
    known("show", show, list(_FIELDS[1:]))
    keys = [column for column in rows if column not in _FIELDS]
    # Missing keys are real keys here (a model-wide number has no stage), so group without dropping.
    cells = rows.groupby([*keys, "quantity"], dropna=False, sort=False)[show].first()
    return cells.unstack("quantity", sort=False).reset_index().rename_axis(columns=None)


def architecture(computed: pd.DataFrame | None = None) -> pd.DataFrame:
    """Table 1, one row per member: embed_dim, depth, num_heads (a tuple, one entry per stage each),
    and the published paper_params_m and paper_macs_m.

    Args:
        computed: our counts, one row per member: model ("efficientvit_m0" or "EfficientViT-M0"),
            params_m, macs_m. They are joined, with params_diff_m (ours minus the paper's, millions)
            and macs_diff_pct (ours over the paper's, percent).

    Raises:
        ValueError: `computed` lacks a column or holds a model that Table 1 does not have.
    """
    rows = load("arch")
    staged = rows[rows["stage"].notna()]
    frame = pd.DataFrame({"model": rows["model"].unique()})
    for quantity in ("embed_dim", "depth", "num_heads"):
        values = staged[staged["quantity"] == quantity].groupby("model")["value"]
        per_stage = values.agg(lambda stages: tuple(int(stage) for stage in stages))
        frame[quantity] = frame["model"].map(per_stage)
    for quantity in ("params_m", "macs_m"):
        value = rows[rows["quantity"] == quantity].set_index("model")["value"]
        frame[f"paper_{quantity}"] = frame["model"].map(value)
    if computed is None:
        return frame
    for column in ("model", "params_m", "macs_m"):
        known("column of computed", column, list(computed.columns))
    names = {model.lower().replace("-", "_"): model for model in frame["model"]}
    keys = [known("model", m.lower().replace("-", "_"), list(names)) for m in computed["model"]]
    ours = computed.assign(model=[names[key] for key in keys]).set_index("model")
    frame = frame[frame["model"].isin(ours.index)].reset_index(drop=True)
    for quantity in ("params_m", "macs_m"):
        frame[quantity] = frame["model"].map(ours[quantity])
    frame["params_diff_m"] = frame["params_m"] - frame["paper_params_m"]
    frame["macs_diff_pct"] = 100 * (frame["macs_m"] / frame["paper_macs_m"] - 1)
    return frame


def recipe(name: str) -> dict[str, Any]:
    """A published protocol ("imagenet", "finetune", "detection", "speed_test_gpu", ...).

    Every protocol has the keys `provenance` and `source`; None: not found.

    Raises:
        ValueError: there is no such protocol; the closest name is suggested.
    """
    recipes = json.loads((data_dir() / "paper" / "recipe.json").read_text(encoding="utf-8"))
    return recipes[known("recipe", name, list(recipes))]


@lru_cache
def _read(table: str) -> pd.DataFrame:
    frame = pd.read_csv(
        data_dir() / "paper" / f"{table}.csv",
        keep_default_na=False,
        na_values=[""],
        dtype={"unit": str, "source": str, "note": str, "value": float, "error": float},
    )
    frame["note"] = frame["note"].fillna("")
    integers = [column for column in _INTEGERS if column in frame]
    return frame.astype(dict.fromkeys(integers, "Int64"))


def known(what: str, name: Any, choices: list[Any]) -> Any:
    """The name, if it is among the choices; else a ValueError that suggests the closest one."""
    if name in choices:
        return name
    texts = list(dict.fromkeys(str(choice) for choice in choices if not pd.isna(choice)))
    lowered = {text.lower(): text for text in texts}
    close = get_close_matches(str(name).lower(), lowered, n=1, cutoff=0.4)
    suggestion = f"the closest is {lowered[close[0]]!r}" if close else f"known: {', '.join(texts)}"
    raise ValueError(f"{what}: no {name!r}; {suggestion}")


def _given(where: dict[str, Any], column: str) -> str:
    """Which conditions had already been applied when `column` failed."""
    before = list(where.items())[: list(where).index(column)]
    return f" where {', '.join(f'{k}={v!r}' for k, v in before)}" if before else ""

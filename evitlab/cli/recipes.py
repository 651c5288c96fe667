"""`evitlab recipes`."""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
from typing import Any

import pandas as pd

from evitlab.cli.parser import AddCommand
from evitlab.records import write_atomically

_VERDICTS = {True: "yes", False: "NO", None: "–"}
_WIDTH = 38  # characters of a cell; longer ones are wrapped


def add(command: AddCommand) -> None:
    recipes = command(
        "recipes", _recipes, "list the training recipes, or hold one beside the paper's",
        "evitlab recipes imagenet",
    )  # fmt: skip
    recipes.add_argument("name", nargs="?", metavar="NAME", help="default: list them all")
    recipes.add_argument("--json", metavar="FILE", help="also write the table there")


def _recipes(args: argparse.Namespace) -> None:
    from evitlab.training.protocol import PUBLISHED, compare_recipe
    from evitlab.training.recipe import RECIPES

    if args.name is not None and args.name not in RECIPES:
        raise ValueError(f"NAME: expected one of {', '.join(RECIPES)}, got {args.name!r}")
    if args.name in PUBLISHED:
        frame = compare_recipe(args.name)
        print(comparison_table(frame))
        alike, compared = int(frame["same"].eq(True).sum()), int(frame["same"].notna().sum())
        print(f"{alike} of {compared} settings are the published ones")
    else:
        names = [args.name] if args.name else list(RECIPES)
        fields = {name: dataclasses.asdict(RECIPES[name]) for name in names}
        frame = pd.DataFrame(fields, dtype=object).rename_axis("field").reset_index()
        print(frame.map(_text).to_string(index=False))
        print(f"beside the paper's: evitlab recipes {' | '.join(PUBLISHED)}")
    if args.json:
        write_atomically(args.json, frame.to_json(orient="records", indent=1))


def comparison_table(frame: pd.DataFrame) -> str:
    """The rows of `compare_recipe` as text; below a row that differs, why."""
    cells = frame.assign(same=[_VERDICTS[same] for same in frame["same"]]).map(_text)
    head = ["field", "paper", "ours", "same?"]
    shown = [row[:4] for row in cells.itertuples(index=False, name=None)]
    widths = [min(_WIDTH, max(map(len, column))) for column in zip(head, *shown, strict=True)]
    lines = []
    for row, why in zip([head, *shown], ["", *cells["why"]], strict=True):
        wrapped = [textwrap.wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
        for line in range(max(map(len, wrapped))):
            parts = [cell[line] if line < len(cell) else "" for cell in wrapped]
            padded = (part.ljust(width) for part, width in zip(parts, widths, strict=True))
            lines.append("  ".join(padded).rstrip())
        if why and row[3] == _VERDICTS[False]:
            indent = " " * (widths[0] + 2)
            lines += textwrap.wrap(why, 100, initial_indent=indent, subsequent_indent=indent)
    return "\n".join(lines)


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items())
    if isinstance(value, tuple | list):
        return ", ".join(map(_text, value))
    return f"{value:.10g}" if isinstance(value, float) else str(value)

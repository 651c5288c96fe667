"""`evitlab models`."""

from __future__ import annotations

import argparse

import pandas as pd

from evitlab.cli.parser import AddCommand
from evitlab.records import write_atomically


def add(command: AddCommand) -> None:
    models = command(
        "models", _models, "list the models with their size and cost",
        "evitlab models 'efficientvit_m?'",
    )  # fmt: skip
    models.add_argument("pattern", nargs="?", default="*", help="shell wildcards")
    models.add_argument("--json", metavar="FILE", help="also write the table there")


def _models(args: argparse.Namespace) -> None:
    from evitlab.models.cost import count_macs, count_params
    from evitlab.models.zoo import create_model, list_models, native_img_size

    names = list_models(args.pattern)
    if not names:
        raise ValueError(f"pattern: expected one that matches a model, got {args.pattern!r}")
    rows = []
    for name in names:
        side = native_img_size(name)
        model = create_model(name, img_size=side)
        macs = count_macs(model) / 1e6
        params = count_params(model) / 1e6
        rows.append({"model": name, "img_size": side, "params_m": params, "macs_m": macs})
    frame = pd.DataFrame(rows)
    print(frame.to_string(index=False, float_format="{:.2f}".format))
    if args.json:
        write_atomically(args.json, frame.to_json(orient="records", indent=1))

"""`evitlab reproduce`."""

from __future__ import annotations

import argparse

from evitlab.cli.parser import AddCommand


def add(command: AddCommand) -> None:
    reproduce = command(
        "reproduce", _reproduce, "run the notebooks and hold their findings beside the paper's",
        "evitlab reproduce --scale quick --out figures",
    )  # fmt: skip
    reproduce.add_argument("--scale", default="quick", help="smoke or quick (default: %(default)s)")
    reproduce.add_argument("--out", default="figures", metavar="DIR", help="default: %(default)s")
    reproduce.add_argument("--notebooks", nargs="+", metavar="NAME", help="default: all")
    reproduce.add_argument(
        "--save-notebooks",
        action="store_true",
        help="write the executed notebooks back to notebooks/",
    )
    reproduce.add_argument(
        "--budget", type=float, metavar="MINUTES", help="a notebook that takes longer failed"
    )
    reproduce.add_argument("--json", metavar="FILE", help="also write the report there")


def _reproduce(args: argparse.Namespace) -> int:
    from evitlab.report import reproduce

    report = reproduce(
        scale=args.scale,
        out_dir=args.out,
        notebooks=args.notebooks,
        save_notebooks=args.save_notebooks,
        budget_min=args.budget,
    )
    if args.json:
        report.save(args.json)
    return 0 if report.ok else 1

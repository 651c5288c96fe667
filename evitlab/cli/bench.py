"""`evitlab bench`."""

from __future__ import annotations

import argparse

from evitlab.cli.parser import AddCommand


def add(command: AddCommand) -> None:
    bench = command(
        "bench", _bench, "time our models against timm's, and the data path of training",
        "evitlab bench efficientvit_m0 --batch-sizes 1 32 --json speed.json",
    )  # fmt: skip
    bench.add_argument("models", nargs="*", metavar="MODEL", help="default: all six")
    bench.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 32], metavar="N")
    bench.add_argument("--rounds", type=int, default=15, metavar="N", help="default: %(default)s")
    bench.add_argument("--threads", type=int, default=1, metavar="N", help="default: %(default)s")
    bench.add_argument("--json", metavar="FILE", help="also write the record there")


def _bench(args: argparse.Namespace) -> None:
    from evitlab.analysis.comparison import compare_with_timm
    from evitlab.models.zoo import VARIANTS

    record = compare_with_timm(
        args.models or tuple(VARIANTS),
        batch_sizes=args.batch_sizes,
        rounds=args.rounds,
        threads=args.threads,
    )
    print(record.to_frame().to_string(index=False, float_format="{:.2f}".format))
    for row in record.data_path:
        print(
            f"data path of recipe {row.recipe}: {row.data_ms:.1f} of {row.step_ms:.1f} ms a step, "
            f"{row.share_pct:.1f} % ({row.model}, batch {row.batch_size})"
        )
    print(f"ratio: timm's time / ours, median of {record.rounds} rounds, quartiles beside it; "
          f"{record.environment.hardware}")  # fmt: skip
    if args.json:
        record.save(args.json)

"""`evitlab study`."""

from __future__ import annotations

import argparse
from pathlib import Path

from evitlab.cli.parser import AddCommand


def add(command: AddCommand) -> None:
    study = command(
        "study", _study, "carry out the runs of a study, or what is missing of them",
        "evitlab study head-similarity --scale smoke",
    )  # fmt: skip
    study.add_argument("name", nargs="?", metavar="NAME", help="default: list the studies")
    study.add_argument("--scale", default="quick",
                       help="smoke (a few tiny runs), quick (all, small) or lab (what is "
                       "recorded; default: %(default)s)")  # fmt: skip
    study.add_argument("--data", metavar="NAME|PATH",
                       help="named set, image folder, tar or parquet (default: CIFAR-10 if it "
                       "is at hand, else the embedded set)")  # fmt: skip
    study.add_argument("--only", default="*", metavar="PATTERN",
                       help="runs whose name matches, such as 'DeiT-T-1.25x-*'")  # fmt: skip
    study.add_argument("--jobs", type=int, metavar="N",
                       help="runs at once (default: as many as cores, 8 on a GPU)")  # fmt: skip
    study.add_argument("--threads", type=int, default=1, metavar="N",
                       help="CPU threads of each run (default: %(default)s)")  # fmt: skip
    study.add_argument("--device", help="cpu, cuda (default: a GPU if there is one)")
    study.add_argument("--time-limit", type=float, metavar="MINUTES",
                       help="stop then; the same command continues")  # fmt: skip
    study.add_argument("--out", default="runs/studies", metavar="DIR",
                       help="weights, checkpoints and logs (default: %(default)s)")  # fmt: skip
    study.add_argument("--records", metavar="DIR",
                       help="one record a run, in DIR/NAME (default: beside the runs)")  # fmt: skip


def _study(args: argparse.Namespace) -> int:
    from evitlab.studies import STUDIES, run_study

    if args.name is None:
        for study in STUDIES.values():
            print(f"{study.name:20} {len(study.runs('lab')):3} runs  {study.summary}")
        return 0
    report = run_study(
        args.name,
        scale=args.scale,
        out_dir=args.out,
        records_dir=args.records,
        data=args.data,
        device=args.device,
        jobs=args.jobs,
        threads=args.threads,
        time_limit=args.time_limit,
        only=args.only,
        command=args.command_line,
    )
    where = Path(args.records or args.out, args.name, *([] if args.records else [args.scale]))
    print(f"{len(report.records)} records in {where}")
    for run, line in report.failed.items():
        print(f"failed: {run}: {line}")
    if report.waiting:
        print(f"not finished: {', '.join(report.waiting)}; the same command continues")
    return 0 if report.finished else 1

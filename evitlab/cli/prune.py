"""`evitlab prune`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd

from evitlab.cli.parser import AddCommand
from evitlab.cli.source import SOURCE, open_source
from evitlab.records import CRITERIA, Accuracy, PruningRecord


def add(command: AddCommand) -> None:
    prune = command(
        "prune", _prune,
        "cut the channels of Q, K, V and the FFNs that matter least, and train what is left",
        "evitlab prune efficientvit_m0_cifar10 --macs 0.7 --data cifar10 --epochs 2 "
        "--out runs/pruned",
    )  # fmt: skip
    prune.add_argument("source", metavar="MODEL|RUN|FILE|NAME", help=SOURCE)
    prune.add_argument("--macs", type=float, default=0.7, metavar="X",
                       help="share of the multiply-accumulates that may be left "
                       "(default: %(default)s)")  # fmt: skip
    prune.add_argument("--data", metavar="NAME|PATH",
                       help="named set, image folder, tar or parquet (default: CIFAR-10 if it "
                       "is at hand, else the embedded set)")  # fmt: skip
    prune.add_argument("--criterion", default="taylor", metavar="NAME",
                       help=f"{', '.join(CRITERIA)} (default: %(default)s)")  # fmt: skip
    prune.add_argument("--steps", type=int, default=5, metavar="N",
                       help="cuts, with the scores refreshed before each "
                       "(default: %(default)s)")  # fmt: skip
    prune.add_argument("--images", type=int, default=512, metavar="N",
                       help="that the scores of a step are taken from "
                       "(default: %(default)s)")  # fmt: skip
    prune.add_argument("--epochs", type=int, default=0, metavar="N",
                       help="of training afterwards (default: none)")  # fmt: skip
    prune.add_argument("--recipe", default="cifar", metavar="NAME",
                       help="of that training (default: %(default)s)")  # fmt: skip
    prune.add_argument("--lr", type=float, default=5e-4, metavar="X",
                       help="its peak learning rate: lower than what the model was trained with, "
                       "or that is undone (default: %(default)s)")  # fmt: skip
    prune.add_argument("--batch-size", type=int, metavar="N", help="its images per step")
    prune.add_argument("--limit", type=int, metavar="N", help="training images at most")
    prune.add_argument("--val-limit", type=int, metavar="N", help="validation images at most")
    prune.add_argument("--weights", metavar="PATH|NAME|timm", help="of a MODEL (default: random)")
    prune.add_argument("--num-classes", type=int, metavar="N", help="of a MODEL (default: 1000)")
    prune.add_argument("--img-size", type=int, metavar="N", help="of a MODEL (default: its own)")
    prune.add_argument("--seed", type=int, default=0, metavar="N")
    prune.add_argument("--device", help="cpu, cuda, mps (default: a GPU if there is one)")
    prune.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    prune.add_argument("--scale", help="smoke, quick, lab or paper, noted in the record")
    prune.add_argument("--out", required=True, metavar="DIR",
                       help="the same command continues what is there")  # fmt: skip
    prune.add_argument("--json", metavar="FILE", help="also write the record there")


def _prune(args: argparse.Namespace) -> None:
    from evitlab.training.folder_lock import held

    with held(args.out, command=args.command_line):
        _prune_there(args)


def _prune_there(args: argparse.Namespace) -> None:
    from evitlab.analysis.conditions import cpu_threads
    from evitlab.analysis.pruning import own_img_size
    from evitlab.analysis.recovery import prune_and_recover
    from evitlab.datasets import default_dataset_name, open_dataset

    recipe = _recipe(args)
    model, trained = open_source(args)
    if not trained:
        print(f"{args.source}: random weights; --weights loads trained ones")
    size: Any = getattr(getattr(model, "config", None), "img_size", None) or own_img_size(model)
    name = args.data or default_dataset_name()
    train_data = open_dataset(name, "train", img_size=size, limit=args.limit)
    val_data = open_dataset(name, "val", img_size=size, limit=args.val_limit)
    with cpu_threads(args.threads):
        record = prune_and_recover(
            model,
            train_data,
            val_data,
            macs=args.macs,
            out_dir=args.out,
            recipe=recipe,
            criterion=args.criterion,
            steps=args.steps,
            images=args.images,
            seed=args.seed,
            device=args.device,
            command=args.command_line,
            scale=args.scale,
        )
    print(widths_table(record).to_string())
    print(
        f"{record.model}: {1e-6 * record.macs_before:.1f} -> {1e-6 * record.macs_after:.1f} "
        f"million MACs ({record.macs_after / record.macs_before:.1%}), "
        f"{1e-6 * record.params_before:.2f} -> {1e-6 * record.params_after:.2f} million parameters"
    )
    steps = (("before", record.before), ("pruned", record.pruned), ("recovered", record.recovered))
    said = [f"{name} {_top1(accuracy)}" for name, accuracy in steps if accuracy is not None]
    print(f"top-1: {', '.join(said)}; {val_data.title}, {len(val_data)} images; see {args.out}")
    _draw(record, Path(args.out))
    if args.json:
        record.save(args.json)


def _recipe(args: argparse.Namespace) -> Any:
    """The training afterwards; None where none is asked for."""
    from evitlab.training.recipe import RECIPES

    if args.recipe not in RECIPES:
        raise ValueError(f"--recipe: expected one of {', '.join(RECIPES)}, got {args.recipe!r}")
    if args.epochs < 0:
        raise ValueError(f"--epochs: expected 0 or more, got {args.epochs}")
    if args.epochs == 0:
        return None
    changes: dict[str, Any] = {
        "epochs": args.epochs, "cooldown_epochs": 0, "seed": args.seed, "validate_every": 1,
        "warmup_epochs": min(0.25, RECIPES[args.recipe].warmup_epochs),
        "lr": args.lr, "lr_batch": None,
    }  # fmt: skip
    if args.batch_size is not None:
        changes["batch_size"] = args.batch_size
    return dataclasses.replace(RECIPES[args.recipe], **changes)


def _top1(accuracy: Accuracy) -> str:
    return f"{accuracy.top1:.2f} %"


def widths_table(record: PruningRecord) -> pd.DataFrame:
    """Channels left of those before, one row per block, one column per component.

    Where a block has several layers of a kind, such as EfficientViT's two FFNs, they are summed.
    """
    frame = record.to_frame().groupby(["block", "component"], sort=False)[["before", "after"]].sum()
    cells = frame["after"].astype(str) + " of " + frame["before"].astype(str)
    order = [name for name in ("qk", "v", "ffn") if name in frame.index.get_level_values(1)]
    return cells.unstack()[order].fillna("")


def _draw(record: PruningRecord, folder: Path) -> None:
    from evitlab.figures import fig5_channels, save_figure

    save_figure(fig5_channels([record]), "fig5_channels", record.to_frame(), out_dir=folder)
    print(f"drawn: {folder / 'fig5_channels.png'}")

"""`evitlab …`, the same as `python -m evitlab …`."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

USER_MISTAKES = (ValueError, OSError, ArithmeticError)  # one line and exit code 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 a finding failed, 2 a user's mistake."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    args = parser.parse_args(argv)
    args.command_line = shlex.join(["evitlab", *_without_machine_paths(argv)])
    try:
        return args.run(args) or 0
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it can", file=sys.stderr)
        return 130
    except USER_MISTAKES as error:
        if args.debug:
            raise
        print(f"evitlab: error: {error}", file=sys.stderr)
        return 2


def _without_machine_paths(argv: list[str]) -> list[str]:
    """Paths cut to their last part: a record names no folder of one machine."""
    return [Path(word).name if Path(word).is_absolute() else word for word in argv]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evitlab",
        description="Rebuild, measure and extend the findings of EfficientViT (CVPR 2023).",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS,
                         help="show the traceback of an error")  # fmt: skip
        return sub

    train = command(
        "train", _train, "train a model on a data set, or continue a run that was stopped",
        "evitlab train efficientvit_m0 --data cifar10 --recipe cifar --out runs/m0",
    )  # fmt: skip
    train.add_argument("model", metavar="MODEL", help="a name of `evitlab models`")
    train.add_argument("--data", default=None, metavar="NAME|PATH",
                       help="named set, image folder, tar or parquet (default: CIFAR-10 if it "
                       "is at hand, else the embedded set)")  # fmt: skip
    train.add_argument("--recipe", default="cifar", metavar="NAME", help="default: %(default)s")
    train.add_argument("--img-size", type=int, metavar="N", help="default: the data set's own")
    train.add_argument("--epochs", type=int, metavar="N")
    train.add_argument("--limit", type=int, metavar="N", help="training images at most")
    train.add_argument("--batch-size", type=int, metavar="N")
    train.add_argument("--lr", type=float, metavar="X", help="peak learning rate")
    train.add_argument("--seed", type=int, metavar="N")
    train.add_argument("--weights", metavar="PATH|NAME|timm", help="weights to start from")
    train.add_argument("--device", help="cpu, cuda, mps (default: a GPU if there is one)")
    train.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    train.add_argument("--compile", action="store_true", default=None, help="torch.compile")
    train.add_argument("--skip-corrupt", action="store_true", help="skip unreadable images")
    train.add_argument("--no-resume", action="store_true", help="start over")
    train.add_argument("--out", required=True, metavar="DIR")
    train.add_argument("--json", metavar="FILE", help="also write the record there")
    return parser


def _train(args: argparse.Namespace) -> None:
    import torch

    from evitlab.datasets import default_dataset_name, open_dataset
    from evitlab.models.zoo import create_model, small_image_name
    from evitlab.training.loop import train
    from evitlab.training.recipe import RECIPES

    if args.recipe not in RECIPES:
        raise ValueError(f"--recipe: expected one of {', '.join(RECIPES)}, got {args.recipe!r}")
    if args.threads:
        torch.set_num_threads(args.threads)
    changes = {
        name: getattr(args, name)
        for name in ("epochs", "batch_size", "seed", "compile")
        if getattr(args, name) is not None
    }
    if args.lr is not None:
        changes |= {"lr": args.lr, "lr_batch": None}
    recipe = dataclasses.replace(RECIPES[args.recipe], **changes)
    name = args.data or default_dataset_name()
    on_error = "skip" if args.skip_corrupt else "raise"
    train_data = open_dataset(
        name, "train", img_size=args.img_size, limit=args.limit, on_error=on_error
    )
    val_data = open_dataset(name, "val", img_size=args.img_size, on_error=on_error)
    architecture = small_image_name(args.model, train_data.img_size)
    print(
        f"{architecture} on {train_data.title}: {len(train_data)} training and {len(val_data)} "
        f"validation images, {train_data.num_classes} classes, "
        f"{train_data.img_size[0]}x{train_data.img_size[1]} pixels"
    )
    torch.manual_seed(recipe.seed)
    model = create_model(
        architecture,
        img_size=train_data.img_size,
        num_classes=train_data.num_classes,
        weights=args.weights,
    )
    record = train(
        model,
        train_data,
        val_data,
        recipe,
        out_dir=args.out,
        resume=not args.no_resume,
        device=args.device,
        command=args.command_line,
    )
    print(
        f"finished: top-1 {record.final.top1:.2f} %, top-5 {record.final.top5:.2f} % on "
        f"{record.final.n} images after {len(record.history)} epochs; see {args.out}"
    )

"""`evitlab train`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evitlab.cli.data import (
    check_training_classes,
    on_error,
    open_training,
    skipped,
    training_size,
)
from evitlab.cli.parser import AddCommand
from evitlab.records import TrainingRecord

if TYPE_CHECKING:
    from evitlab.datasets import AnyDataset
    from evitlab.training.recipe import Recipe

_RECIPE_OPTIONS = (
    "epochs", "batch_size", "accumulate", "seed", "compile", "freeze", "layer_decay",
    "distillation", "distillation_alpha", "distillation_tau",
)  # fmt: skip


def add(command: AddCommand) -> None:
    train = command(
        "train", _train, "train a model on a data set, or continue a run that was stopped",
        "evitlab train efficientvit_m0 --data cifar10 --recipe cifar --out runs/m0\n"
        "  evitlab train efficientvit_m0 --data photos/ --recipe finetune --out runs/photos",
    )  # fmt: skip
    train.add_argument("model", metavar="MODEL", help="a name of `evitlab models`")
    train.add_argument("--data", default=None, metavar="NAME|PATH",
                       help="named set, image folder, tar or parquet (default: CIFAR-10 if it "
                       "is at hand, else the embedded set)")  # fmt: skip
    train.add_argument("--recipe", default="cifar", metavar="NAME", help="default: %(default)s")
    train.add_argument("--img-size", type=int, metavar="N",
                       help="default: the weights' own, else the images' where all are alike and "
                       "up to 224, else 224")  # fmt: skip
    train.add_argument("--epochs", type=int, metavar="N", help="of the whole run")
    train.add_argument("--limit", type=int, metavar="N", help="training images at most")
    train.add_argument("--batch-size", type=int, metavar="N",
                       help="images per step, over all processes and parts (default: the "
                       "recipe's, less where an epoch would have fewer than 8 steps)")  # fmt: skip
    train.add_argument("--accumulate", type=int, metavar="N",
                       help="work a batch off in N parts: less memory; BatchNorm then sees a "
                       "part at a time")  # fmt: skip
    train.add_argument("--lr", type=float, metavar="X", help="peak learning rate")
    train.add_argument("--seed", type=int, metavar="N", help="of weights, order and augmentation")
    train.add_argument("--weights", metavar="PATH|NAME|timm",
                       help="weights to start from: a run's folder, a file, a name in "
                       "data/checkpoints or timm; those of a run of ours decide the variant of "
                       "MODEL (its patch size, what it was pruned to), and tables of positions "
                       "are resized to the images")  # fmt: skip
    train.add_argument("--freeze", choices=("none", "backbone"),
                       help="backbone: train the classifier alone")  # fmt: skip
    train.add_argument("--layer-decay", type=float, metavar="X",
                       help="each layer learns X times as fast as the one above it")  # fmt: skip
    train.add_argument("--drop-path", type=float, metavar="X",
                       help="stochastic depth: rate of the last block, 0 at the first")  # fmt: skip
    train.add_argument("--teacher", metavar="NAME|PATH",
                       help="distil this model of the same classes: a run's folder, a file, a "
                       "name in data/checkpoints, or a model of timm with the hub's "
                       "weights")  # fmt: skip
    train.add_argument("--distillation", choices=("soft", "hard"),
                       help="what to learn from the teacher: its probabilities, or its top-1 as a "
                       "label (default with --teacher: hard)")  # fmt: skip
    train.add_argument("--distillation-alpha", type=float, metavar="X",
                       help="the teacher's share of the loss")  # fmt: skip
    train.add_argument("--distillation-tau", type=float, metavar="X",
                       help="temperature of soft distillation")  # fmt: skip
    train.add_argument("--device", help="cpu, cuda, mps (default: a GPU if there is one)")
    train.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    train.add_argument("--compile", action="store_true", default=None, help="torch.compile")
    train.add_argument("--skip-corrupt", action="store_true", help="skip unreadable images")
    train.add_argument("--scale", help="smoke, quick, lab or paper, noted in the record")
    train.add_argument("--no-resume", action="store_true", help="start over")
    train.add_argument("--out", required=True, metavar="DIR")
    train.add_argument("--json", metavar="FILE", help="also write the record there")


def _train(args: argparse.Namespace) -> None:
    from evitlab.training.folder_lock import held

    with held(args.out, command=args.command_line):
        _train_there(args)


def _train_there(args: argparse.Namespace) -> None:
    import torch

    from evitlab.analysis.conditions import cpu_threads
    from evitlab.datasets import default_dataset_name, open_dataset
    from evitlab.models.starting import starting_model
    from evitlab.models.weights import load_weights
    from evitlab.models.zoo import create_model, list_models, model_name
    from evitlab.training.classifier import train
    from evitlab.training.identity import weights_identity
    from evitlab.training.launch import launch_rank
    from evitlab.training.recipe import RECIPES

    if args.recipe not in RECIPES:
        raise ValueError(f"--recipe: expected one of {', '.join(RECIPES)}, got {args.recipe!r}")
    if args.model not in list_models():
        create_model(args.model)  # its error names the closest; now, not after decoding the data
    if args.weights == "timm":  # fetched now: nor does it wait to say that the hub is out of reach
        load_weights(create_model(args.model), "timm", strict=False)
    changes = {
        name: getattr(args, name) for name in _RECIPE_OPTIONS if getattr(args, name) is not None
    }
    teacher = _teacher(args, changes)
    if args.epochs is not None:
        changes["cooldown_epochs"] = 0  # --epochs is the length of the whole run
    if args.lr is not None:
        changes |= {"lr": args.lr, "lr_batch": None}
    recipe = dataclasses.replace(RECIPES[args.recipe], **changes)
    name = args.data or default_dataset_name()
    size, of_size = training_size(
        name, args.model, img_size=args.img_size, weights=args.weights
    )
    train_data, of_files = open_training(name, size, args)
    # The training images decide, also where the validation files are of another size.
    val_data = open_dataset(name, "val", img_size=train_data.img_size, on_error=on_error(args))
    lacking = check_training_classes(train_data, val_data, limited=args.limit is not None)
    recipe, of_batch = _fitted(recipe, len(train_data), args)
    with cpu_threads(args.threads), torch.random.fork_rng([]):
        torch.manual_seed(recipe.seed)
        model, said = starting_model(
            args.model,
            img_size=train_data.img_size,
            class_names=train_data.class_names,
            weights=args.weights,
            distilled=teacher is not None,
            drop_path_rate=args.drop_path,
        )
        print(
            f"{model_name(model)} on {train_data.title}: {len(train_data)} training images"
            f"{skipped(train_data)}, {len(val_data)} validation images{skipped(val_data)}, "
            f"{train_data.num_classes} classes, "
            f"{train_data.img_size[0]}x{train_data.img_size[1]} pixels"
        )
        if teacher is not None:
            said += (_taught(model, teacher, recipe.distillation),)
        for line in filter(None, (of_size, of_files, of_batch, *lacking, *said)):
            print(line)
        record = train(
            model,
            train_data,
            val_data,
            recipe,
            out_dir=args.out,
            resume=not args.no_resume,
            device=args.device,
            command=args.command_line,
            scale=args.scale,
            teacher=teacher,
            weights=weights_identity(args.weights),
        )
    if launch_rank() > 0:  # files are written by one process
        return
    _curves(record, Path(args.out))
    _results(record, model, val_data, Path(args.out))
    print(
        f"finished: top-1 {record.final.top1:.2f} %, top-5 {record.final.top5:.2f} % on "
        f"{record.final.n} images after {len(record.history)} epochs; see "
        f"{Path(args.out) / 'results.png'}"
    )
    if args.json:
        record.save(args.json)


def _teacher(args: argparse.Namespace, changes: dict[str, Any]) -> Any:
    """The teacher that was asked for, which the recipe's `changes` then name; None without one."""
    from evitlab.analysis.subjects import is_named, open_model

    if args.teacher is None:
        for option in ("distillation", "distillation_alpha", "distillation_tau"):
            if option in changes:
                raise ValueError(f"--{option.replace('_', '-')}: expected a --teacher beside it")
        return None
    changes.setdefault("distillation", "hard")
    try:
        weights = "hub" if is_named(args.teacher) else None
        return open_model(args.teacher, weights=weights)[0]
    except FileNotFoundError as error:
        reason = str(error).partition(";")[0]
        raise FileNotFoundError(
            f"--teacher: {reason}; give the folder of a run, a file, or a name in data/checkpoints"
        ) from error
    except ValueError as error:
        raise ValueError(f"--teacher: {str(error).removeprefix('model: ')}") from error


def _taught(model: Any, teacher: Any, kind: str) -> str:
    """How the teacher is used, in a line."""
    from evitlab.models.zoo import model_name, stated_img_size

    size = stated_img_size(teacher)
    at = f" at {size[0]}x{size[1]} pixels" if size else ""
    what = "probabilities" if kind == "soft" else "top-1"
    two = getattr(getattr(model, "config", None), "distilled", False)
    how = "by a second head, averaged with the first" if two else "by the one head of this model"
    return f"teacher: {model_name(teacher)}{at}; its {what} learned {how}"


def _curves(record: TrainingRecord, out: Path) -> None:
    from evitlab.figures import save_figure, training_curves

    save_figure(training_curves([record]), "training_curves", record.to_frame(), out_dir=out)


def _fitted(recipe: Recipe, images: int, args: argparse.Namespace) -> tuple[Recipe, str]:
    """The recipe for so many images, and in words what was changed; nothing that was asked for."""
    from evitlab.training.recipe import fit_batch

    if args.batch_size is not None or args.accumulate is not None:
        return recipe, ""
    fitted = fit_batch(recipe, images)
    if args.lr is not None:
        fitted = dataclasses.replace(fitted, lr=args.lr)
    if fitted == recipe:
        return recipe, ""
    return fitted, (
        f"few images: batches of {fitted.batch_size} instead of {recipe.batch_size}, peak rate "
        f"{fitted.peak_lr:.2g} instead of {recipe.peak_lr:.2g} (--batch-size and --lr change them)"
    )


def _results(record: TrainingRecord, model: Any, val_data: AnyDataset, out: Path) -> None:
    """The results page of a finished run; what a finished run has already is not measured again."""
    from evitlab.figures import results_page
    from evitlab.figures.style import save_picture
    from evitlab.records import ClassificationReport
    from evitlab.training.per_class import classification_report

    file = out / "results.json"
    if file.exists():
        report = ClassificationReport.load(file)
    else:
        # As many at a time as training took, which memory holds.
        size = record.final.environment.batch_size or 256
        report = classification_report(model, val_data, batch_size=size)
        report.save(file)
    save_picture(results_page(record, report), out / "results")

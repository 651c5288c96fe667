"""`evitlab detect train`, `evaluate` and `convert`; `predict` is in detect_predict."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evitlab.cli import detect_predict
from evitlab.cli.data import on_error
from evitlab.cli.detect_predict import counted, write_json
from evitlab.cli.parser import AddCommand, commands_of

if TYPE_CHECKING:
    from evitlab.datasets import DetectionDataset
    from evitlab.records.detection import BoxAP
    from evitlab.training.recipe import Recipe

_DATA = (
    "scenes (drawn, no file needed), coco128, a folder with COCO annotations, a COCO JSON, or a "
    "Pascal VOC folder (default: COCO128 if it is at hand, else scenes)"
)


def add(command: AddCommand) -> None:
    detect = command(
        "detect", _no_command, "train and use object detectors: RetinaNet on any backbone",
        "evitlab detect train efficientvit_m0 --data coco128 --img-size 320 --out runs/boxes\n"
        "  evitlab detect predict runs/boxes photos/ --out found",
    )  # fmt: skip
    own = commands_of(detect)
    _add_train(own)
    _add_evaluate(own)
    detect_predict.add(own)
    _add_convert(own)


def _no_command(args: argparse.Namespace) -> None:
    raise AssertionError("the parser asks for one of the commands")


def _add_train(command: AddCommand) -> None:
    train = command(
        "train", _train, "train a detector on images with boxes, or continue a run",
        "evitlab detect train efficientvit_m4 --data coco128 --weights timm --out runs/boxes\n"
        "  evitlab detect train efficientvit_m0 --data coco128 --overfit 8 --img-size 256 "
        "--channels 64 --out runs/overfit",
    )  # fmt: skip
    train.add_argument("backbone", metavar="BACKBONE",
                       help="an EfficientViT of `evitlab models`, or a model of timm that gives "
                       "features")  # fmt: skip
    _add_data(train)
    train.add_argument("--val-data", metavar="NAME|PATH",
                       help="what to validate on (default: the val split of --data)")
    train.add_argument("--val-images", metavar="PATH", help="its images, as --images")
    train.add_argument("--overfit", type=int, metavar="N",
                       help="learn the first N images with boxes, and validate on the same: do the "
                       "parts work together?")  # fmt: skip
    train.add_argument("--recipe", metavar="NAME",
                       help="detection or overfit (default: overfit with --overfit, else "
                       "detection)")  # fmt: skip
    train.add_argument("--img-size", type=int, nargs="+", metavar="N",
                       help="pixels of the short side, and of the long one at most (default: 800 "
                       "1333; of one number: 5/3 of it)")  # fmt: skip
    train.add_argument("--channels", type=int, default=256, metavar="N",
                       help="of neck and head (default: %(default)s)")
    train.add_argument("--weights", metavar="PATH|NAME|timm",
                       help="of the backbone (default: random)")
    train.add_argument("--epochs", type=int, metavar="N",
                       help="of the whole run; the rate's steps move along")
    train.add_argument("--batch-size", type=int, metavar="N", help="images per step")
    train.add_argument("--accumulate", type=int, metavar="N",
                       help="parts that a step's images are worked off in: less memory")
    train.add_argument("--lr", type=float, metavar="X", help="peak learning rate")
    train.add_argument("--validate-every", type=int, metavar="N", help="epochs")
    train.add_argument("--limit", type=int, metavar="N", help="training images at most")
    train.add_argument("--val-limit", type=int, metavar="N", help="validation images at most")
    train.add_argument("--seed", type=int, metavar="N")
    train.add_argument("--device", help="cpu, cuda (default: a GPU if there is one)")
    train.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    train.add_argument("--skip-corrupt", action="store_true",
                       help="leave out images that are missing or cannot be read")
    train.add_argument("--scale", help="smoke, quick, lab or paper, noted in the record")
    train.add_argument("--no-resume", action="store_true", help="start over")
    train.add_argument("--out", required=True, metavar="DIR",
                       help="the same command continues what is there")
    train.add_argument("--json", metavar="FILE", help="also write the record there")


def _add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", metavar="NAME|PATH", help=_DATA)
    command.add_argument("--images", metavar="PATH",
                         help="folder or tar of the images, where they do not lie beside the "
                         "annotations")  # fmt: skip


def _add_evaluate(command: AddCommand) -> None:
    evaluate = command(
        "evaluate", _evaluate, "measure the box AP of a detector, or of results in a file",
        "evitlab detect evaluate runs/boxes --data coco128\n"
        "  evitlab detect evaluate --annotations instances_val2017.json --results found.json",
    )  # fmt: skip
    evaluate.add_argument("weights", nargs="?", metavar="RUN|FILE",
                          help="a run's folder or a .safetensors file")
    _add_data(evaluate)
    evaluate.add_argument("--split", help="train, val, test; all (default: val)")
    evaluate.add_argument("--limit", type=int, metavar="N", help="images at most")
    evaluate.add_argument("--annotations", metavar="FILE",
                          help="instead of RUN and --data: measure the results in --results")
    evaluate.add_argument("--results", metavar="FILE",
                          help="write what was found there, as COCO results; with --annotations, "
                          "read it from there")  # fmt: skip
    evaluate.add_argument("--skip-corrupt", action="store_true",
                          help="leave out images that are missing or cannot be read")
    evaluate.add_argument("--batch-size", type=int, metavar="N",
                          help="images per forward pass (default: 1)")
    evaluate.add_argument("--device", help="cpu, cuda (default: cpu)")
    evaluate.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    evaluate.add_argument("--json", metavar="FILE", help="also write the record there")


def _add_convert(command: AddCommand) -> None:
    convert = command(
        "convert", _convert, "write the annotations of a Pascal VOC folder as COCO JSON",
        "evitlab detect convert VOC2012 instances_train.json --split train",
    )  # fmt: skip
    convert.add_argument("folder", metavar="VOC_FOLDER", help="with Annotations/ and JPEGImages/")
    convert.add_argument("file", metavar="OUT.json")
    convert.add_argument("--split", default="train",
                         help="a list of ImageSets/Main; all (default: %(default)s)")


def _train(args: argparse.Namespace) -> None:
    from evitlab.training.folder_lock import held

    with held(args.out, command=args.command_line):
        _train_there(args)


def _train_there(args: argparse.Namespace) -> None:
    import torch

    from evitlab.analysis.conditions import cpu_threads
    from evitlab.figures import detection_curves, save_figure
    from evitlab.models.detector import create_detector
    from evitlab.training.detection import train_detector
    from evitlab.training.identity import weights_identity
    from evitlab.training.launch import launch_rank

    size = _img_size(args.img_size)
    recipe = _recipe(args)
    train_data, val_data = _training_sets(args)
    recipe, fitted = _fitted(recipe, len(train_data))
    with cpu_threads(args.threads), torch.random.fork_rng([]):
        torch.manual_seed(recipe.seed)
        model = create_detector(
            args.backbone,
            num_classes=train_data.num_classes,
            img_size=size,
            channels=args.channels,
            weights=args.weights,
            class_names=train_data.class_names,
            category_ids=train_data.category_ids,
        )
        short, long = model.config.img_size
        print(
            f"RetinaNet on {args.backbone}, {train_data.title}: {len(train_data)} training images "
            f"with {train_data.num_boxes} boxes of {train_data.num_classes} classes, "
            f"{'the same' if val_data is train_data else len(val_data)} to validate; short side "
            f"{short} pixels, long side {long} at most"
        )
        for line in dict.fromkeys((*train_data.notes, *val_data.notes, *fitted)):
            print(line)
        record = train_detector(
            model,
            train_data,
            val_data,
            recipe,
            out_dir=args.out,
            resume=not args.no_resume,
            device=args.device,
            command=args.command_line,
            scale=args.scale,
            weights=weights_identity(args.weights),
        )
    if launch_rank() > 0:  # files are written by one process
        return
    curves = detection_curves([record])
    save_figure(curves, "training_curves", record.to_frame(), out_dir=args.out)
    print(
        f"finished: AP {record.final.ap:.1f} %, AP50 {record.final.ap50:.1f} % on "
        f"{record.validated_on} after {len(record.history)} epochs; see {args.out}"
    )
    if args.json:
        record.save(args.json)


def _img_size(given: Sequence[int] | None) -> Any:
    if given is None:
        return 800, 1333
    if len(given) > 2:
        raise ValueError(
            f"--img-size: expected the short side, and the long one at most, got {len(given)} "
            "numbers"
        )
    return given[0] if len(given) == 1 else tuple(given)


def _recipe(args: argparse.Namespace) -> Recipe:
    from evitlab.training.recipe import RECIPES

    name = args.recipe or ("detection" if args.overfit is None else "overfit")
    if name not in RECIPES:
        raise ValueError(f"--recipe: expected one of {', '.join(RECIPES)}, got {name!r}")
    recipe = RECIPES[name]
    options = ("epochs", "batch_size", "accumulate", "lr", "validate_every", "seed")
    changes = {key: getattr(args, key) for key in options if getattr(args, key) is not None}
    epochs = changes.get("epochs", recipe.epochs)
    if recipe.lr_steps and epochs != recipe.epochs:
        steps = (round(step * epochs / recipe.epochs) for step in recipe.lr_steps)
        changes["lr_steps"] = tuple(sorted({step for step in steps if step >= 1}))
    return dataclasses.replace(recipe, **changes)


def _fitted(recipe: Recipe, images: int) -> tuple[Recipe, list[str]]:
    """The recipe with a warm-up that leaves most of a short run, and in words what was changed."""
    steps = recipe.epochs * max(1, images // recipe.batch_size)
    most = max(1, steps // 10)
    if recipe.warmup_steps <= most:
        return recipe, []
    said = f"a run of {steps} steps: {most} of warm-up instead of {recipe.warmup_steps}"
    return dataclasses.replace(recipe, warmup_steps=most), [said]


def _training_sets(args: argparse.Namespace) -> tuple[DetectionDataset, DetectionDataset]:
    """What to learn from, and what to validate on, which may be the same."""
    name = _data_name(args)
    for option in ("val_data", "val_limit", "val_images"):
        if args.overfit is not None and getattr(args, option) is not None:
            raise ValueError(
                f"--{option.replace('_', '-')}: expected none beside --overfit, which validates on "
                "what it learns"
            )
    if args.val_images is not None and args.val_data is None:
        raise ValueError("--val-images: expected a --val-data beside it")
    train_data = _open(args, name, "train", images=args.images, limit=args.limit)
    if args.overfit is not None:
        with_boxes = [i for i, crowd in enumerate(train_data.crowd) if not bool(crowd.all())]
        # BatchNorm learns from no fewer than two.
        if not 2 <= args.overfit <= len(with_boxes):
            raise ValueError(
                f"--overfit: expected 2 to {len(with_boxes)}, as many images of "
                f"{train_data.title} have boxes, got {args.overfit}"
            )
        train_data = train_data.take(with_boxes[: args.overfit])
        return train_data, train_data
    if args.val_data is not None:
        val_images = args.val_images
        return train_data, _open(
            args, args.val_data, "val", images=val_images, limit=args.val_limit
        )
    if Path(name).expanduser().is_file():
        print(f"{name} holds one set: validated on what is learned (--val-data names another)")
    return train_data, _open(args, name, "val", images=args.images, limit=args.val_limit)


def _data_name(args: argparse.Namespace) -> str:
    from evitlab.datasets import default_detection_name

    return args.data or default_detection_name()


def _open(
    args: argparse.Namespace, name: str, split: str, *, images: str | None, limit: int | None
) -> DetectionDataset:
    from evitlab.datasets import open_detection

    return open_detection(name, split, images=images, limit=limit, on_error=on_error(args))


def _evaluate(args: argparse.Namespace) -> None:
    from evitlab.analysis.conditions import cpu_threads
    from evitlab.datasets import check_boxes
    from evitlab.models.detector import load_detector
    from evitlab.records import check_writable, environment_card
    from evitlab.training.box_ap import box_ap
    from evitlab.training.detecting import ap_of, coco_results, predict_boxes

    if args.annotations is not None:
        for option in (
            "weights", "data", "images", "split", "limit", "skip_corrupt", "batch_size", "device",
            "threads",
        ):  # fmt: skip
            if getattr(args, option) not in (None, False):
                name = "RUN" if option == "weights" else f"--{option.replace('_', '-')}"
                raise ValueError(f"{name}: expected none beside --annotations")
        if args.results is None:
            raise ValueError("--results: expected the file of the results to measure")
        found = box_ap(args.annotations, args.results)
        where = Path(args.annotations).name
    else:
        if args.weights is None:
            raise ValueError("RUN: expected a detector's weights, or --annotations and --results")
        if args.results:
            check_writable(args.results)
        split = "val" if args.split is None else args.split
        batch_size = 1 if args.batch_size is None else args.batch_size
        device = args.device or "cpu"
        model = load_detector(args.weights)
        data = _open(args, _data_name(args), split, images=args.images, limit=args.limit)
        for note in data.notes:
            print(note)
        check_boxes(data)
        with cpu_threads(args.threads):
            detections = predict_boxes(model, data, batch_size=batch_size, device=device)
            card = environment_card(device=device, batch_size=batch_size, dataset=data.title)
        found = ap_of(detections, data, environment=card)
        if args.results:
            write_json(args.results, coco_results(detections, data.category_ids))
        where = f"{data.title} ({data.split})"
    print(f"{where}: {counted(found.images, 'image')}, {counted(found.boxes, 'box')}")
    print(ap_table(found))
    if args.json:
        found.save(args.json)


def ap_table(found: BoxAP) -> str:
    """COCO's twelve values in two rows; a dash where the data have nothing of a size."""
    sizes = ("small", "medium", "large")
    rows = (
        ("AP %", ("IoU 0.50-0.95", "IoU 0.50", "IoU 0.75", *sizes),
         (found.ap, found.ap50, found.ap75, found.ap_small, found.ap_medium, found.ap_large)),
        ("AR %", ("1 box", "10 boxes", "100 boxes", *sizes),
         (found.ar1, found.ar10, found.ar100, found.ar_small, found.ar_medium, found.ar_large)),
    )  # fmt: skip
    lines = []
    for name, heads, values in rows:
        cells = ["-" if value is None else f"{value:.1f}" for value in values]
        lines.append("      " + "".join(f"{head:>14}" for head in heads))
        lines.append(f"  {name}" + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)


def _convert(args: argparse.Namespace) -> None:
    from evitlab.datasets.voc import voc_to_coco

    found = voc_to_coco(args.folder, args.split)
    write_json(args.file, found)
    crowds = sum(entry["iscrowd"] for entry in found["annotations"])
    hidden = f" and {counted(crowds, 'difficult one')}, as crowds," if crowds else ""
    print(
        f"{args.split}: {counted(len(found['images']), 'image')}, "
        f"{counted(len(found['annotations']) - crowds, 'box')}"
        f"{hidden} of "
        f"{counted(len(found['categories']), 'class')}; written to {args.file}"
    )
    print(f"the images: --images {Path(args.folder) / 'JPEGImages'}")

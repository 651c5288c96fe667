"""`evitlab evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evitlab.cli.data import on_error, skipped
from evitlab.cli.parser import AddCommand

if TYPE_CHECKING:
    from evitlab.datasets import AnyDataset
    from evitlab.records import ClassificationReport

_PRINTED = 20  # classes
_PAIRS = 5


def add(command: AddCommand) -> None:
    evaluate = command(
        "evaluate", _evaluate, "measure the accuracy of trained weights, or what they predict",
        "evitlab evaluate runs/m0 --data cifar10\n"
        "  evitlab evaluate runs/photos --data new_photos/ --split all --per-class\n"
        "  evitlab evaluate runs/photos --data new_photos/ --predictions predictions.csv",
    )  # fmt: skip
    evaluate.add_argument(
        "weights",
        metavar="RUN|FILE|NAME",
        help="a run's folder, a .safetensors file, or a name in data/checkpoints",
    )
    evaluate.add_argument("--data", default=None, metavar="NAME|PATH",
                          help="as in `train`; for --predictions also a folder of images without "
                          "class folders")  # fmt: skip
    evaluate.add_argument("--split", default="val",
                          help="train, val, test; all: every image of a path (default: "
                          "%(default)s)")  # fmt: skip
    evaluate.add_argument("--per-class", action="store_true",
                          help="also the accuracy of each class and what is confused")  # fmt: skip
    evaluate.add_argument("--predictions", metavar="FILE.csv",
                          help="write a row for each image: file, true class if known, the five "
                          "likeliest classes")  # fmt: skip
    evaluate.add_argument("--skip-corrupt", action="store_true", help="skip unreadable images")
    evaluate.add_argument("--batch-size", type=int, default=256, metavar="N")
    evaluate.add_argument("--device", help="cpu, cuda, mps (default: cpu)", default="cpu")
    evaluate.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    evaluate.add_argument("--json", metavar="FILE",
                          help="also write the record there; with --per-class the whole confusion "
                          "matrix")  # fmt: skip


def _evaluate(args: argparse.Namespace) -> None:
    from evitlab.analysis.conditions import cpu_threads
    from evitlab.models.zoo import load_model, model_name
    from evitlab.records import write_atomically
    from evitlab.training.evaluation import accuracy_of, predict
    from evitlab.training.per_class import check_classes, report_of

    model = load_model(args.weights)
    data = _open(args, model)
    if args.per_class:
        check_classes(model, data)
    with cpu_threads(args.threads):
        predictions = predict(model, data, batch_size=args.batch_size, device=args.device)
    where = f"{data.title} ({data.split}), {len(predictions)} images{skipped(data)}"
    if args.predictions:
        table = predictions.to_frame().to_csv(
            index=False, lineterminator="\n", float_format="%.6f"
        )
        write_atomically(args.predictions, table)
    if not data.labelled:
        print(f"{where}: no class folders, so no accuracy; predictions in {args.predictions}")
        return
    accuracy = accuracy_of(predictions)
    print(
        f"{where}: top-1 {accuracy.top1:.2f} %, top-5 {accuracy.top5:.2f} %, "
        f"loss {accuracy.loss:.3f}"
    )
    if args.per_class:
        report = report_of(predictions, model=model_name(model), split=data.split)
        _print_classes(report)
    if args.json:
        (report if args.per_class else accuracy).save(args.json)
    if args.predictions:
        print(f"predictions in {args.predictions}")


def _open(args: argparse.Namespace, model: Any) -> AnyDataset:
    """The images, labelled by the model's classes; what they lack is said."""
    from evitlab.datasets import (
        NAMED_SETS,
        default_dataset_name,
        holds_photographs,
        listed,
        match_classes,
        open_dataset,
        without_images,
    )

    name = args.data or default_dataset_name()
    unlabelled = name not in NAMED_SETS and holds_photographs(Path(name).expanduser())
    if unlabelled:
        if not args.predictions:
            raise ValueError(
                f"--data: expected a folder of images for each class, got images directly in "
                f"{name}; --predictions FILE.csv writes what the model takes them for"
            )
        for option in ("per_class", "json"):
            if getattr(args, option):
                raise ValueError(
                    f"--{option.replace('_', '-')}: expected labelled images, got images without "
                    f"class folders in {name}"
                )
    data = open_dataset(
        name,
        "all" if unlabelled else args.split,
        img_size=model.config.img_size,
        on_error=on_error(args),
    )
    known = model.class_names or (() if data.labelled else map(str, range(model.num_classes)))
    data = match_classes(data, known) if known else data
    if data.labelled and (absent := without_images(data)):
        print(f"no images of {listed(absent)}")
    return data


def _print_classes(report: ClassificationReport) -> None:
    """The worst classes, and what is taken for what."""
    known = [row for row in report.classes if row.accuracy is not None]
    worst = sorted(known, key=lambda row: (row.accuracy, row.name))[:_PRINTED]
    width = max(len(row.name) for row in worst)
    for row in worst:
        print(f"  {row.name:{width}}  {row.accuracy:6.2f} % of {row.n}")
    if len(known) > len(worst):
        print(f"  … {len(known) - len(worst)} better ones; --json FILE holds them all")
    for pair in report.confused[:_PAIRS]:
        print(f"  {pair.true} taken for {pair.predicted}: {pair.count} ({pair.share:.0f} %)")

"""`evitlab …`, the same as `python -m evitlab …`."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import pandas as pd

from evitlab.datasets import AnyDataset
from evitlab.models.efficientvit import EfficientViT
from evitlab.records import Record, TrainingRecord, write_atomically

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
    except (*USER_MISTAKES, RuntimeError) as error:
        if args.debug or not (isinstance(error, USER_MISTAKES) or _is_out_of_memory(error)):
            raise
        # On one line, also where a library's message has several.
        print(f"evitlab: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _is_out_of_memory(error: BaseException) -> bool:
    """torch raises its own type on a GPU, and a plain RuntimeError on a CPU."""
    return "out of memory" in str(error) or "can't allocate memory" in str(error)


def _without_machine_paths(argv: list[str]) -> list[str]:
    """Paths cut to their last part: a record names no folder of one machine."""

    def cut(word: str) -> str:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        return f"{option}{equals}{Path(value).name}" if Path(value).is_absolute() else word

    return [cut(word) for word in argv]


class _Parser(argparse.ArgumentParser):
    """Says a wrong command line in one line, as every other mistake."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"evitlab: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
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
    train.add_argument("--epochs", type=int, metavar="N", help="of the whole run")
    train.add_argument("--limit", type=int, metavar="N", help="training images at most")
    train.add_argument("--batch-size", type=int, metavar="N", help="images per step")
    train.add_argument("--lr", type=float, metavar="X", help="peak learning rate")
    train.add_argument("--seed", type=int, metavar="N", help="of weights, order and augmentation")
    train.add_argument("--weights", metavar="PATH|NAME|timm", help="weights to start from")
    train.add_argument("--device", help="cpu, cuda, mps (default: a GPU if there is one)")
    train.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    train.add_argument("--compile", action="store_true", default=None, help="torch.compile")
    train.add_argument("--skip-corrupt", action="store_true", help="skip unreadable images")
    train.add_argument("--scale", help="smoke, quick, lab or paper, noted in the record")
    train.add_argument("--no-resume", action="store_true", help="start over")
    train.add_argument("--out", required=True, metavar="DIR")
    train.add_argument("--json", metavar="FILE", help="also write the record there")

    evaluate = command(
        "evaluate", _evaluate, "measure the accuracy of trained weights on a data set",
        "evitlab evaluate runs/m0 --data cifar10",
    )  # fmt: skip
    evaluate.add_argument(
        "weights",
        metavar="RUN|FILE|NAME",
        help="a run's folder, a .safetensors file, or a name in data/checkpoints",
    )
    evaluate.add_argument("--data", default=None, metavar="NAME|PATH", help="as in `train`")
    evaluate.add_argument("--split", default="val", help="default: %(default)s")
    evaluate.add_argument("--skip-corrupt", action="store_true", help="skip unreadable images")
    evaluate.add_argument("--batch-size", type=int, default=256, metavar="N")
    evaluate.add_argument("--device", help="cpu, cuda, mps (default: cpu)", default="cpu")
    evaluate.add_argument("--json", metavar="FILE", help="also write the record there")

    export = command(
        "export", _export, "write trained weights again, in half precision if asked",
        "evitlab export runs/m0 data/checkpoints/m0.safetensors --half",
    )  # fmt: skip
    export.add_argument("weights", metavar="RUN|FILE|NAME")
    export.add_argument("file", metavar="FILE.safetensors")
    export.add_argument("--half", action="store_true", help="float16 tensors")

    models = command(
        "models", _models, "list the models with their size and cost",
        "evitlab models 'efficientvit_m?'",
    )  # fmt: skip
    models.add_argument("pattern", nargs="?", default="*", help="shell wildcards")
    models.add_argument("--json", metavar="FILE", help="also write the table there")

    bench = command(
        "bench", _bench, "time our models against timm's, and the data path of training",
        "evitlab bench efficientvit_m0 --batch-sizes 1 32 --json speed.json",
    )  # fmt: skip
    bench.add_argument("models", nargs="*", metavar="MODEL", help="default: all six")
    bench.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 32], metavar="N")
    bench.add_argument("--rounds", type=int, default=15, metavar="N", help="default: %(default)s")
    bench.add_argument("--threads", type=int, default=1, metavar="N", help="default: %(default)s")
    bench.add_argument("--json", metavar="FILE", help="also write the record there")

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
    reproduce.add_argument("--json", metavar="FILE", help="also write the report there")
    return parser


def _train(args: argparse.Namespace) -> None:
    import torch

    from evitlab.analysis.throughput import cpu_threads
    from evitlab.datasets import default_dataset_name, open_dataset
    from evitlab.models.zoo import create_model, list_models, small_image_name
    from evitlab.training.loop import train
    from evitlab.training.recipe import RECIPES

    if args.recipe not in RECIPES:
        raise ValueError(f"--recipe: expected one of {', '.join(RECIPES)}, got {args.recipe!r}")
    if args.model not in list_models():
        create_model(args.model)  # its error names the closest; now, not after decoding the data
    changes = {
        name: getattr(args, name)
        for name in ("epochs", "batch_size", "seed", "compile")
        if getattr(args, name) is not None
    }
    if args.epochs is not None:
        changes["cooldown_epochs"] = 0  # --epochs is the length of the whole run
    if args.lr is not None:
        changes |= {"lr": args.lr, "lr_batch": None}
    recipe = dataclasses.replace(RECIPES[args.recipe], **changes)
    name = args.data or default_dataset_name()
    train_data = open_dataset(
        name, "train", img_size=args.img_size, limit=args.limit, on_error=_on_error(args)
    )
    val_data = open_dataset(name, "val", img_size=args.img_size, on_error=_on_error(args))
    architecture = small_image_name(args.model, train_data.img_size)
    print(
        f"{architecture} on {train_data.title}: {len(train_data)} training images"
        f"{_skipped(train_data)}, {len(val_data)} validation images{_skipped(val_data)}, "
        f"{train_data.num_classes} classes, "
        f"{train_data.img_size[0]}x{train_data.img_size[1]} pixels"
    )
    with cpu_threads(args.threads), torch.random.fork_rng([]):
        torch.manual_seed(recipe.seed)
        model = create_model(
            architecture, img_size=train_data.img_size, num_classes=train_data.num_classes
        )
        if args.weights:
            _start_from(args.weights, model)
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
        )
    _curves(record, Path(args.out))
    print(
        f"finished: top-1 {record.final.top1:.2f} %, top-5 {record.final.top5:.2f} % on "
        f"{record.final.n} images after {len(record.history)} epochs; see {args.out}"
    )
    _save_json(record, args.json)


def _start_from(weights: str, model: EfficientViT) -> None:
    """Load weights; the classifier of other classes stays as it was drawn, which is said."""
    from evitlab.models.weights import load_weights

    report = load_weights(model, weights, strict=False)
    classifier = {"head.linear.weight", "head.linear.bias"}
    if report.missing or report.unexpected or not classifier >= set(report.mismatched):
        load_weights(model, weights)  # says what does not fit
    if report.mismatched:
        print(f"{Path(weights).name}: of other classes, so the classifier is trained from scratch")


def _curves(record: TrainingRecord, out: Path) -> None:
    from evitlab.figures import save_figure, training_curves

    save_figure(training_curves([record]), "training_curves", record.to_frame(), out_dir=out)


def _save_json(record: Record, file: str | None) -> None:
    if file:
        record.save(file)


def _evaluate(args: argparse.Namespace) -> None:
    from evitlab.datasets import default_dataset_name, open_dataset
    from evitlab.models.zoo import load_model
    from evitlab.training.evaluation import evaluate

    model = load_model(args.weights)
    classes: Any = model.class_names
    size = model.config.img_size
    data = open_dataset(
        args.data or default_dataset_name(), args.split, img_size=size, on_error=_on_error(args)
    )
    if classes and classes != data.class_names:
        raise ValueError(
            f"--data: expected the {len(classes)} classes of the weights "
            f"({', '.join(classes[:3])}, …), got {data.num_classes} "
            f"({', '.join(data.class_names[:3])}, …)"
        )
    accuracy = evaluate(model, data, batch_size=args.batch_size, device=args.device)
    print(
        f"{data.title} ({data.split}), {accuracy.n} images{_skipped(data)}: "
        f"top-1 {accuracy.top1:.2f} %, top-5 {accuracy.top5:.2f} %, loss {accuracy.loss:.3f}"
    )
    _save_json(accuracy, args.json)


def _on_error(args: argparse.Namespace) -> Literal["skip", "raise"]:
    return "skip" if args.skip_corrupt else "raise"


def _skipped(data: AnyDataset) -> str:
    return f" ({data.skipped} unreadable ones left out)" if data.skipped else ""


def _export(args: argparse.Namespace) -> None:
    from evitlab.models.zoo import load_model
    from evitlab.training.checkpoint import save_weights

    if Path(args.file).suffix != ".safetensors":
        raise ValueError(f"FILE: expected a name that ends in .safetensors, got {args.file!r}")
    model = load_model(args.weights)
    classes: Any = model.class_names
    save_weights(model, args.file, class_names=classes, half=args.half)
    print(f"{args.file}: {Path(args.file).stat().st_size / 2**20:.1f} MiB")


def _models(args: argparse.Namespace) -> None:
    from evitlab.models.cost import count_macs, count_params
    from evitlab.models.zoo import create_model, list_models

    names = list_models(args.pattern)
    if not names:
        raise ValueError(f"pattern: expected one that matches a model, got {args.pattern!r}")
    rows = []
    for name in names:
        side = {"_p4": 32, "_p8": 64}.get(name[-3:], 224)
        model = create_model(name, img_size=side)
        macs = count_macs(model) / 1e6
        params = count_params(model) / 1e6
        rows.append({"model": name, "img_size": side, "params_m": params, "macs_m": macs})
    frame = pd.DataFrame(rows)
    print(frame.to_string(index=False, float_format="{:.2f}".format))
    if args.json:
        write_atomically(args.json, frame.to_json(orient="records", indent=1))


def _bench(args: argparse.Namespace) -> None:
    from evitlab.analysis.throughput import compare_with_timm
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
    _save_json(record, args.json)


def _reproduce(args: argparse.Namespace) -> int:
    from evitlab.report import reproduce

    report = reproduce(
        scale=args.scale,
        out_dir=args.out,
        notebooks=args.notebooks,
        save_notebooks=args.save_notebooks,
    )
    _save_json(report, args.json)
    return 0 if report.ok else 1

"""`evitlab export`."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from evitlab.cli.parser import AddCommand
from evitlab.cli.source import SOURCE, open_source

if TYPE_CHECKING:
    from evitlab.models.efficientvit import EfficientViT
    from evitlab.records import QuantizationRecord

_SUFFIXES = (".onnx", ".pt2", ".safetensors")


def add(command: AddCommand) -> None:
    export = command(
        "export", _export,
        "write a model as ONNX (in int8 if asked), as a torch.export program or as weights",
        "evitlab export efficientvit_m0 m0.onnx\n"
        "  evitlab export runs/m0 m0_int8.onnx --int8 --data cifar10\n"
        "  evitlab export runs/m0 m0.safetensors --half",
    )  # fmt: skip
    export.add_argument("source", metavar="MODEL|RUN|FILE|NAME",
                        help=SOURCE)  # fmt: skip
    export.add_argument("file", metavar="FILE", help=f"ends in {', '.join(_SUFFIXES)}")
    export.add_argument("--weights", metavar="PATH|NAME|timm", help="of a MODEL (default: random)")
    export.add_argument("--num-classes", type=int, metavar="N", help="of a MODEL (default: 1000)")
    export.add_argument("--img-size", type=int, metavar="N", help="default: the model's own")
    export.add_argument("--half", action="store_true", help="float16 tensors (.safetensors)")
    export.add_argument("--int8", action="store_true",
                        help="quantize and print what that gains and costs (.onnx)")  # fmt: skip
    export.add_argument("--data", metavar="NAME|PATH",
                        help="calibrates int8 and measures its accuracy")  # fmt: skip
    export.add_argument("--calibrate", type=int, default=256, metavar="N",
                        help="training images for int8 (default: %(default)s)")  # fmt: skip
    export.add_argument("--threads", type=int, default=1, metavar="N",
                        help="CPU threads when int8 is timed (default: %(default)s)")  # fmt: skip
    export.add_argument("--json", metavar="FILE", help="write the record of --int8 there")


def _export(args: argparse.Namespace) -> None:
    suffix = Path(args.file).suffix
    if suffix not in _SUFFIXES:
        expected = f"a name that ends in {', '.join(_SUFFIXES)}"
        raise ValueError(f"FILE: expected {expected}, got {args.file!r}")
    for option, given, needed in (
        ("--half", args.half, ".safetensors"),
        ("--int8", args.int8, ".onnx"),
    ):
        if given and suffix != needed:
            raise ValueError(f"{option}: expected a FILE that ends in {needed}, got {args.file!r}")
    if args.int8 and not args.data:
        raise ValueError("--int8: expected --data too, the images that calibrate it")
    for option in ("data", "json"):
        if getattr(args, option) and not args.int8:
            raise ValueError(f"--{option}: expected --int8 too")
    model, trained = open_source(args)
    try:
        if suffix == ".safetensors":
            _weights(model, args)
        elif suffix == ".pt2":
            _program(model, args)
        elif args.int8:
            _int8(model, trained, args)
        else:
            _onnx(model, args)
    except ImportError as error:  # an extra that is not installed: the message says which
        raise ValueError(str(error)) from error
    if not trained:
        print(f"{args.source}: random weights; --weights loads trained ones")


def _mib(file: str | Path) -> str:
    return f"{Path(file).stat().st_size / 2**20:.1f} MiB"


def _weights(model: EfficientViT, args: argparse.Namespace) -> None:
    from evitlab.training.checkpoint import save_weights

    classes: Any = model.class_names
    save_weights(model, args.file, class_names=classes, half=args.half)
    print(f"{args.file}: {_mib(args.file)}")


def _program(model: EfficientViT, args: argparse.Namespace) -> None:
    from evitlab.models.export import export_program

    export_program(model, args.file, img_size=args.img_size)
    print(f"{args.file}: {_mib(args.file)}; equal to PyTorch at batch sizes 1 and 8")


def _onnx(model: EfficientViT, args: argparse.Namespace) -> None:
    from evitlab.models.export import export_onnx
    from evitlab.models.onnx_graph import describe_onnx

    export_onnx(model, args.file, img_size=args.img_size)
    summary = describe_onnx(args.file)
    verified = summary.card["verified"]
    print(
        f"{args.file}: {_mib(args.file)}, opset {summary.opset}, {summary.nodes} nodes; equal to "
        f"PyTorch within {verified['relative_error']:.0e} at batch sizes "
        f"{' and '.join(map(str, verified['batch_sizes']))}"
    )


def _int8(model: EfficientViT, trained: bool, args: argparse.Namespace) -> None:
    from evitlab.analysis.quantization import quantize_and_measure
    from evitlab.datasets import open_dataset
    from evitlab.models.export import export_onnx

    size = args.img_size or model.config.img_size
    calibration = open_dataset(args.data, "train", img_size=size, limit=args.calibrate)
    fits = trained and model.num_classes == calibration.num_classes
    data = open_dataset(args.data, "val", img_size=size) if fits else None
    with TemporaryDirectory() as folder:
        source = export_onnx(model, Path(folder) / "float32.onnx", img_size=args.img_size)
        record = quantize_and_measure(
            source,
            args.file,
            calibration=calibration,
            data=data,
            threads=args.threads,
            command=args.command_line,
        )
    _print_int8(record, args.file)
    if args.json:
        record.save(args.json)


def _print_int8(record: QuantizationRecord, file: str) -> None:
    print(
        f"{file}: {record.int8_bytes / 2**20:.1f} MiB (float32: "
        f"{record.float32_bytes / 2**20:.1f}), calibrated on {record.calibration_images} images "
        f"of {record.dataset}"
    )
    if record.float32 is not None and record.int8 is not None:
        print(
            f"top-1: float32 {record.float32.top1:.2f} %, int8 {record.int8.top1:.2f} % on "
            f"{record.int8.n} images"
        )
    for row in record.speed:
        print(
            f"batch {row.batch_size}: float32 {row.float32_ms:.2f} ms, int8 {row.int8_ms:.2f} ms, "
            f"{row.ratio:.2f}x ({row.ratio_low:.2f}-{row.ratio_high:.2f}), "
            f"{record.threads} thread{'s' * (record.threads > 1)}"
        )
    kinds = Counter(name.rpartition("/")[2].partition("_")[0] for name in record.float32_layers)
    said = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"
    print(f"layers in float32: {said}")

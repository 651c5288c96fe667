"""`evitlab export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from evitlab.cli.parser import AddCommand


def add(command: AddCommand) -> None:
    export = command(
        "export", _export, "write trained weights again, in half precision if asked",
        "evitlab export runs/m0 data/checkpoints/m0.safetensors --half",
    )  # fmt: skip
    export.add_argument("weights", metavar="RUN|FILE|NAME")
    export.add_argument("file", metavar="FILE.safetensors")
    export.add_argument("--half", action="store_true", help="float16 tensors")


def _export(args: argparse.Namespace) -> None:
    from evitlab.models.zoo import load_model
    from evitlab.training.checkpoint import save_weights

    if Path(args.file).suffix != ".safetensors":
        raise ValueError(f"FILE: expected a name that ends in .safetensors, got {args.file!r}")
    model = load_model(args.weights)
    classes: Any = model.class_names
    save_weights(model, args.file, class_names=classes, half=args.half)
    print(f"{args.file}: {Path(args.file).stat().st_size / 2**20:.1f} MiB")

"""What two processes of one run do in test_distributed.py: several checks in one set of processes.

Each process writes what it found to OUT/rank-N.json.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from small_runs import (
    landscapes,
    plain_net,
    recipe,
    shapes,
    small_detector,
    tiny_vit,
    write_folder,
)
from torch import nn

from evitlab import evaluate, open_dataset, train, train_detector
from evitlab.datasets import StreamingDataset
from evitlab.training.distributed import Ranks, joined
from evitlab.training.sync_norm import synchronized_norms

# Every random number that does not depend on the process. At a rate of 2e-3 losses in float32
# would drift apart by 1e-3 within eight steps: Adam's first steps follow the sign of a gradient,
# which rounding can decide (see sync_norm.py); in float64, or at this rate, they do not.
ALIKE: dict[str, Any] = dict(
    epochs=2, batch_size=16, lr=1e-4, crop="resized", flip=0.5, randaugment_ops=2,
    mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, ema_decay=0.9, clip="agc",
    clip_grad=0.02,
)  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "whole": ALIKE,
    "parts": ALIKE | dict(accumulate=2, epochs=1),
    "uneven": ALIKE | dict(batch_size=15, epochs=1),
}
VALIDATION = 7  # images, which two processes cannot share evenly


def losses(name: str, out: Path) -> list[float]:
    """Training and validation losses of every epoch."""
    record = train(
        tiny_vit(), shapes(32), shapes(VALIDATION, "val"), recipe(**RUNS[name]), out_dir=out,
        device="cpu",
    )  # fmt: skip
    assert record.final.n == VALIDATION
    return [loss for log in record.history for loss in (log.train_loss, log.val_loss or 0.0)]


def detection_losses(out: Path) -> list[float]:
    """Of every epoch, and at the end the recall of 100 boxes an image."""
    data = landscapes(5)
    record = train_detector(
        small_detector(data), data, data, recipe(epochs=2, batch_size=4, lr=1e-4, crop="none"),
        out_dir=out, device="cpu",
    )  # fmt: skip
    return [*(log.train_loss for log in record.history), record.final.ar100]


def norm_inputs() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    norm = nn.BatchNorm2d(4).double()
    with torch.no_grad():
        norm.weight.copy_(torch.rand(4, generator=generator))
    images, slopes = torch.randn(2, 5, 4, 3, 2, generator=generator, dtype=torch.float64)
    return norm, 10 + images, slopes


def normalized(ranks: Ranks) -> dict[str, Any]:
    """BatchNorm of five images on all processes: this one's outputs and gradients."""
    norm, images, slopes = norm_inputs()
    keys = list(norm.state_dict())
    mine = ranks.part(images).requires_grad_()
    with synchronized_norms(norm):
        assert list(norm.state_dict()) == keys
        out = norm(mine)
        (out * ranks.part(slopes)).sum().backward()
    assert type(norm) is nn.BatchNorm2d
    found = {"out": out.detach(), "gradient": mine.grad, "weight": norm.weight.grad,
             "mean": norm.running_mean, "var": norm.running_var}  # fmt: skip
    return {name: value.tolist() for name, value in found.items() if value is not None}


def streamed(root: Path, ranks: Ranks) -> list[list[int]]:
    """The places that each process decodes in one epoch of a streamed set."""
    if ranks.main:
        write_folder(root, {"train": shapes(10), "val": shapes(3, "val")})
    ranks.gather(0)  # written
    places: list[int] = []
    whole = StreamingDataset.batches

    def spy(self: StreamingDataset, order: torch.Tensor, *args: Any, **options: Any) -> Any:
        if options.get("train"):
            places.extend(order.tolist())
        return whole(self, order, *args, **options)

    StreamingDataset.batches = spy  # type: ignore[method-assign]
    sets = [open_dataset(root, split, img_size=32, streaming=True) for split in ("train", "val")]
    data, val = (dataclasses.replace(cast(Any, one), num_workers=1) for one in sets)
    train(plain_net(), data, val, recipe(batch_size=5, epochs=1), out_dir=root / "run")
    return ranks.gather(places)


def fails() -> int:
    raise ValueError("only process 0 knows why")


def main(out: Path) -> None:
    with joined(torch.device("cpu")) as ranks:
        found: dict[str, Any] = {name: losses(name, out / name) for name in RUNS}
        found["detector"] = detection_losses(out / "detector")
        own = recipe(**ALIKE | dict(epochs=1, sync_norm=False))
        model = tiny_vit()
        train(model, shapes(32), shapes(3), own, out_dir=out / "own", device="cpu")
        found["own"] = [float(value.double().sum()) for value in model.state_dict().values()]
        found["norm"] = normalized(ranks)
        for images in (1, VALIDATION):
            result = evaluate(plain_net(), shapes(images), distributed=True)
            found[f"evaluated {images}"] = [result.n, result.top1, result.loss]
        found["streamed"] = streamed(out / "folder", ranks)
        try:
            ranks.from_main(fails)
        except ValueError as error:
            found["error"] = str(error)
        (out / f"rank-{ranks.rank}.json").write_text(json.dumps(found))


def process(rank: int, port: int, out: Path) -> None:
    """One of two, told what `torchrun` would tell it."""
    with open(out / f"rank-{rank}.log", "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {name: str(value) for name, value in given.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    multiprocessing.set_start_method(None, force=True)  # else as this one was
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    main(out)

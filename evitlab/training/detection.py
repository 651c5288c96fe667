"""Train a detector.

Shape legend: n boxes of an image, (x1, y1, x2, y2) in its pixels.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from evitlab.datasets import DetectionDataset, check_boxes
from evitlab.models.detector import RetinaNet
from evitlab.models.zoo import config_fields, model_name
from evitlab.records import BoxAP, DetectionLog, DetectionRecord
from evitlab.training.batches import Part, check_norms, step_seed, steps_of
from evitlab.training.detecting import check_detector_classes, evaluate_detector
from evitlab.training.distributed import Ranks
from evitlab.training.loop import run
from evitlab.training.recipe import Recipe
from evitlab.training.task import Task

Target = dict[str, Tensor]


def train_detector(
    model: RetinaNet,
    train_data: DetectionDataset,
    val_data: DetectionDataset,
    recipe: Recipe,
    *,
    out_dir: str | os.PathLike[str],
    resume: bool = True,
    device: str | torch.device | None = None,
    command: str = "",
    scale: str | None = None,
    weights: str | None = None,
) -> DetectionRecord:
    """Train a detector; leaves weights, checkpoints and the record in `out_dir`.

    Images are brought to the model's size with their aspect kept, flipped by chance
    (`recipe.flip`) and padded; crowd regions are no targets, images without boxes are background.

    Args:
        model: trained in place.
        train_data: what to learn from.
        val_data: of the same classes; box AP every `recipe.validate_every` epochs and at the end.
        recipe: its optimisation fields and `flip` are read; the other augmentation is of
            classifiers.
        out_dir: as in `train`; `best.safetensors` has the highest AP.
        resume: as in `train`.
        device: where to train; None takes a GPU if there is one.
        command: the command line that regenerates the record, kept in it.
        scale: smoke, quick, lab or paper, kept in the record.
        weights: `weights_identity` of what the backbone was loaded with.

    Raises:
        ValueError: no boxes to learn from, data and model of different classes, a recipe that
            augments as classifiers do, or `out_dir` holds a different run; see also `train`.

    Paper: Table 5; the official 1x schedule is the recipe "detection".
    Pitfall: on as few images as lie in COCO128, AP on the training images says that the parts work
    together, and AP on others says little.
    """
    task = Detection(
        model, train_data, val_data, recipe, weights=weights, command=command, scale=scale
    )
    record: DetectionRecord = run(task, model, out_dir=out_dir, resume=resume, device=device)
    return record


class Detection(Task):
    """Images to boxes; the arguments are those of `train_detector`."""

    record_type, log_type = DetectionRecord, DetectionLog

    def __init__(
        self,
        model: RetinaNet,
        train_data: DetectionDataset,
        val_data: DetectionDataset,
        recipe: Recipe,
        *,
        weights: str | None,
        command: str,
        scale: str | None,
    ) -> None:
        self.model, self.recipe = model, recipe
        self.train_data, self.val_data = train_data, val_data
        self.img_size = model.config.img_size
        self.weights, self.command, self.scale = weights, command, scale

    def check(self, ranks: Ranks, device: torch.device) -> None:
        model, recipe, data = self.model, self.recipe, self.train_data
        check_boxes(data, "train_data", to="learn from")
        check_boxes(self.val_data, "val_data")
        _check_recipe(recipe)
        for given in (data, self.val_data):
            check_detector_classes(model, given)
        check_norms(model, recipe, len(data), ranks)
        self.identity = {
            "model": model_name(model),
            "img_size": self.img_size,
            "num_classes": model.num_classes,
            "dataset": data.title,
            "train_images": len(data),
            "train_boxes": data.num_boxes,
            "validated_on": _validated_on(data, self.val_data),
            "recipe": dataclasses.asdict(recipe),
            "weights": self.weights,
            "config": config_fields(model),
            "channel_widths": {},
        }
        self.environment = self.card(device)

    def begin(self, ranks: Ranks, device: torch.device, on_phase: Callable[[str], None]) -> None:
        self.device = device
        self.batches = BoxBatches(
            self.train_data,
            self.recipe,
            self.img_size,
            ranks=ranks,
            device=device,
            on_phase=on_phase,
        )
        step = self.batches.size // self.recipe.accumulate // ranks.size
        self.validated_at_once = max(1, min(8, step))

    def loss(self, model: nn.Module, part: Part) -> Tensor:
        losses: dict[str, Tensor] = model(part.inputs, part.targets)
        return losses["classification"] + losses["bbox_regression"]

    def validate(self, model: nn.Module) -> BoxAP:
        return evaluate_detector(
            model,
            self.val_data,
            batch_size=self.validated_at_once,
            device=self.device,
            distributed=True,
        )

    def said(self, result: BoxAP) -> str:
        return f"AP {result.ap:.1f} %, AP50 {result.ap50:.1f} %"

    def log(self, result: BoxAP | None, **measured: Any) -> DetectionLog:
        found: dict[str, Any] = (
            {"val_ap": result.ap, "val_ap50": result.ap50} if result is not None else {}
        )
        return DetectionLog(**measured, **found)

    def score(self, log: DetectionLog) -> float | None:
        return log.val_ap


class BoxBatches:
    """The steps of a run's epochs, in whole global batches: what is left over sits out.

    Order and flips are functions of (recipe, epoch, step), so a step sees the same images whatever
    the number of processes. Each process decodes its own share, a step ahead, in threads.

    Pitfall: the model pads each part to its largest image, and convolutions and BatchNorm see the
    padding: losses depend a little on how a batch is shared out, where its images differ in shape.

    Attributes:
        steps: in an epoch.
        size: images of a global batch.

    Raises:
        ValueError: fewer images in a batch than parts.
    """

    def __init__(
        self,
        data: DetectionDataset,
        recipe: Recipe,
        img_size: tuple[int, int],
        *,
        ranks: Ranks,
        device: torch.device,
        on_phase: Callable[[str], None],
    ) -> None:
        self.data, self.recipe, self.img_size = data, recipe, img_size
        self.ranks, self.device, self.on_phase = ranks, device, on_phase
        self.steps, self.size = steps_of(len(data), recipe, ranks)

    def epoch(self, epoch: int) -> Iterator[list[Part]]:
        """The parts of each step of an epoch, counted from 1, for this process."""
        generator = torch.Generator().manual_seed(step_seed(self.recipe, epoch))
        order = torch.randperm(len(self.data), generator=generator)[: self.steps * self.size]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            ahead: list[list[Any]] = []
            for step in range(self.steps + 1):
                self.on_phase("data")
                if step < self.steps:
                    batch = order[step * self.size : (step + 1) * self.size]
                    ahead.append(self._parts(pool, batch, step_seed(self.recipe, epoch, step)))
                if step > 0:
                    yield [self._part([image.result() for image in part]) for part in ahead.pop(0)]

    def _parts(self, pool: ThreadPoolExecutor, batch: Tensor, seed: int) -> list[Any]:
        """The images of each part, being decoded."""
        draws = torch.rand(len(batch), generator=torch.Generator().manual_seed(seed))
        images = torch.stack([batch.double(), (draws < self.recipe.flip).double()], 1)
        parts = [images[i :: self.recipe.accumulate] for i in range(self.recipe.accumulate)]
        return [
            [
                pool.submit(load_target, self.data, int(index), self.img_size, flip=bool(flip))
                for index, flip in self.ranks.part(part).tolist()
            ]
            for part in parts
        ]

    def _part(self, loaded: list[tuple[Tensor, Target]]) -> Part:
        images = [image.to(self.device) for image, _ in loaded]
        targets = [
            {name: value.to(self.device) for name, value in target.items()} for _, target in loaded
        ]
        return Part(images, targets, len(images) * self.ranks.size / self.size)


def load_target(
    data: DetectionDataset, index: int, img_size: tuple[int, int], *, flip: bool
) -> tuple[Tensor, Target]:
    """An image at training size and what is to be found on it.

    Args:
        data: where from.
        index: which one.
        img_size: short side; long side at most.
        flip: left to right.

    Returns:
        uint8 [3, H, W], and `boxes` float32 [n, 4] with `labels` int64 [n], without crowds and
        what the resizing left without area.
    """
    image, boxes = data.resized(index, img_size)
    kept = ~data.crowd[index] & (boxes[:, 2:] > boxes[:, :2]).all(1)
    boxes, labels = boxes[kept], data.labels[index][kept]
    if flip:
        image = image.flip(-1)
        x1, y1, x2, y2 = boxes.unbind(1)
        boxes = torch.stack([image.shape[-1] - x2, y1, image.shape[-1] - x1, y2], 1)
    return image, {"boxes": boxes, "labels": labels}


def _validated_on(train_data: DetectionDataset, val_data: DetectionDataset) -> str:
    same = "the same " if val_data.image_ids == train_data.image_ids else ""
    same *= val_data.title == train_data.title
    return f"{val_data.split}, {same}{len(val_data)} images"


def _check_recipe(recipe: Recipe) -> None:
    """Raise a ValueError where it asks for what only classifiers have."""
    plain = Recipe(epochs=1, batch_size=1, lr=1e-3)
    for name in (
        "crop", "color_jitter", "randaugment_ops", "mixup_alpha", "cutmix_alpha", "random_erasing",
        "label_smoothing", "distillation", "freeze", "repeats",
    ):  # fmt: skip
        wanted, got = getattr(plain, name), getattr(recipe, name)
        if got != wanted:
            raise ValueError(f"{name}: expected {wanted!r} in a detector's recipe, got {got!r}")

"""Where a detector's time goes: backbone, neck, head, and the boxes that are made of it.

A pass is timed part by part, and as a plain call, in turns with those of all other detectors and
forms, so that what else the machine does hits them alike.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from evitlab.analysis.conditions import cpu_threads
from evitlab.analysis.folding import deployed as folded
from evitlab.datasets import DetectionDataset, default_detection_name, open_detection
from evitlab.models.cost import count_macs_by_module, count_params
from evitlab.models.deploy import DEPLOYED, deploy
from evitlab.models.detector import (
    DetectorTransform,
    RetinaNet,
    create_detector,
    load_detector,
)
from evitlab.models.efficientvit import EfficientViT
from evitlab.records import (
    DETECTOR_PARTS,
    DetectorPart,
    DetectorSpeed,
    DetectorTiming,
    environment_card,
    quartiles,
)
from evitlab.training.evaluation import checked_device

MODELS = ("efficientvit_m4", "mobilenetv2_100")
IMG_SIZE = 512  # short side where neither the caller nor the model says
_NUM_CLASSES = 80  # COCO's
_WARM_UP = 2  # rounds that are not counted

Subject = str | os.PathLike[str] | RetinaNet


@dataclasses.dataclass(frozen=True, eq=False)
class _Run:
    """One detector in one form, what it is given, and the seconds of its rounds."""

    name: str
    detector: RetinaNet
    form: str
    learnt: bool
    images: list[Tensor]
    plain: _Run | None  # the same detector as trained, where that is measured too
    parts: list[dict[str, float]] = dataclasses.field(default_factory=list)
    whole: list[float] = dataclasses.field(default_factory=list)
    full: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, eq=False)
class _Found:
    """What post-processing of a batch begins with."""

    outputs: dict[str, Tensor]
    levels: list[Tensor]
    batch: Any  # torchvision's ImageList


def measure_detector(
    models: Subject | Sequence[Subject] = MODELS,
    *,
    img_size: int | tuple[int, int] | None = None,
    batch_size: int = 1,
    rounds: int = 15,
    threads: int = 1,
    device: str = "cpu",
    deployed: Sequence[bool] = (False, True),
    data: DetectionDataset | None = None,
    command: str = "",
    scale: str | None = None,
) -> DetectorSpeed:
    """Time detectors part by part, as trained and deployed, on one picture.

    Args:
        models: backbones, as in `create_detector`, then with weights as drawn and 80 classes;
            or detectors, or the weights or folders of their runs. They are copied.
        img_size: (short side, long side at most) in pixels, an int is the short side; None: each
            detector's own, 512 where it is built here.
        batch_size: copies of the picture in a call.
        rounds: passes of each; all take turns within a round.
        threads: of torch on the CPU.
        device: "cpu" or "cuda".
        deployed: which forms: False as trained, True deployed; a backbone that is not ours has
            its BatchNorms folded instead.
        data: where the picture comes from, the first one with boxes; None: the default set.
        command: for the record.
        scale: smoke, quick, lab or paper, for the record.

    Raises:
        ValueError: nothing to measure, no such model or device, or a number below one.
        FileNotFoundError: no such weights.

    Pitfall: post-processing costs what there is to select from; look at `candidates` first. The
    picture is resized beforehand: decoding and resizing are not counted.
    """
    subjects = [models] if isinstance(models, (str, os.PathLike, RetinaNet)) else list(models)
    forms = sorted(set(map(bool, deployed)))
    if not subjects or not forms:
        raise ValueError(
            f"models, deployed: expected at least one of each, got {subjects} and {deployed}"
        )
    for name, value in (("batch_size", batch_size), ("rounds", rounds), ("threads", threads)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    place = checked_device(device)
    picture = _first_with_boxes(data or _default_data())
    with cpu_threads(threads), torch.inference_mode():
        runs: list[_Run] = []
        names: list[str] = []
        for subject in subjects:
            detector, learnt = _detector(subject, img_size)
            names.append(_name(subject, detector, names))
            pixels = picture[0].resized(picture[1], detector.config.img_size)[0]
            images = [pixels.to(place)] * batch_size
            own: dict[str, RetinaNet] = {}
            for form in forms:
                made, form_name = _in_form(detector, pixels, form)
                own.setdefault(form_name, made)  # one that came deployed has no other form
            plain: _Run | None = None
            for form_name, made in own.items():
                run = _Run(names[-1], made.to(place).eval(), form_name, learnt, images, plain)
                plain = run if form_name == "as trained" else plain
                runs.append(run)
        for number in tqdm(range(-_WARM_UP, rounds), desc="bench", unit="round", delay=2):
            for run in runs if number % 2 else reversed(runs):
                _take_turn(run, counted=number >= 0)
        rows = [_timing(run) for run in runs]
        card = environment_card(
            device=place, batch_size=batch_size, dataset=picture[0].title, scale=scale
        )
    return DetectorSpeed(
        rows=tuple(rows),
        batch_size=batch_size,
        rounds=rounds,
        command=command,
        environment=card,
    )


def _default_data() -> DetectionDataset:
    return open_detection(default_detection_name(), "val")


def _first_with_boxes(data: DetectionDataset) -> tuple[DetectionDataset, int]:
    for index, boxes in enumerate(data.boxes):
        if len(boxes):
            return data, index
    raise ValueError(f"data: expected an image with boxes, got none in {data.title}")


def _detector(subject: Subject, img_size: int | tuple[int, int] | None) -> tuple[RetinaNet, bool]:
    """A copy of a detector at the wanted size, and whether it has learnt anything."""
    if isinstance(subject, RetinaNet):
        found, learnt = copy.deepcopy(subject), True
    elif isinstance(subject, os.PathLike) or Path(subject).exists():
        found, learnt = load_detector(subject), True
    else:
        with torch.random.fork_rng([]), torch.inference_mode(False):
            torch.manual_seed(0)
            name = subject.removeprefix("timm/")
            found = create_detector(name, num_classes=_NUM_CLASSES, img_size=img_size or IMG_SIZE)
        return found.eval(), False
    if img_size is not None:
        short, long = (img_size, img_size * 5 // 3) if isinstance(img_size, int) else img_size
        found.config = dataclasses.replace(found.config, img_size=(short, long))
        mean, std = found.transform.image_mean, found.transform.image_std
        found.transform = DetectorTransform(short, long, list(mean), list(std))
    return found.eval(), learnt


def _name(subject: Subject, detector: RetinaNet, taken: Sequence[str]) -> str:
    """What a detector's rows go by; numbered where another has the name."""
    found = detector.config.backbone
    if not isinstance(subject, RetinaNet) and Path(subject).exists():
        path = Path(subject).absolute()
        # Weights are called alike in all runs.
        found = path.name if path.is_dir() else f"{path.parent.name}/{path.name}"
    numbered = (f"{found} ({number})" for number in itertools.count(2))
    return next(name for name in itertools.chain([found], numbered) if name not in taken)


def _in_form(detector: RetinaNet, pixels: Tensor, wanted: bool) -> tuple[RetinaNet, str]:
    """The detector, or a copy for inference alone, and what that is called."""
    body = detector.backbone.body
    if isinstance(body, DEPLOYED):
        return detector, "deployed"
    if not wanted:
        return detector, "as trained"
    if isinstance(body, EfficientViT):
        return deploy(detector), "deployed"
    made = copy.deepcopy(detector)
    batch = made.transform([pixels.to(next(body.parameters()).device)])[0]
    made.backbone.body = folded(copy.deepcopy(body), batch.tensors)
    return made, "folded"


def _take_turn(run: _Run, *, counted: bool) -> None:
    detector = run.detector
    parts: dict[str, float] = {}
    found = _by_part(detector, run.images, parts)
    whole: dict[str, float] = {}
    _timed(whole, "whole", detector, lambda: detector(run.images))
    crowded = _every_anchor(found, detector)
    _timed(whole, "full", detector, lambda: _select(detector, crowded, run.images))
    if counted:
        run.parts.append(parts)
        run.whole.append(whole["whole"])
        run.full.append(whole["full"])


def _by_part(detector: RetinaNet, images: list[Tensor], spent: dict[str, float]) -> _Found:
    """The detector's forward pass in its steps; their seconds go into `spent`."""
    names = iter(DETECTOR_PARTS)

    def step(act: Callable[[], Any]) -> Any:
        return _timed(spent, next(names), detector, act)

    batch = step(lambda: detector.transform(list(images))[0])
    maps = step(lambda: detector.backbone.maps(batch.tensors))
    levels = step(lambda: detector.backbone.neck(maps))
    outputs = step(lambda: detector.head(levels))
    found = _Found(outputs, levels, batch)
    step(lambda: _select(detector, found, images))
    return found


def _select(detector: RetinaNet, found: _Found, images: list[Tensor]) -> Any:
    """From the head's outputs to boxes, as torchvision's `RetinaNet.forward` does it."""
    anchors = detector.anchor_generator(found.batch, found.levels)
    per_position = detector.anchor_generator.num_anchors_per_location()
    counts = [
        n * level.shape[-2] * level.shape[-1]
        for n, level in zip(per_position, found.levels, strict=True)
    ]
    outputs = {name: list(values.split(counts, dim=1)) for name, values in found.outputs.items()}
    boxes = [list(own.split(counts)) for own in anchors]
    sizes = found.batch.image_sizes
    given = [(image.shape[-2], image.shape[-1]) for image in images]
    selected = detector.postprocess_detections(outputs, boxes, sizes)
    return detector.transform.postprocess(selected, sizes, given)


def _every_anchor(found: _Found, detector: RetinaNet) -> _Found:
    """The same with one class of every anchor above the threshold, and the anchors as boxes."""
    logits = torch.full_like(found.outputs["cls_logits"], -20.0)
    generator = torch.Generator().manual_seed(0)
    shape = (*logits.shape[:2], 1)
    labels = torch.randint(logits.shape[2], shape, generator=generator)
    lowest = detector.config.score_threshold
    scores = lowest + (1 - lowest) * torch.rand(shape, generator=generator).clamp(1e-3, 1 - 1e-3)
    device = logits.device
    logits.scatter_(2, labels.to(device), scores.logit().to(device, logits.dtype))
    regression = torch.zeros_like(found.outputs["bbox_regression"])
    return dataclasses.replace(
        found, outputs={"cls_logits": logits, "bbox_regression": regression}
    )


def _timed(spent: dict[str, float], name: str, detector: RetinaNet, act: Callable[[], Any]) -> Any:
    device = next(detector.parameters()).device
    began = time.perf_counter()
    result = act()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    spent[name] = time.perf_counter() - began
    return result


def _timing(run: _Run) -> DetectorTiming:
    detector = run.detector
    found = _by_part(detector, run.images, {})
    padded = int(found.batch.tensors.shape[-2]), int(found.batch.tensors.shape[-1])
    macs, params = _costs(detector, padded)
    low, middle, high = quartiles([1e3 * seconds for seconds in run.whole])
    gain: tuple[float | None, ...] = (None, None, None)
    if run.plain is not None:
        gain = quartiles([a / b for a, b in zip(run.plain.whole, run.whole, strict=True)])
    return DetectorTiming(
        model=run.name,
        backbone=detector.config.backbone,
        form=run.form,
        learnt=run.learnt,
        num_classes=detector.num_classes,
        channels=detector.config.channels,
        img_size=padded,
        parts=tuple(
            _part(name, run, macs=macs.get(name, 0), params=params.get(name, 0))
            for name in DETECTOR_PARTS
        ),
        whole_ms=middle,
        whole_ms_low=low,
        whole_ms_high=high,
        img_per_s=1e3 * len(run.images) / middle,
        speedup=gain[1],
        speedup_low=gain[0],
        speedup_high=gain[2],
        candidates=_candidates(found, detector),
        detections=len(_select(detector, found, run.images)[0]["boxes"]),
        full_ms=1e3 * median(run.full),
        full_candidates=_candidates(_every_anchor(found, detector), detector),
    )


def _part(name: str, run: _Run, *, macs: int, params: int) -> DetectorPart:
    low, middle, high = quartiles([1e3 * parts[name] for parts in run.parts])
    share = median(parts[name] / sum(parts.values()) for parts in run.parts)
    return DetectorPart(name, middle, low, high, share, macs, params)


def _costs(detector: RetinaNet, padded: tuple[int, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Multiply-accumulates and parameters by part."""
    counted = count_macs_by_module(detector, padded)
    neck, head = counted["backbone.neck"], counted["head"]
    # Not by the backbone's own path: a pyramid calls its stages, not its forward.
    macs = {"backbone": counted["backbone"] - neck, "neck": neck, "head": head}
    parts = {
        "backbone": detector.backbone.body, "neck": detector.backbone.neck, "head": detector.head,
    }  # fmt: skip
    return macs, {name: count_params(part) for name, part in parts.items()}


def _candidates(found: _Found, detector: RetinaNet) -> int:
    """Boxes of the first image above the threshold, at most so many per level as are taken."""
    per_position = detector.anchor_generator.num_anchors_per_location()
    counts = [
        n * level.shape[-2] * level.shape[-1]
        for n, level in zip(per_position, found.levels, strict=True)
    ]
    above = found.outputs["cls_logits"][0].sigmoid() > detector.config.score_threshold
    return sum(min(int(own.sum()), detector.config.candidates) for own in above.split(counts))

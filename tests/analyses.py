"""Every analysis on small models, images and labels that arithmetic alone makes.

No weight and no pixel comes from a random generator or a mathematical library, so they are the
same with every version of torch and NumPy, on every machine. Shape legend: B images of a batch.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from randomised import SMALL
from red_boxes import COLORS, painted
from torch import Tensor, nn

import evitlab
from evitlab import Dataset, DetectionDataset, Recipe, create_detector, create_model
from evitlab.analysis import matching, operators
from evitlab.analysis.conditions import cpu_threads
from evitlab.records import Roofline
from evitlab.schema import encode

SIDE, CLASSES = 32, 5
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "efficientvit": ("efficientvit_m0_p4", {
        "depth": (1, 1, 1), "embed_dim": (16, 24, 32), "num_heads": (2, 2, 2), "key_dim": (4, 4, 4),
    }),
    "deit": ("deit_t_p4", {"embed_dim": 24, "depth": (2,)}),
    "swin": ("swin_t_p2", {
        "embed_dim": 12, "depth": (2, 1, 1, 1), "num_heads": (3, 3, 3, 3),
    }),
}  # fmt: skip
_PRIME = 65521
# Neither results nor settings: how long it took, and where it ran.
_NOT_COMPARED = {"environment", "seconds", "img_per_s", "self_ms", "plain_ms", "profiled_ms"}


def scattered(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """float64 in [-1, 1), in no visible order: cubes modulo a prime, so every value is exact."""
    n = np.arange(1, int(np.prod(shape)) + 1, dtype=np.int64) + seed
    cubes = n % _PRIME * (n % _PRIME) % _PRIME * (n % _PRIME) % _PRIME
    return torch.from_numpy(cubes * 7919 % _PRIME * (2 / _PRIME) - 1).reshape(shape)


def fill(model: nn.Module) -> nn.Module:
    """Weights and statistics of one magnitude in all layers, by their names and shapes alone."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            values = scattered(tuple(tensor.shape), zlib.crc32(name.encode()) % 10_000)
            if name.endswith("running_var"):
                values = 1 + 0.4 * values
            elif name.endswith(("bn.weight", "norm.weight", "norm1.weight", "norm2.weight")):
                values = (1 + 0.2 * values) * (0.3 if SMALL.search(name) else 1.0)
            elif tensor.ndim == 1:
                values *= 0.2
            elif name.endswith("qkv.weight"):  # else attention is almost even
                values *= (12 / tensor[0].numel()) ** 0.5
            elif not name.endswith(("attention_biases", "pos_embed", "cls_token")):
                values *= (5 / tensor[0].numel()) ** 0.5
            tensor.copy_(values)
    return model.eval()


@dataclass
class Subject:
    """What an analysis is made of; the images can come in another order and in smaller batches."""

    family: str = "efficientvit"
    dtype: torch.dtype = torch.float64
    layout: torch.memory_format = torch.contiguous_format
    order: tuple[int, ...] = (0, 1, 2, 3)
    batch_size: int = 4

    def __post_init__(self) -> None:
        name, options = FAMILIES[self.family]
        model = fill(create_model(name, img_size=SIDE, num_classes=CLASSES, **options))
        self.model: Any = model.to(dtype=self.dtype).to(memory_format=self.layout)
        place = torch.tensor(self.order)
        # Sums of a coarse and a fine pattern, so that a model sees more than noise.
        fine = scattered((4, 3, SIDE, SIDE), 17)
        coarse = scattered((4, 3, 4, 4), 23).repeat_interleave(8, -1).repeat_interleave(8, -2)
        whole = (fine + 2 * coarse)[place]
        self.images = whole.to(self.dtype).contiguous(memory_format=self.layout)
        self.labels = torch.tensor([3, 1, 4, 0])[place]

    @property
    def passes(self) -> int:
        """Images per pass of what makes many of each: few passes, unless batches are small."""
        return 64 if self.batch_size == 4 else 2 * self.batch_size

    @property
    def data(self) -> Dataset:
        """The same images as pixels."""
        return Dataset(
            name="arithmetic", title="arithmetic", split="val",
            images=(self.images * 40 + 128).clamp(0, 255).round().to(torch.uint8).contiguous(),
            labels=self.labels, class_names=tuple("abcde"),
        )  # fmt: skip

    @property
    def batch(self) -> list[tuple[Tensor, Tensor]]:
        return [(self.images, self.labels)]

    def by_image(self, values: Tensor, *, group: int = 1) -> Tensor:
        """In the images' first order, whatever order they came in; `group` rows are an image's."""
        return values.unflatten(0, (-1, group))[torch.tensor(self.order).argsort()].flatten(0, 1)


def plain(record: Any) -> Any:
    """A record as JSON has it, without what differs from run to run."""
    if isinstance(record, Mapping):
        return {k: plain(v) for k, v in record.items() if k not in _NOT_COMPARED}
    if isinstance(record, (list, tuple)):
        return [plain(item) for item in record]
    if hasattr(record, "__dataclass_fields__"):
        return plain(encode(record, type(record).__name__))
    return record


def _logits(subject: Subject) -> dict[str, Any]:
    with torch.no_grad():
        parts = [subject.model(batch) for batch in subject.images.split(subject.batch_size)]
    return {"logits": subject.by_image(torch.cat(parts))}


def _deploy(subject: Subject) -> dict[str, Any]:
    with torch.no_grad():
        logits = evitlab.deploy(subject.model)(subject.images)
    return {"logits": subject.by_image(logits)}


def _capture(subject: Subject) -> dict[str, Any]:
    with torch.no_grad(), evitlab.capture_attention(subject.model) as blocks:
        subject.model(subject.images)
    return {
        block.name: {
            name: subject.by_image(getattr(block, name), group=block.windows)
            for name in ("maps", "queries", "keys", "values", "outputs")
        } | {"kind": block.kind}
        for block in blocks
    }  # fmt: skip


def _heads(subject: Subject, *, per: str = "map") -> Any:
    asked: Any = per
    return plain(evitlab.head_similarity(
        subject.model, subject.images, per=asked, batch_size=subject.batch_size
    ))  # fmt: skip


def _ablate(subject: Subject) -> dict[str, Any]:
    with evitlab.ablate_heads(subject.model, {1: [1], 2: [2]}):
        return _logits(subject)


def _importance(subject: Subject, *, criterion: str = "taylor") -> Any:
    return plain(evitlab.channel_importance(subject.model, subject.batch, criterion=criterion))


def _cuts(subject: Subject) -> Any:
    return plain(evitlab.measure_cuts(subject.model, subject.batch[0]))


def _prune(subject: Subject, **budget: Any) -> Any:
    result = evitlab.prune(subject.model, subject.batch, steps=2, **budget)
    with torch.no_grad():
        logits = subject.by_image(result.model(subject.images))
    return {"record": plain(result.record), "logits": logits}


def _attribute(subject: Subject, *, method: str, **options: Any) -> dict[str, Any]:
    which: Any = method
    found = evitlab.attribute(
        subject.model, subject.images, subject.labels, method=which,
        batch_size=subject.passes, **options,
    )  # fmt: skip
    return {method: subject.by_image(found.nan_to_num(-99.0))}  # NaN: there is no such head


def _completeness(subject: Subject) -> dict[str, Any]:
    """Of a few steps, so that there is an error to speak of."""
    given: Any = {"targets": subject.labels, "batch_size": subject.passes}
    found = evitlab.attribute(
        subject.model, subject.images, method="integrated_gradients", steps=4, **given
    )
    error = evitlab.completeness_error(subject.model, subject.images, found, **given)
    return {"error": subject.by_image(error)}


def _rollout(subject: Subject) -> dict[str, Any]:
    found = evitlab.attention_rollout(
        subject.model, subject.images, batch_size=subject.batch_size
    )
    return {"rollout": subject.by_image(found)}


def _faithfulness(subject: Subject) -> Any:
    """Of one map, its two orders; the random ones are torch's generator's."""
    shown = subject.images.abs().sum(1)
    record = plain(evitlab.deletion_insertion(
        subject.model, subject.images, {"brightness": shown}, subject.labels, steps=4,
        batch_size=subject.passes,
    ))  # fmt: skip
    for curve in record["curves"]:
        for name in ("deletion_areas", "insertion_areas"):
            curve[name] = subject.by_image(torch.tensor(curve[name], dtype=torch.float64))
    record["curves"] = [c for c in record["curves"] if not c["method"].startswith("random")]
    return record


def _profile(subject: Subject) -> Any:
    """Calls, bytes and multiply-accumulates of each category in each part; no times.

    The operators' own names are torch's, which changes them.
    """
    with pytest.MonkeyPatch.context() as patch:
        ceilings = Roofline(2.0, 1.0, 5.0, evitlab.environment_card())
        patch.setattr(operators, "measure_roofline", lambda *_args, **_kwargs: ceilings)
        profile = evitlab.profile_operators(
            subject.model, subject.images, rounds=1, fused_attention=False
        )
    frame = profile.to_frame().groupby(["category", "module"])[["calls", "bytes", "macs"]].sum()
    return {
        f"{category} in {module}": dict(zip(frame.columns, map(int, row), strict=True))
        for (category, module), row in zip(frame.index, frame.to_numpy(), strict=True)
    }


def _cost(subject: Subject) -> Any:
    return {
        "params": evitlab.count_params(subject.model),
        "macs": evitlab.count_macs(subject.model),
        "macs at 48 x 40": evitlab.count_macs(subject.model, (48, 40)),
    }


def _other_size(subject: Subject) -> Any:
    """The tables of attention biases resized to the tokens of larger images."""
    name, options = FAMILIES[subject.family]
    larger = create_model(name, img_size=48, num_classes=CLASSES, **options).to(subject.dtype)
    report = evitlab.load_weights(larger, subject.model.state_dict())
    images = torch.nn.functional.pad(subject.images, (8, 8, 8, 8))
    with torch.no_grad():
        return {"report": plain(report), "logits": subject.by_image(larger.eval()(images))}


def _evaluate(subject: Subject) -> Any:
    model = subject.model.float()  # pixels are normalised in float32
    found = evitlab.predict(model, subject.data, batch_size=subject.batch_size)
    report = evitlab.classification_report(model, subject.data, batch_size=subject.batch_size)
    assert found.losses is not None
    return {
        "accuracy": plain(evitlab.evaluate(model, subject.data, batch_size=subject.batch_size)),
        "ranked": subject.by_image(found.ranked),
        "probabilities": subject.by_image(found.probabilities),
        "losses": subject.by_image(found.losses),
        "report": plain(report),
    }


def _picture(subject: Subject) -> Any:
    at = subject.order.index(0)
    found = evitlab.picture_attributions(
        subject.model.float(), subject.data.images[at], 3, batch_size=subject.passes,
        methods=("attention_rollout", "grad_cam", "occlusion"),
    )
    return {"probability": found.probability, "maps": dict(found.maps), "target": found.target}


def _matched(subject: Subject) -> Any:
    """Which width is chosen, by a clock on which a model's time is its number of weights."""

    def by_cost(calls: Mapping[str, Any], *, rounds: int) -> dict[str, list[float]]:
        costs = {name: cost[id(call)] for name, call in calls.items()}
        return {name: [count * 1e-6] * rounds for name, count in costs.items()}

    cost: dict[int, int] = {}

    def call(model: nn.Module, images: Tensor) -> Callable[[], object]:
        made = lambda: None  # noqa: E731
        cost[id(made)] = evitlab.count_params(model)
        kept.append(made)
        return made

    kept: list[object] = []  # so that no id is given twice
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "_call", call)
        patch.setattr(matching, "interleave", by_cost)
        return plain(evitlab.match_throughput(
            "deit_t_p4", speedup=1.25, rounds=2, img_size=SIDE, embed_dim=24, depth=(2,),
            device="cpu",
        ))  # fmt: skip


def _trained(subject: Subject, folder: Any) -> Any:
    """Two epochs of two steps from weights that are given, nothing left to chance but the order.

    With AdamW's usual `eps` a gradient next to zero moves its weight as far as a large one, to the
    side that rounding decides; with a large one steps are in proportion.
    """
    recipe = Recipe(epochs=2, batch_size=2, lr=1e-2, eps=0.1, flip=0.0, precision="float32")
    model = subject.model.float()
    record = evitlab.train(
        model, subject.data, subject.data, recipe, out_dir=folder, device="cpu"
    )
    with torch.no_grad():
        logits = subject.by_image(model.eval()(subject.images.float()))
    history = [{"train_loss": log.train_loss, "val_loss": log.val_loss} for log in record.history]
    return {"history": history, "logits": logits}


@dataclass
class Pictures:
    """Reads encoded pictures from memory."""

    files: list[bytes]

    def __call__(self, index: int, /) -> tuple[bytes, str]:
        return self.files[index], f"{index}.png"

    def for_random_access(self) -> Pictures:
        return self


def painted_pictures() -> DetectionDataset:
    """Two grey pictures with coloured rectangles, in memory."""
    boxes = [(("red", (8, 10, 40, 50)), ("blue", (50, 20, 88, 44))), (("red", (30, 5, 70, 60)),)]
    files = []
    for found in boxes:
        buffer = BytesIO()
        painted(96, 64, *found).save(buffer, format="PNG")
        files.append(buffer.getvalue())
    tensors = [torch.tensor([box for _, box in found], dtype=torch.float32) for found in boxes]
    return DetectionDataset(
        name="painted", title="painted", split="val", class_names=tuple(COLORS),
        category_ids=(3, 7), image_ids=(11, 12), files=("11.png", "12.png"),
        img_sizes=((64, 96),) * 2, boxes=tuple(tensors),
        labels=(torch.tensor([0, 1]), torch.tensor([0])),
        crowd=tuple(torch.zeros(len(found), dtype=torch.bool) for found in boxes),
        areas=tuple((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in tensors),
        read=Pictures(files),
    )  # fmt: skip


def detector() -> Any:
    model = create_detector(
        "efficientvit_m0", num_classes=2, img_size=(64, 96), channels=16,
        class_names=tuple(COLORS), category_ids=(3, 7),
    )  # fmt: skip
    return fill(model)


def _detection(subject: Subject) -> Any:
    data, model = painted_pictures(), detector()
    found = evitlab.predict_boxes(model, data, batch_size=min(subject.batch_size, 2))
    return {
        "boxes": [one.boxes for one in found],
        "scores": [one.scores for one in found],
        "labels": [one.labels for one in found],
        "ap": plain(evitlab.evaluate_detector(model, data)),
        "anchors": plain(evitlab.place_anchors(model, data)),
    }


def _box_ap(subject: Subject) -> Any:
    """Boxes that drift away from the truth, so that AP falls with the overlap asked for."""
    truth: dict[str, Any] = {
        "images": [{"id": i, "width": 200, "height": 200} for i in range(4)],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [
            {"id": 1 + i, "image_id": i // 3, "category_id": 1 + i % 2,
             "bbox": [10 * i, 12 * i, 20 + 8 * i, 30 + 6 * i]}
            for i in range(12)
        ],
    }  # fmt: skip
    results = [
        {"image_id": one["image_id"], "category_id": one["category_id"],
         "bbox": [one["bbox"][0] + one["id"], *one["bbox"][1:]], "score": 1 - one["id"] / 20}
        for one in truth["annotations"][:-2]
    ]  # fmt: skip
    return plain(evitlab.box_ap(truth, results))


Analysis = Callable[..., Any]
ANALYSES: dict[str, Analysis] = {
    "ablate_heads": _ablate,
    "attention_rollout": _rollout,
    "attribute": _attribute,
    "box_ap": _box_ap,
    "capture_attention": _capture,
    "channel_importance": _importance,
    "completeness_error": _completeness,
    "count_macs": _cost,
    "deletion_insertion": _faithfulness,
    "deploy": _deploy,
    "evaluate": _evaluate,
    "head_similarity": _heads,
    "load_weights": _other_size,
    "logits": _logits,
    "match_throughput": _matched,
    "measure_cuts": _cuts,
    "picture_attributions": _picture,
    "predict_boxes": _detection,
    "profile_operators": _profile,
    "prune": _prune,
    "trace_block": lambda subject: plain(evitlab.trace_block(subject.model)),
    "train": _trained,
}


def differences(found: Any, expected: Any, tolerance: float, where: str = "") -> list[str]:
    """Where two results differ: numbers by more than a share of the largest of their list.

    Args:
        found: records, tensors, lists, numbers, text.
        expected: of the same form.
        tolerance: for floating point; integers and text have to be equal.
        where: in front of each line.
    """
    if isinstance(expected, Mapping) or isinstance(found, Mapping):
        if set(found) != set(expected):
            return [f"{where}: expected {sorted(expected)}, got {sorted(found)}"]
        pairs = [(f"{where}.{key}", found[key], expected[key]) for key in expected]
    elif (theirs := _numbers(expected)) is not None:
        ours = _numbers(found)
        if ours is None or ours.shape != theirs.shape:
            return [f"{where}: expected shape {theirs.shape}, got {getattr(ours, 'shape', found)}"]
        if theirs.dtype.kind in "bi" and ours.dtype.kind in "bi":
            wrong = int((ours != theirs).sum())
            return [f"{where}: {wrong} of {ours.size} values differ: {ours}"] if wrong else []
        scale = float(np.abs(theirs).max(initial=0.0)) or 1.0
        error = float(np.abs(ours - theirs).max(initial=0.0)) / scale
        return [] if error <= tolerance else [f"{where}: off by {error:.1e} of its largest value"]
    elif isinstance(expected, (list, tuple)):
        if len(found) != len(expected):
            return [f"{where}: expected {len(expected)} items, got {len(found)}"]
        pairs = [(f"{where}[{i}]", *two) for i, two in enumerate(zip(found, expected, strict=True))]
    else:
        return [] if found == expected else [f"{where}: expected {expected!r}, got {found!r}"]
    return [line for name, a, b in pairs for line in differences(a, b, tolerance, name)]


def _numbers(value: Any) -> np.ndarray | None:
    """An array, where a value is nothing but numbers."""
    if isinstance(value, Tensor):
        value = value.detach().numpy()
    if isinstance(value, (bool, str)) or value is None or isinstance(value, Mapping):
        return None
    try:
        made = np.asarray(value)
    except ValueError:  # lists of several lengths
        return None
    if made.dtype.kind == "u":
        made = made.astype(np.int64)
    return made if made.dtype.kind in "bif" else None


def run(analysis: str, subject: Subject, *, threads: int = 1, **options: Any) -> Any:
    """One analysis, on one thread as the golden files have it."""
    with cpu_threads(threads):
        return ANALYSES[analysis](subject, **options)

"""RetinaNet on any of these backbones: one stage, five levels, anchors everywhere.

Head, anchors, losses and suppression are torchvision's; the neck is the official one, which a
backbone of stride 16 needs: a transposed convolution makes the level of stride 8.

Paper: Table 5; the official downstream code says how.

Shape legend: B images, C channels, H x W pixels of a padded batch, K classes, n boxes of an image;
boxes are (x1, y1, x2, y2) in pixels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import box_iou

from evitlab.models.card import check_size, read_card
from evitlab.models.config import EfficientViTConfig
from evitlab.models.efficientvit import EfficientViT
from evitlab.models.image_size import resized_size
from evitlab.models.pyramid import STRIDES, Pyramid, build_body, build_timm
from evitlab.models.starting import weights_card
from evitlab.models.weights import load_weights
from evitlab.models.zoo import MODELS, normalization

OCTAVE_SCALE, SCALES_PER_OCTAVE = 4, 3
ASPECT_RATIOS = (0.5, 1.0, 2.0)  # height over width
DIVISOR = 32  # of the sides of a padded batch
# Fields of a backbone's configuration that its detector sets anew.
_OF_NO_EFFECT = {"img_size", "num_classes", "drop_path_rate", "distilled"}


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """What defines a detector beside its weights."""

    backbone: str  # a model of the family, or one of timm that gives features
    num_classes: int
    img_size: tuple[int, int] = (800, 1333)  # short side; long side at most
    channels: int = 256  # of neck and head
    score_threshold: float = 0.05  # of what is considered at all
    nms_iou: float = 0.5  # two boxes of a class that overlap more are one object
    max_detections: int = 100  # per image
    candidates: int = 1000  # per level, before suppression

    def __post_init__(self) -> None:
        if not isinstance(self.img_size, tuple) or len(self.img_size) != 2:
            raise ValueError(
                f"img_size: expected (short side, long side at most), got {self.img_size!r}"
            )
        whole = (self.num_classes, *self.img_size, self.channels, self.max_detections)
        names = ("num_classes", "img_size", "img_size", "channels", "max_detections")
        for name, value in zip(names, whole, strict=True):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected integers of at least 1, got {value!r}")
        if self.img_size[0] < DIVISOR or self.img_size[1] < self.img_size[0]:
            raise ValueError(
                f"img_size: expected (short side, long side at most) from {DIVISOR} pixels, got "
                f"{self.img_size}"
            )
        for name in ("score_threshold", "nms_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected 0 to 1, got {getattr(self, name)!r}")


def create_detector(
    backbone_name: str,
    *,
    num_classes: int,
    img_size: int | tuple[int, int] = (800, 1333),
    channels: int = 256,
    weights: str | os.PathLike[str] | Mapping[str, Tensor] | None = None,
    class_names: Sequence[str] = (),
    category_ids: Sequence[int] = (),
) -> RetinaNet:
    """Build a RetinaNet.

    Args:
        backbone_name: an EfficientViT of `list_models()`, or any model of timm that gives
            maps [B, C, H, W] of several strides for images of any size.
        num_classes: of the boxes; there is no class for the background.
        img_size: (short side, long side at most) in pixels that images are brought to; an int
            is the short side, and 5/3 of it the long one.
        channels: of neck and head; the paper's detector has 256.
        weights: of the backbone: as in `load_weights`, its classifier left out; "timm" for the
            hub's. Those of a detector are taken whole, but for the scores of other classes; where
            `class_names` is empty and the count fits, its classes are these.
        class_names: one per class, kept with the weights.
        category_ids: the data set's own number of each class.

    Raises:
        ValueError: no such backbone, one without maps of a stride of 8 to 128, values that do not
            fit, or weights of another model.
        FileNotFoundError: no such weights.

    Paper: Table 5, RetinaNet with EfficientViT-M4: 32.7 AP on COCO after 12 epochs.
    """
    if isinstance(img_size, int):
        img_size = img_size, img_size * 5 // 3
    config = DetectorConfig(
        backbone=backbone_name,
        num_classes=num_classes,
        img_size=tuple(img_size),  # type: ignore[arg-type]
        channels=channels,
    )
    for name, given in (("class_names", class_names), ("category_ids", category_ids)):
        if given and len(given) != num_classes:
            raise ValueError(f"{name}: expected one for each of {num_classes}, got {len(given)}")
    detector = RetinaNet(config)
    detector.class_names, detector.category_ids = tuple(class_names), tuple(category_ids)
    if weights is not None:
        _load(detector, weights)
    return detector


def load_detector(path: str | os.PathLike[str]) -> RetinaNet:
    """Rebuild a detector from weights that training wrote, in evaluation mode.

    Args:
        path: a .safetensors file or a training run's folder.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: not a detector of this library, or damaged.
    """
    card = read_card(path)
    if card.get("task") != "detection":
        raise ValueError(
            f"{path}: expected a detector's weights, got those of the classifier "
            f"{card['architecture']}; it can be a detector's backbone (weights=, --weights)"
        )
    known = {field.name for field in fields(DetectorConfig)}
    values = {key: value for key, value in card["config"].items() if key in known}
    try:
        config = DetectorConfig(**{**values, "img_size": tuple(values["img_size"])})
        category_ids = tuple(map(int, card.get("category_ids", ())))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected a detector's card, got a damaged one") from error
    check_size(path, lambda: RetinaNet(config))
    detector = RetinaNet(config)
    load_weights(detector, path)
    detector.class_names = tuple(card["class_names"])
    detector.category_ids = category_ids
    return detector.eval()


class RetinaNet(TorchvisionRetinaNet):
    """Images in, boxes out; in training mode, the losses.

    Called with a list of [3, H, W] images of any sizes, uint8 or float from 0 to 1. Evaluation
    gives a dict for each image: `boxes` [n, 4] in its own pixels, `scores` [n] falling, `labels`
    int64 [n], from 0. Training takes as second argument a dict for each image, `boxes` [n, 4] of
    positive area and `labels`, and gives `classification` (focal, gamma 2, alpha 0.25) and
    `bbox_regression` (L1), each a mean over images of sums over anchors, divided by how many of
    them have an object.

    Attributes:
        backbone: `body`, the backbone proper, and `neck`.
        head: two towers of four convolutions, shared by all levels.
        config: what defines it.

    Paper: Table 5; Lin et al., "Focal Loss for Dense Object Detection" (2017).
    Pitfall: mmdetection divides by the objects' anchors of the whole batch, and its anchors are not
    rounded to whole pixels, so losses differ a little from the official ones. BatchNorm and the
    convolutions of head and neck see the padding of a batch.
    """

    def __init__(self, config: DetectorConfig, body: nn.Module | None = None) -> None:
        """`body`: a backbone that is there already; None builds `config.backbone`."""
        body = body if body is not None else build_body(config.backbone)
        short, long = config.img_size
        mean, std = normalization(body)
        super().__init__(
            Pyramid(body, config.channels),
            config.num_classes,
            anchor_generator=LevelAnchors(),
            score_thresh=config.score_threshold,
            nms_thresh=config.nms_iou,
            detections_per_img=config.max_detections,
            topk_candidates=config.candidates,
        )
        self.transform = DetectorTransform(short, long, list(mean), list(std))
        self.config = config
        self.class_names: tuple[str, ...] = ()
        self.category_ids: tuple[int, ...] = ()

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The card that goes with the weights, in timm's terms."""
        mean, std = self.transform.image_mean, self.transform.image_std
        return {
            "task": "detection",
            "architecture": f"retinanet_{self.config.backbone}",
            "input_size": (3, *self.config.img_size),
            "num_classes": self.num_classes,
            "mean": tuple(mean),
            "std": tuple(std),
            "category_ids": self.category_ids,
        }

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if "attention_biases" in name}

    def forward_dense(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images [B, 3, H, W] -> each anchor's `cls_logits` [B, anchors, K] and
        `bbox_regression` [B, anchors, 4]: all but the selection of boxes."""
        return self.head(list(self.backbone(images).values()))

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
    ) -> dict[str, Tensor]:
        """As torchvision's, but in float32 also under autocast, and without the background of
        anchors that are centred on padding: an image's loss does not depend on the others'
        sizes."""
        outputs = {name: values.float() for name, values in head_outputs.items()}
        matches = []
        for target, own in zip(targets, anchors, strict=True):
            if len(target["boxes"]):
                found = self.proposal_matcher(box_iou(target["boxes"], own))
            else:
                found = torch.full_like(own[:, 0], Matcher.BELOW_LOW_THRESHOLD, dtype=torch.int64)
            centres = (own[:, :2] + own[:, 2:]) / 2
            padded = (centres >= target["size"].flip(0)).any(1)
            unmatched = found == Matcher.BELOW_LOW_THRESHOLD
            matches.append(found.masked_fill(padded & unmatched, Matcher.BETWEEN_THRESHOLDS))
        losses: dict[str, Tensor] = self.head.compute_loss(targets, outputs, anchors, matches)
        return losses

    def train(self, mode: bool = True) -> RetinaNet:
        for part in self.children():  # a deployed backbone refuses before anything is changed
            part.train(mode)
        self.training = mode
        return self


class LevelAnchors(AnchorGenerator):
    """Nine anchors at each position of each level: three sizes, three shapes.

    Unlike torchvision's, which divides the batch's sides by the map's, it knows the strides: those
    of coarse levels come out too small where a side is no multiple of 128.
    """

    def __init__(self) -> None:
        sizes = tuple(
            tuple(
                OCTAVE_SCALE * stride * 2 ** (i / SCALES_PER_OCTAVE)
                for i in range(SCALES_PER_OCTAVE)
            )
            for stride in STRIDES
        )
        super().__init__(sizes, (ASPECT_RATIOS,) * len(STRIDES))

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Anchors [n, 4] of each image of the batch, level after level; they are all the same."""
        like = feature_maps[0]
        # Half precision has no exact numbers for all pixels of a large image.
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.set_cell_anchors(dtype, like.device)
        grids = [list(level.shape[-2:]) for level in feature_maps]
        strides = [[torch.tensor(stride, device=like.device)] * 2 for stride in STRIDES]
        anchors = torch.cat(self.grid_anchors(grids, strides))
        return [anchors for _ in image_list.image_sizes]


class DetectorTransform(GeneralizedRCNNTransform):
    """Images of any size and type -> one normalised, padded batch; boxes there and back.

    Unlike torchvision's it resizes with antialiasing, takes uint8, leaves images alone that have
    the size already, and notes in each target the `size` (height, width) before padding.
    """

    def __init__(
        self, short: int, long: int, image_mean: list[float], image_std: list[float]
    ) -> None:
        super().__init__(short, long, image_mean, image_std, size_divisible=DIVISOR)
        self.img_size = short, long

    def normalize(self, image: Tensor) -> Tensor:
        return super().normalize(image.float() / 255 if image.dtype == torch.uint8 else image)

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        before = image.shape[-2], image.shape[-1]
        after = resized_size(*before, self.img_size)
        if after != before:
            image = F.interpolate(
                image[None], size=after, mode="bilinear", antialias=True, align_corners=False
            )[0]
        if target is not None:
            boxes = target["boxes"]
            if after != before:
                boxes = resize_boxes(boxes, list(before), list(after))
            target = {**target, "boxes": boxes, "size": torch.tensor(after, device=image.device)}
        return image, target


def _load(
    detector: RetinaNet, weights: str | os.PathLike[str] | Mapping[str, Tensor]
) -> None:
    """Weights of a detector, or of a classifier for the backbone."""
    body, name = detector.backbone.body, detector.config.backbone
    if isinstance(weights, Mapping):
        if any(key.startswith("backbone.") for key in weights):
            _load_detector(detector, weights, {})
        else:
            _load_backbone(body, weights)
    elif weights == "timm" and not isinstance(MODELS.get(name), EfficientViTConfig):
        body.load_state_dict(build_timm(name, pretrained=True).state_dict())
    else:
        card = weights_card(weights) or {}
        if card.get("task") == "detection":
            _load_detector(detector, weights, card)
        else:
            _check_same_function(body, name, card)
            _load_backbone(body, weights)


def _load_detector(
    detector: RetinaNet, weights: str | os.PathLike[str] | Mapping[str, Tensor], card: Mapping
) -> None:
    """A detector's weights; what scores classes stays as drawn where it learned others."""
    names = tuple(card.get("class_names", ()))
    if not detector.class_names and card.get("num_classes") == detector.num_classes:
        detector.class_names, detector.category_ids = names, tuple(card.get("category_ids", ()))
    layer = detector.head.classification_head.cls_logits
    drawn = {name: value.clone() for name, value in layer.state_dict().items()}
    report = load_weights(detector, weights, strict=False)
    wrong = [key for key in report.mismatched if "cls_logits" not in key]
    if report.missing or report.unexpected or wrong:
        load_weights(detector, weights)  # says what does not fit
    if names and names != detector.class_names:
        layer.load_state_dict(drawn)


def _load_backbone(
    body: nn.Module, weights: str | os.PathLike[str] | Mapping[str, Tensor]
) -> None:
    report = load_weights(body, weights, strict=False)
    # Of timm's networks everything behind the last map is left out, whatever its name.
    ours = isinstance(body, EfficientViT)
    strange = [key for key in report.unexpected if ours and not key.startswith("head")]
    if report.missing or report.mismatched or strange:
        load_weights(body, weights)  # says what does not fit


def _check_same_function(body: nn.Module, name: str, card: Mapping[str, Any]) -> None:
    """Raise a ValueError where a card is of a network that computes something else with weights of
    the same shapes: other strides, heads that do not cascade."""
    if not card:
        return
    architecture = str(card["architecture"])
    if architecture != name.removeprefix("timm/"):
        raise ValueError(
            f"weights: expected those of {name}, got {architecture}; name that backbone instead"
        )
    if isinstance(body, EfficientViT):
        own = asdict(body.config)
        for key in own.keys() - _OF_NO_EFFECT:
            given = card["config"].get(key, own[key])
            if (tuple(given) if isinstance(given, list) else given) != own[key]:
                raise ValueError(
                    f"weights: expected a backbone with {key}={own[key]}, got {key}={given}"
                )

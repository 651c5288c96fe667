"""The detector: levels, anchors, boxes on images of any size, deployment, weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from small_runs import one_line
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from evitlab import count_macs, create_model, deploy, load_model, save_weights
from evitlab.models.detector import (
    LevelAnchors,
    RetinaNet,
    create_detector,
    load_detector,
)
from evitlab.models.image_size import resized_size
from evitlab.models.pyramid import STRIDES, Neck

BACKBONES = ("efficientvit_m0", "efficientvit_m4", "efficientvit_m0_p4", "mobilenetv2_100")
SIZES = ((150, 260), (90, 40), (64, 64))  # neither is a multiple of a window or of a stride


def detector(name: str = "efficientvit_m0", seed: int = 0, **changes: Any) -> RetinaNet:
    """A small one whose norms are as after some training, and that finds boxes."""
    torch.manual_seed(seed)
    changes = {"num_classes": 3, "img_size": (96, 160), "channels": 32, **changes}
    model = create_detector(name, **changes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
    for tower in (model.head.classification_head, model.head.regression_head):
        for module in tower.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    nn.init.constant_(model.head.classification_head.cls_logits.bias, -3.0)
    return model.eval()


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size, generator=generator) for size in sizes or SIZES]


def targets(*boxes: list[list[float]]) -> list[dict[str, Tensor]]:
    return [
        {
            "boxes": torch.tensor(own).reshape(-1, 4),
            "labels": torch.zeros(len(own), dtype=torch.int64),
        }
        for own in boxes
    ]


@pytest.mark.parametrize("name", BACKBONES)
def test_levels_have_strides_8_to_128(name: str) -> None:
    with torch.no_grad():
        levels = list(detector(name).backbone(torch.rand(1, 3, 160, 96)).values())
    assert len(levels) == len(STRIDES)
    for level, stride in zip(levels, STRIDES, strict=True):
        assert level.shape == (1, 32, -(-160 // stride), -(-96 // stride))


def test_the_papers_neck_has_one_transposed_convolution() -> None:
    """M4's maps have the strides 16, 32 and 64, so 8 is made of 16, and 128 of 64."""
    neck = detector("efficientvit_m4").backbone.neck
    assert (len(neck.lateral), len(neck.finer), neck.coarser) == (3, 1, 1)
    assert [conv.in_channels for conv in neck.lateral] == [128, 256, 384]
    assert neck.finer[0].stride == (2, 2)


def test_a_neck_by_hand() -> None:
    """One channel, all weights one, no biases: each level is a sum that can be told by hand."""
    neck: Any = Neck([1, 1], [16, 32], 1)
    for conv in (*neck.lateral, *neck.output):
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
        middle = conv.kernel_size[0] // 2
        conv.weight.data[..., middle, middle] = 1
    nn.init.ones_(neck.finer[0].weight)
    nn.init.zeros_(neck.finer[0].bias)
    fine, coarse = torch.arange(16.0).view(1, 1, 4, 4), 100 * torch.ones(1, 1, 2, 2)
    levels = neck([fine, coarse])
    assert [tuple(level.shape[2:]) for level in levels] == [(8, 8), (4, 4), (2, 2), (1, 1), (1, 1)]
    torch.testing.assert_close(levels[1], fine + 100)
    doubled = (fine + 100).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(levels[0], doubled)
    torch.testing.assert_close(levels[2], coarse)
    assert levels[3].item() == levels[4].item() == 100


def test_anchors_by_hand() -> None:
    """Octave scale 4, three scales, three shapes; centred on the positions of an exact stride."""
    maps = [torch.zeros(1, 1, -(-200 // stride), -(-72 // stride)) for stride in STRIDES]
    (anchors,) = LevelAnchors()(ImageList(torch.zeros(1, 3, 200, 72), [(200, 72)]), maps)
    counts = [9 * level.shape[2] * level.shape[3] for level in maps]
    assert len(anchors) == sum(counts)
    first = anchors[:9]  # at the origin, stride 8: 32, 40.3 and 50.8 pixels
    assert (first[:, :2] == -first[:, 2:]).all()
    square = (first[:, 2] - first[:, 0])[3:6]
    torch.testing.assert_close(square, torch.tensor([32.0, 40, 50]))  # whole pixels, to each side
    for level, (begin, stride) in enumerate(
        zip(torch.tensor([0, *counts[:-1]]).cumsum(0).tolist(), STRIDES, strict=True)
    ):
        across = maps[level].shape[3]
        centres = (anchors[:, :2] + anchors[:, 2:]) / 2
        if across > 1:
            assert (centres[begin + 9] - centres[begin]).tolist() == [stride, 0]
        if maps[level].shape[2] > 1:
            assert (centres[begin + 9 * across] - centres[begin]).tolist() == [0, stride]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),  # the short side decides
        ((1000, 4000), (333, 1333)),  # the long one does
        ((4000, 1000), (1333, 333)),
        ((20, 30), (800, 1200)),  # small ones grow
        ((1, 5000), (1, 1333)),
    ],
)
def test_size_after_resizing_by_hand(size: tuple[int, int], expected: tuple[int, int]) -> None:
    found = resized_size(*size, (800, 1333))
    assert found == expected
    assert resized_size(*found, (800, 1333)) == found or min(found) == 1  # stays as it is


def test_boxes_come_in_each_images_own_pixels() -> None:
    model = detector()
    with torch.no_grad():
        found = model(images())
    assert len(found) == len(SIZES)
    for result, (height, width) in zip(found, SIZES, strict=True):
        boxes, scores, labels = (result[name] for name in ("boxes", "scores", "labels"))
        assert 0 < len(boxes) <= 100 and (scores.diff() <= 0).all()
        assert (boxes >= 0).all() and (boxes[:, 0::2] <= width).all()
        assert (boxes[:, 1::2] <= height).all()
        assert set(labels.tolist()) <= {0, 1, 2}


def test_bytes_and_shares_of_one_are_the_same_image() -> None:
    model, pixels = detector(), torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    with torch.no_grad():
        bytes_, shares = model([pixels])[0], model([pixels.float() / 255])[0]
    torch.testing.assert_close(bytes_, shares)


def test_images_of_the_right_size_are_not_touched() -> None:
    transform = detector().transform
    image = images((96, 128))[0]
    batch, _ = transform([image])
    mean = torch.tensor(transform.image_mean).view(3, 1, 1)
    std = torch.tensor(transform.image_std).view(3, 1, 1)
    torch.testing.assert_close(batch.tensors[0], (image - mean) / std)
    assert batch.tensors.shape[2:] == (96, 128)


def test_resizing_averages_what_it_leaves_out() -> None:
    """A chequerboard of single pixels becomes grey, which picking pixels would not make it."""
    board = (torch.arange(960)[:, None] + torch.arange(960)).remainder(2).float().expand(3, -1, -1)
    resized, _ = detector().transform.resize(board)
    assert resized.shape == (3, 96, 96)
    assert (resized - 0.5).abs().max() < 0.01


def test_losses_by_what_is_there() -> None:
    model = detector().train()
    losses = model(images(), targets([[10, 10, 80, 90]], [], [[5, 5, 60, 60], [0, 0, 20, 30]]))
    assert losses.keys() == {"classification", "bbox_regression"}
    sum(losses.values()).backward()
    assert all(weight.grad is not None for weight in model.parameters())
    empty = model(images(), targets([], [], []))
    assert empty["bbox_regression"].item() == 0 < empty["classification"].item()


def test_padding_is_no_background() -> None:
    """Beside a wide image, more anchors lie on the tall one's padding; its own loss is the same.

    All weights of the head are zero, so no output depends on what the convolutions see there.
    """
    model = detector(img_size=(64, 128)).train()
    for weight in model.head.parameters():
        nn.init.zeros_(weight)
    wide, tall = images((64, 128), (128, 64))
    boxes = targets([[10, 10, 60, 50]], [[5, 30, 60, 90]])
    alone = [model([image], [box]) for image, box in zip((wide, tall), boxes, strict=True)]
    together = model([wide, tall], boxes)
    for name, loss in together.items():
        expected = (alone[0][name] + alone[1][name]) / 2
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
        assert loss > 0


def test_half_precision_maps_have_exact_anchors() -> None:
    """bfloat16 holds eight bits: coordinates above 256 would be even numbers."""
    maps = [torch.zeros(1, 1, -(-96 // stride), -(-600 // stride)) for stride in STRIDES]
    batch = ImageList(torch.zeros(1, 3, 96, 600), [(96, 600)])
    (exact,) = LevelAnchors()(batch, maps)
    (found,) = LevelAnchors()(batch, [level.bfloat16() for level in maps])
    assert found.dtype == torch.float32
    assert torch.equal(found, exact)


def test_losses_are_worked_out_in_single_precision() -> None:
    model = detector().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(images(), targets([[10, 10, 80, 90]], [], []))
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


@pytest.mark.parametrize("name", [name for name in BACKBONES if name.startswith("efficientvit")])
def test_deployed_backbone_finds_the_same_boxes(name: str) -> None:
    model, given = detector(name), images()
    deployed = deploy(model)
    assert isinstance(deployed, RetinaNet) and deployed.config == model.config
    assert type(deployed.backbone.body) is not type(model.backbone.body)
    with torch.no_grad():
        before, after = model(given), deployed(given)
    assert sum(len(result["boxes"]) for result in before) > 20
    for own, other, size in zip(before, after, SIZES, strict=True):
        assert own["labels"].tolist() == other["labels"].tolist()
        torch.testing.assert_close(own["scores"], other["scores"], rtol=0, atol=1e-4)
        of_the_image = [boxes / max(size) for boxes in (own["boxes"], other["boxes"])]
        torch.testing.assert_close(*of_the_image, rtol=0, atol=1e-4)
    assert deploy(deployed) is deployed
    assert not any(isinstance(part, nn.BatchNorm2d) for part in deployed.modules())


def test_stage_maps_are_equal_after_deployment() -> None:
    body = detector("efficientvit_m4").backbone.body
    given = torch.rand(2, 3, 96, 160)
    with torch.no_grad():
        before, after = body.forward_stages(given), deploy(body).forward_stages(given)
    assert [tuple(level.shape) for level in before] == [
        (2, 128, 6, 10), (2, 256, 3, 5), (2, 384, 2, 3)
    ]  # fmt: skip
    for own, other in zip(before, after, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-5 * own.abs().max().item())
    torch.testing.assert_close(before[-1], body.forward_features(given))


def test_a_deployed_detector_only_infers() -> None:
    deployed = deploy(detector())
    with pytest.raises(ValueError, match="only infers"):
        deployed.train()
    assert not deployed.training and not deployed.head.training


def test_backbones_of_others_are_not_deployed() -> None:
    with pytest.raises(ValueError) as raised:
        deploy(detector("mobilenetv2_100"))
    assert one_line(raised).startswith("model: expected an EfficientViT")


def test_weights_rebuild_the_detector(tmp_path: Path) -> None:
    model = detector(class_names=("a", "b", "c"), category_ids=(1, 7, 90))
    path = save_weights(model, tmp_path / "m.safetensors", class_names=model.class_names)
    again = load_detector(path)
    assert again.config == model.config and not again.training
    assert (again.class_names, again.category_ids) == (("a", "b", "c"), (1, 7, 90))
    with torch.no_grad():
        torch.testing.assert_close(again(images()), model(images()))


def test_a_classifiers_weights_become_the_backbone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    classifier = create_model("efficientvit_m0", num_classes=7)
    path = save_weights(classifier, tmp_path / "m0.safetensors")
    model = create_detector("efficientvit_m0", num_classes=2, weights=path)
    found, given = model.backbone.body.state_dict(), classifier.state_dict()
    tables = [key for key in found if "attention_biases" in key]
    for key, value in found.items():
        if key not in tables:
            assert torch.equal(value, given[key]), key
    last = given["stages.2.blocks.0.mixer.m.attn.attention_biases"]
    assert last.shape == (4, 16)  # 4 x 4 at 224 pixels
    assert found["stages.2.blocks.0.mixer.m.attn.attention_biases"].shape == (4, 49)


def test_macs_are_those_of_backbone_neck_and_head() -> None:
    """The head: two towers of four 3 x 3 convolutions and their outputs, at every position."""
    model = detector(channels=8, img_size=(128, 128))
    positions = sum((128 // stride) ** 2 for stride in STRIDES)
    head = positions * 9 * 8 * (2 * 4 * 8 + 9 * 3 + 9 * 4)
    assert count_macs(model) == count_macs(model.backbone, (128, 128)) + head


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "efficientvit_m9"}, "backbone_name: expected an EfficientViT or a model of timm"),
        ({"name": "deit_t"}, "backbone_name: expected"),
        ({"num_classes": 0}, "num_classes: expected integers of at least 1, got 0"),
        ({"name": "vit_tiny_patch16_224"}, "backbone_name: expected a model that gives maps"),
        ({"name": "swin_tiny_patch4_window7_224"}, "backbone_name: expected a model that gives"),
        ({"img_size": (64,)}, "img_size: expected (short side, long side at most), got (64,)"),
        ({"img_size": (16, 100)}, "img_size: expected (short side, long side at most)"),
        ({"img_size": (200, 100)}, "img_size: expected (short side, long side at most)"),
        ({"channels": 0}, "channels: expected integers of at least 1, got 0"),
        ({"class_names": ("a",)}, "class_names: expected one for each of 3, got 1"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        detector(**change)
    assert one_line(raised).startswith(message)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = save_weights(detector("efficientvit_m4").backbone.body, tmp_path / "m4.safetensors")
    with pytest.raises(ValueError, match="expected those of efficientvit_m0, got efficientvit_m4"):
        create_detector("efficientvit_m0", num_classes=2, weights=path)
    with pytest.raises(ValueError, match="does not fit the model"):
        create_detector(
            "efficientvit_m0", num_classes=2, weights=create_model("efficientvit_m4").state_dict()
        )
    # Weights of the same shapes that mean something else.
    apart = save_weights(create_model("efficientvit_m0", cascade=False), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="a backbone with cascade=True, got cascade=False"):
        create_detector("efficientvit_m0", num_classes=2, weights=apart)
    with pytest.raises(ValueError, match="got efficientvit_m0_p4; name that backbone instead"):
        create_detector("efficientvit_m0", num_classes=2, weights="efficientvit_m0_cifar10")


@pytest.mark.parametrize("name", ["mobilenetv2_100", "resnet18"])
def test_a_peers_classifier_becomes_the_backbone(tmp_path: Path, name: str) -> None:
    classifier = timm.create_model(name, num_classes=5)
    path = save_weights(classifier, tmp_path / "peer.safetensors")
    held = classifier.state_dict()
    for weights in (path, held):
        body = create_detector(name, num_classes=2, weights=weights).backbone.body
        for key, value in body.state_dict().items():
            assert torch.equal(value, held[key]), key


@pytest.mark.parametrize("names", [("a", "b", "c"), ("a", "b", "d"), ("a", "b")])
def test_a_detectors_weights_begin_another(tmp_path: Path, names: tuple[str, ...]) -> None:
    """All of it where the classes are the same, else all but what scores them."""
    given = detector(class_names=("a", "b", "c"))
    path = save_weights(given, tmp_path / "m.safetensors", class_names=given.class_names)
    options: Any = dict(num_classes=len(names), class_names=names)
    torch.manual_seed(3)
    drawn = create_detector("efficientvit_m0", img_size=(64, 128), channels=32, **options)
    torch.manual_seed(3)
    model = create_detector(
        "efficientvit_m0", img_size=(64, 128), channels=32, weights=path, **options
    )
    unnamed = create_detector("efficientvit_m0", num_classes=3, channels=32, weights=path)
    assert unnamed.class_names == given.class_names  # taken from the weights
    held = given.state_dict()
    of_dict = create_detector("efficientvit_m0", num_classes=3, channels=32, weights=held)
    for own in (unnamed, of_dict):
        for key, value in own.state_dict().items():
            assert torch.equal(value, held[key]), key
    scores = held if names == given.class_names else drawn.state_dict()
    for key, value in model.state_dict().items():
        expected = scores if "cls_logits" in key else held
        assert torch.equal(value, expected[key]), key
    with pytest.raises(ValueError, match="does not fit the model"):
        create_detector("efficientvit_m0", channels=16, weights=path, **options)


def test_detectors_and_classifiers_are_not_taken_for_one_another(tmp_path: Path) -> None:
    own = save_weights(detector(), tmp_path / "detector.safetensors")
    classifier = create_model("efficientvit_m0", num_classes=2)
    other = save_weights(classifier, tmp_path / "m0.safetensors")
    with pytest.raises(ValueError, match="got those of the detector retinanet_efficientvit_m0"):
        load_model(own)
    with pytest.raises(ValueError, match="got those of the classifier efficientvit_m0"):
        load_detector(other)

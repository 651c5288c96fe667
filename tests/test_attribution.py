"""Attribution: worked by hand, against captum one layer at a time, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from captum.attr import LayerConductance, LayerFeatureAblation, LayerGradCam
from randomised import randomise
from test_capture import state_of
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from evitlab import (
    attribute,
    completeness_error,
    deletion_insertion,
    deploy,
    picture_attributions,
)
from evitlab.analysis.ablation import ablate_heads
from evitlab.analysis.attribution import METHODS
from evitlab.analysis.capture import HeadOutputs, capture_attention
from evitlab.analysis.explaining import baseline_of
from evitlab.models.zoo import create_model, normalization
from evitlab.training.augment import normalize


def efficientvit(**changes: Any) -> nn.Module:
    size = {"img_size": 64, "num_classes": 7, "patch_size": 8, "window_size": (4, 4, 4)}
    return randomise(create_model("efficientvit_m0", **{**size, **changes})).eval()


def vit(name: str = "deit_tiny_patch16_224", **changes: Any) -> nn.Module:
    size = {"img_size": 64, "num_classes": 7, "depth": 3}
    return randomise(timm.create_model(name, **{**size, **changes})).eval()


def swin() -> nn.Module:
    size: dict[str, Any] = {"img_size": 64, "num_classes": 7, "embed_dim": 24, "window_size": 4}
    model: nn.Module = timm.create_model("swin_tiny_patch4_window7_224", **size)
    return randomise(model).eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "efficientvit": efficientvit,
    "deit": vit,
    "swin": swin,
}
families = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


def images(count: int = 2, side: int = 64) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


class Linear(nn.Module):
    """Two classes' weighted sums of the pixels of 4 x 4 images."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(96.0).view(2, 3, 4, 4) % 7 - 3)

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, None] * self.weight).sum((2, 3, 4))


class Threshold(nn.Module):
    """Nothing until the sum of the first pixels passes 1: gradients are all or nothing."""

    def forward(self, x: Tensor) -> Tensor:
        over = 10 * (x[:, :, 0, 0].sum(1) - 1).relu()
        return torch.stack([over, -over], 1)


@pytest.mark.parametrize("baseline", ["mean", "black", torch.tensor([[[0.5]], [[0.0]], [[1.0]]])])
def test_a_linear_model_is_exact(baseline: Any) -> None:
    """Its gradient is the same everywhere, so one step is enough: weight x (image - baseline)."""
    model, x = Linear(), images(3, 4)
    found = attribute(
        model, x, 1, method="integrated_gradients", quantity="logit", baseline=baseline, steps=1
    )
    before = baseline_of(model, x, baseline)
    expected = (model.weight[1] * (x - before)).sum(1)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)
    error = completeness_error(model, x, found, 1, baseline=baseline)
    assert error.shape == (3,) and error.max() < 1e-5


def test_completeness_error_by_hand() -> None:
    model, x = Linear(), images(2, 4)
    found = attribute(model, x, 0, method="integrated_gradients", steps=1)
    error = completeness_error(model, x, found * torch.tensor([1.5, 1.0]).view(2, 1, 1), 0)
    torch.testing.assert_close(error, torch.tensor([0.5, 0.0]), atol=1e-4, rtol=0)


def test_no_change_and_no_attribution_is_complete() -> None:
    x = torch.ones(1, 3, 4, 4)  # its own mean colour
    assert completeness_error(Linear(), x, torch.zeros(1, 4, 4)).tolist() == [0.0]


def test_steps_double_until_the_attribution_is_complete() -> None:
    x = torch.zeros(2, 3, 4, 4)
    x[0, :, 0, 0], x[1, :, 0, 0] = 0.4, 1.0
    error = {}
    for steps in (1, None):
        found = attribute(
            Threshold(), x, 0, method="integrated_gradients", steps=steps, baseline="black",
            tolerance=0.02,
        )  # fmt: skip
        error[steps] = completeness_error(Threshold(), x, found, 0, baseline="black")
    assert error[1].max() > 0.1
    assert error[None].max() <= 0.02


@families
def test_integrated_gradients_are_complete(build: Callable[[], nn.Module]) -> None:
    model, x = build(), images()
    found = attribute(model, x, method="integrated_gradients")
    assert found.shape == (2, 64, 64) and not found.requires_grad
    error = completeness_error(model, x, found)
    assert error.max() <= 0.011, error.tolist()


def test_occlusion_by_hand() -> None:
    """Patches of one pixel: each says what its pixel adds."""
    model, x = Linear(), images(2, 4)
    found = attribute(
        model, x, [0, 1], method="occlusion", quantity="logit", patch=1, baseline="mean"
    )
    contrast = x - x.mean((2, 3), keepdim=True)
    torch.testing.assert_close(found, (model.weight * contrast).sum(1).detach(), rtol=0, atol=1e-4)


def test_occlusion_averages_over_the_patches_that_cover_a_pixel() -> None:
    """2 x 2 patches moved by one: the corner is covered by one of them, its neighbour by two."""
    model, x = Linear(), images(1, 4)
    found = attribute(model, x, 0, method="occlusion", quantity="logit", patch=2)[0]
    contrast = model.weight[0] * (x - x.mean((2, 3), keepdim=True))[0]
    drops = nn.functional.avg_pool2d(contrast.sum(0)[None], 2, 1)[0] * 4  # [3, 3]
    assert found[0, 0].item() == pytest.approx(drops[0, 0].item(), abs=1e-4)
    assert found[0, 1].item() == pytest.approx(drops[0, :2].mean().item(), abs=1e-4)


def test_grad_cam_is_captums() -> None:
    model, x = efficientvit(), images()
    found = attribute(model, x, 3, method="grad_cam")
    expected = LayerGradCam(model, model.get_submodule("stages.2")).attribute(
        x, 3, relu_attributions=True
    )
    expected = nn.functional.interpolate(expected, (64, 64), mode="bilinear")[:, 0]
    torch.testing.assert_close(found, expected.detach())


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4}),
        ("levit_128s", {}),
        ("tiny_vit_5m_224", {}),
        ("efficientvit_m0", {}),
    ],
)
def test_grad_cam_sees_every_family(name: str, changes: dict[str, Any]) -> None:
    """A map from which nothing reaches the logits would be 0 for every class."""
    size: dict[str, Any] = {"img_size": 64} if name.startswith(("vit", "deit")) else {}
    model = timm.create_model(name, num_classes=5, **size, **changes).eval()
    x = images(1, 64 if "img_size" in {**size, **changes} else 224)
    maps = [attribute(model, x, target, method="grad_cam") for target in range(5)]
    assert all(found.amin() >= 0 and found.shape == (1, *x.shape[2:]) for found in maps)
    assert sum(found.amax().item() for found in maps) > 0


def through_probes(block: int, heads: list[int]) -> tuple[dict[int, nn.Identity], Any]:
    """Identities that a block's head outputs pass as [B, w, k, N, v], for captum to hook."""
    probes = {head: nn.Identity() for head in heads}

    def edit(part: HeadOutputs) -> Tensor:
        if part.block != block or part.heads.start not in probes:
            return part.values
        values = part.values.unflatten(0, (-1, part.windows))
        return probes[part.heads.start](values).flatten(0, 1)

    return probes, edit


@pytest.mark.parametrize(
    ("build", "block", "heads"),
    [(vit, 2, [1]), (swin, 2, [1]), (efficientvit, 1, [2])],
)
def test_conductance_is_captums(
    build: Callable[[], nn.Module], block: int, heads: list[int]
) -> None:
    """Captum takes one layer at a time; its sum over steps comes nearer with more of them."""
    model, x = build().double(), images(1).double()
    found = attribute(model, x, 2, method="layer_conductance", baseline="black", steps=64)
    before = baseline_of(model, x, "black")
    probes, edit = through_probes(block, heads)
    with capture_attention(model, edit=edit):
        for head, probe in probes.items():
            layer = LayerConductance(model, probe).attribute(
                x, before, target=2, n_steps=128, method="riemann_left", internal_batch_size=32
            )
            ours = found[:, block - 1, head - 1 : head - 1 + layer.shape[2]]
            theirs = layer.sum((1, 3, 4)).detach()
            torch.testing.assert_close(ours, theirs, rtol=0.03, atol=1e-3)


def test_conductance_of_a_bottleneck_is_complete() -> None:
    """Where all goes through the heads and nothing passes by, they add up to the score."""

    class Bottleneck(VisionTransformer):
        def forward(
            self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
        ) -> Tensor:
            block: Any = self.blocks[0]
            return block.attn(self.norm(self._pos_embed(self.patch_embed(x))))[:, 0, :5]

    model, x = randomise(Bottleneck(img_size=64, embed_dim=48, depth=1, num_heads=3)), images()
    model.eval()
    found = attribute(model, x, 1, method="layer_conductance", baseline="black", steps=400)
    with torch.no_grad():
        change = (model(x) - model(baseline_of(model, x, "black")))[:, 1]
    torch.testing.assert_close(found.sum((1, 2)), change, rtol=1e-2, atol=1e-4)


def test_head_ablation_is_captums() -> None:
    model, x = vit(), images()
    found = attribute(model, x, 2, method="head_ablation")
    for block in (1, 2, 3):
        probes, edit = through_probes(block, [1])
        with capture_attention(model, edit=edit), torch.no_grad():
            mask = torch.arange(3).view(1, 1, 3, 1, 1)
            layer = LayerFeatureAblation(lambda z: model(z).softmax(1), probes[1]).attribute(
                x, target=2, layer_mask=mask, layer_baselines=0
            )
        torch.testing.assert_close(found[:, block - 1], layer[:, 0, :, 0, 0], rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_head_ablation_is_the_drop_of_probability() -> None:
    model, x = efficientvit(), images()
    found = attribute(model, x, [4, 0], method="head_ablation", batch_size=1)
    with ablate_heads(model, {6: [2]}):
        off = model(x).softmax(1)
    drop = (model(x).softmax(1) - off)[[0, 1], [4, 0]]
    torch.testing.assert_close(found[:, 5, 1], drop)
    assert found.shape == (2, 6, 4) and not found.isnan().any()


@pytest.mark.parametrize("method", ["head_ablation", "layer_conductance"])
def test_blocks_with_fewer_heads_have_nan(method: Any) -> None:
    found = attribute(swin(), images(), method=method)
    counts = (~found.isnan()).sum(2)
    assert found.shape == (2, 12, 24)
    assert counts[0].tolist() == [3, 3, 6, 6, *[12] * 6, 24, 24]
    assert not found[:, 2, :6].isnan().any()


@pytest.mark.parametrize("method", METHODS)
def test_batches_make_no_difference(method: Any) -> None:
    model, x = efficientvit(), images(3)
    options: dict[str, Any] = {}
    if method in ("integrated_gradients", "layer_conductance"):
        options = {"steps": 4}
    if method == "occlusion":
        options = {"patch": 32}
    together, alone = (
        attribute(model, x, method=method, batch_size=size, **options) for size in (64, 1)
    )
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("raises", [False, True], ids=["well", "model raises"])
@families
def test_nothing_is_left_behind(
    build: Callable[[], nn.Module], method: Any, raises: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = build(), images(1)
    list(model.modules())[3].train()  # modes are mixed: each has to come back
    frozen = next(iter(model.parameters()))
    frozen.requires_grad_(False)
    kept = x.clone()
    options: dict[str, Any] = {}
    if method in ("integrated_gradients", "layer_conductance"):
        options = {"steps": 2}
    if method == "occlusion":
        options = {"patch": 32}
    before = state_of(model)
    weights = [weight.requires_grad for weight in model.parameters()]
    if raises:
        calls = []
        forward = type(model).forward_head  # type: ignore[attr-defined]

        def fail(*given: Any, **named: Any) -> Tensor:
            calls.append(1)
            if len(calls) > 1:
                raise ArithmeticError("stop")
            return forward(*given, **named)

        monkeypatch.setattr(type(model), "forward_head", fail)
        with pytest.raises(ArithmeticError):
            attribute(model, x, method=method, **options)
    else:
        attribute(model, x, method=method, **options)
    assert state_of(model) == before
    assert [weight.requires_grad for weight in model.parameters()] == weights
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(x, kept) and not x.requires_grad
    assert torch.overrides._len_torch_function_stack() == 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_grad_mode_does_not_matter(mode: Any) -> None:
    model, x = vit(), images(1)
    expected = attribute(model, x, method="integrated_gradients", steps=4)
    with mode():
        found = attribute(model, x.clone(), method="integrated_gradients", steps=4)
    torch.testing.assert_close(found, expected)


def test_tables_looked_up_meanwhile_do_not_stay() -> None:
    """timm's EfficientViT keeps bias tables in evaluation mode."""
    model = timm.create_model("efficientvit_m0", num_classes=5).eval()
    attribute(model, images(1, 224), method="integrated_gradients", steps=2)
    model.train()
    model(images(2, 224)).sum().backward()  # a table of an old graph would raise


def test_the_predicted_class_is_explained_where_none_is_given() -> None:
    model, x = vit(), images(3)
    with torch.no_grad():
        predicted = model(x).argmax(1)
    assert torch.equal(
        attribute(model, x, method="grad_cam"), attribute(model, x, predicted, method="grad_cam")
    )
    assert torch.equal(
        attribute(model, x, [4, 4, 4], method="grad_cam"), attribute(model, x, 4, method="grad_cam")
    )


def test_bytes_are_normalised_as_the_model_expects() -> None:
    model = vit()
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    floats = normalize(pixels, *normalization(model))
    method: Any
    for method in ("grad_cam", "head_ablation"):
        found, expected = (attribute(model, x, method=method) for x in (pixels, floats))
        assert torch.equal(found, expected)


def test_baselines_by_hand() -> None:
    model, x = vit(), images(2, 8)
    assert torch.equal(baseline_of(model, x, "mean")[1, 2], x[1, 2].mean().expand(8, 8))
    mean, std = normalization(model)
    black = baseline_of(model, x, "black")
    torch.testing.assert_close(black[0, :, 3, 3], -torch.tensor(mean) / torch.tensor(std))
    even = torch.full((1, 3, 40, 30), 0.7)
    torch.testing.assert_close(baseline_of(model, even, "blurred"), even)
    dot = torch.zeros(1, 3, 41, 41)
    dot[0, 1, 20, 20] = 1.0
    blurred = baseline_of(model, dot, "blurred")
    assert blurred.sum().item() == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(blurred, blurred.transpose(2, 3))
    torch.testing.assert_close(blurred, blurred.flip(2))
    assert blurred[0, 1, 20, 20] == blurred.max() and blurred[0, 0].abs().max() == 0


def test_the_deployed_form_says_the_same_without_gradients() -> None:
    model, x = efficientvit(), images(1)
    deployed = deploy(model)
    method: Any
    for method in ("occlusion", "head_ablation"):
        found, expected = (attribute(m, x, method=method) for m in (deployed, model))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    for method in ("integrated_gradients", "grad_cam", "layer_conductance"):
        with pytest.raises(ValueError, match=f"method: {method} needs gradients.*deployed from"):
            attribute(deployed, x, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_a_deployed_transformer_has_gradients(method: Any) -> None:
    model, x = vit(), images(1)
    options: dict[str, Any] = {}
    if method in ("integrated_gradients", "layer_conductance"):
        options = {"steps": 4}
    if method == "occlusion":
        options = {"patch": 32}
    found, expected = (attribute(m, x, method=method, **options) for m in (deploy(model), model))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": images()[0]}, r"images: expected \[B, 3, H, W\] with B > 0, got \[3, 64, 64\]"),
        ({"images": images()[:0]}, r"images: expected .* got \[0, 3, 64, 64\]"),
        ({"images": [1]}, "images: expected .* got list"),
        ({"images": images()[:, :1]}, r"images: expected .* got \[2, 1, 64, 64\]"),
        ({"images": images()[:, :, :0]}, r"images: expected .* got \[2, 3, 0, 64\]"),
        ({"images": images(2, 80)}, "images: expected 64 x 64 pixels, which .*, got 80 x 80"),
        ({"targets": ["cat", "dog"]}, r"targets: expected class numbers, got \['cat', 'dog'\]"),
        ({"targets": [[0], [1, 2]]}, "targets: expected class numbers, got"),
        ({"targets": {0}}, r"targets: expected class numbers, got \{0\}"),
        ({"targets": 7}, "targets: expected classes 0 to 6, got 7"),
        ({"targets": [0, -1]}, "targets: expected classes 0 to 6, got -1"),
        ({"targets": [0, 1, 2]}, r"targets: expected one, or 2 of them, got \[3\]"),
        ({"targets": [0.5, 1.0]}, "targets: expected class numbers, got torch.float32"),
        ({"method": "gradcam"}, "method: expected one of .* did you mean 'grad_cam'"),
        ({"quantity": "logits"}, "quantity: .* did you mean 'logit'"),
        ({"baseline": "blur"}, "baseline: expected one of .*; did you mean 'blurred'"),
        ({"baseline": torch.zeros(3, 5, 5)}, r"baseline: expected a tensor that broadcasts to"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"tolerance": 0.0}, "tolerance: expected a positive number"),
        ({"patch": 8}, "patch: expected None, it is for occlusion"),
        ({"layer": "blocks.0"}, "layer: expected None, it is for grad_cam"),
        ({"method": "grad_cam", "layer": "block.0"}, "layer: .* did you mean 'blocks.0'"),
        ({"method": "grad_cam", "layer": "head"}, "layer: expected a feature map or tokens"),
        ({"method": "occlusion", "patch": 65}, "patch: expected 1 to 64 x 1 to 64 pixels"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"images": images(), "method": "integrated_gradients", **changes}
    with pytest.raises(ValueError, match=message):
        attribute(vit(), given.pop("images"), given.pop("targets", None), **given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": images()[:, :1]}, r"images: expected .* got \[2, 1, 64, 64\]"),
        ({"images": images(2, 80)}, "images: expected 64 x 64 pixels"),
        ({"targets": "cat"}, "targets: expected class numbers, got 'cat'"),
    ],
)
def test_mistakes_are_named_where_attributions_are_measured(
    changes: dict[str, Any], message: str
) -> None:
    given = {"images": images(), "targets": 0, **changes}
    found = torch.zeros(2, *given["images"].shape[2:])
    with pytest.raises(ValueError, match=message):
        completeness_error(vit(), given["images"], found, given["targets"])
    with pytest.raises(ValueError, match=message):
        deletion_insertion(vit(), given["images"], found, given["targets"], steps=1)


@pytest.mark.parametrize("name", ["random pixels", "random patches"])
def test_a_method_cannot_be_called_like_a_random_order(name: str) -> None:
    with pytest.raises(ValueError, match=f"attributions: expected another name than '{name}'"):
        deletion_insertion(Linear(), images(1, 4), {name: torch.zeros(1, 4, 4)}, steps=1)


def test_a_model_needs_classes() -> None:
    for model in (vit(num_classes=0), deploy(vit(num_classes=0))):
        with pytest.raises(ValueError, match="model: expected a classifier, got VisionTransformer"):
            attribute(model, images(), method="integrated_gradients")
    tokens = vit(global_pool="", class_token=False)
    with pytest.raises(ValueError, match=r"model: expected logits .* got \[2, 16, 7\]"):
        attribute(tokens, images(), method="integrated_gradients")


@pytest.mark.parametrize("name", ["levit_128s", "swin_tiny_patch4_window7_224"])
def test_a_size_that_a_model_cannot_take_is_named(name: str) -> None:
    model = timm.create_model(name, num_classes=5).eval()
    with pytest.raises(ValueError, match="images: expected 224 x 224 pixels, .* got 64 x 64"):
        attribute(model, images(1, 64), method="grad_cam")


def test_an_error_that_is_not_the_sizes_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="size of tensor"):
        attribute(Linear(), images(1, 5), 0, method="integrated_gradients")  # says no size
    model = vit()
    model.to(torch.float64).head.float()
    with pytest.raises(RuntimeError, match="dtype"):
        attribute(model, images(1), method="grad_cam")


def test_what_a_method_needs_is_named() -> None:
    plain = timm.create_model("resnet18", num_classes=4).eval()
    with pytest.raises(ValueError, match="model: expected attention of a known kind, got ResNet"):
        attribute(plain, images(), method="head_ablation")
    with pytest.raises(ValueError, match=r"layer: expected the dotted path .* Linear does not say"):
        attribute(Linear(), images(1, 4), method="grad_cam")
    with pytest.raises(ValueError, match=r"attribution: expected \[2, 64, 64\]"):
        completeness_error(plain, images(), torch.zeros(2, 8, 8))
    with pytest.raises(ValueError, match=r"attribution: expected \[2, 64, 64\] .* got list"):
        completeness_error(plain, images(), [0.0])  # type: ignore[arg-type]


def test_a_picture_of_one_image() -> None:
    model = efficientvit()
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    picture = picture_attributions(model, image, 3, weights="random")
    assert list(picture.maps) == [
        "attention_rollout", "integrated_gradients", "grad_cam", "occlusion"
    ]  # fmt: skip
    assert [values.shape for values in picture.maps.values()] == [(8, 8), *[(64, 64)] * 3]
    shown = picture.model, picture.weights, picture.target
    assert shown == ("efficientvit_m0", "random", "class 3")
    assert picture.completeness_error is not None and picture.completeness_error < 0.02
    found = attribute(model, image[None], 3, method="occlusion")[0]
    torch.testing.assert_close(torch.as_tensor(picture.maps["occlusion"]), found)
    with pytest.raises(ValueError, match="methods: expected .* did you mean 'occlusion'"):
        picture_attributions(model, image, methods=["oclusion"])
    with pytest.raises(ValueError, match=r"image: expected uint8 \[3, H, W\], got torch.float32"):
        picture_attributions(model, image.float())


def test_a_picture_names_imagenets_classes() -> None:
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    picture = picture_attributions(vit(num_classes=1000), image, 292, methods=["grad_cam"])
    assert picture.target == "tiger"

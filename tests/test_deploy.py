"""The inference form is the same function: every member, size, dtype and configuration."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from randomised import images, random_model, relative_error
from torch import nn

import evitlab
from evitlab.models.deploy import DeployedEfficientViT, deploy
from evitlab.models.deployed_layers import AttentionHead, Depthwise
from evitlab.models.folding import fold_conv
from evitlab.models.layers import ConvNorm

FAMILY = evitlab.list_models("efficientvit_m?")

# Every field of the configuration that changes what is computed.
ABLATIONS = (
    {"activation": "hardswish"},
    {"cascade": False},
    {"cascade": False, "split": False},
    {"value_ratio": 0.5},
    {"value_ratio": 1.3},
    {"ffns": (2, 2)},
    {"ffns": (0, 1)},
    {"ffns": (1, 0)},
    {"token_interaction": False},
    {"token_interaction": False, "ffns": (0, 1)},
    {"key_dim": (4, 8, 16)},
    {"num_classes": 0},
    {"distilled": True},
    {"distilled": True, "num_classes": 0},
    {"in_chans": 1},
    {"window_size": (14, 14, 14)},  # too many tokens for a matrix per channel
)
# How a deployed model computes, and the arrangement that is exported.
FORMS = {"eager": lambda deployed: deployed, "onnx": lambda deployed: deployed.for_onnx()}


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FAMILY)
def test_same_function(name: str, form: str) -> None:
    """Relative error at most 1e-5 in float32 and, with padded windows, 1e-10 in float64."""
    model = random_model(name)
    x = images(1, 3, 224, 224).float()
    assert relative_error(FORMS[form](deploy(model))(x), model(x)) <= 1e-5, f"{name} float32"
    model.double()
    x = images(1, 3, 256, 160)
    assert relative_error(FORMS[form](deploy(model))(x), model(x)) <= 1e-10, f"{name} float64"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", ABLATIONS, ids=str)
def test_same_function_in_every_configuration(options: dict[str, Any], form: str) -> None:
    model = random_model("efficientvit_m0", img_size=240, depth=(1, 1, 1), **options).double()
    x = images(2, model.config.in_chans, 240, 240)
    assert relative_error(FORMS[form](deploy(model))(x), model(x)) <= 1e-10


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mask_padding", [True, False])
def test_padded_windows_of_a_batch(mask_padding: bool, form: str) -> None:
    """Images must not be mixed up with windows, and padding means the same to both."""
    options: dict[str, Any] = {"depth": (1, 1, 1), "mask_padding": mask_padding}
    model = random_model("efficientvit_m0", **options).double()
    x = images(3, 3, 272, 240)
    expected = torch.cat([model(image[None]) for image in x])
    assert relative_error(FORMS[form](deploy(model))(x), expected) <= 1e-10


def test_small_images() -> None:
    model = random_model("efficientvit_m0_p4", img_size=32, num_classes=10).double()
    x = images(2, 3, 32, 32)
    assert relative_error(deploy(model)(x), model(x)) <= 1e-10


def test_no_norm_is_left_and_nothing_is_shared() -> None:
    model = random_model("efficientvit_m0")
    x = images(1, 3, 224, 224).float()
    before, state = model(x), copy.deepcopy(model.state_dict())
    deployed = deploy(model)
    assert not [m for m in deployed.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    expected = deployed(x)
    for parameter in deployed.parameters():
        assert not parameter.requires_grad
        parameter.zero_()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), f"{name} changed with the deployed form"
    torch.testing.assert_close(model(x), before)
    torch.testing.assert_close(deploy(model)(x), expected)


def test_what_it_keeps() -> None:
    model = evitlab.create_model("efficientvit_m0", num_classes=3).eval().bfloat16()
    model.class_names = ("a", "b", "c")
    deployed = deploy(model)
    assert {p.dtype for p in deployed.parameters()} == {torch.bfloat16}
    assert deployed(torch.zeros(2, 3, 224, 224, dtype=torch.bfloat16)).shape == (2, 3)
    assert deployed.class_names == ("a", "b", "c") and deployed.num_classes == 3
    assert deployed.config == model.config and deployed.pretrained_cfg == model.pretrained_cfg
    assert deploy(deployed) is deployed
    on_meta = torch.zeros(1, 3, 224, 224, device="meta", dtype=torch.bfloat16)
    assert deploy(model.to("meta"))(on_meta).is_meta


def test_a_copy_and_a_pickle_are_the_same_function() -> None:
    deployed = deploy(random_model("efficientvit_m0", depth=(1, 1, 1)))
    x = images(1, 3, 224, 224).float()
    for again in (copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
        torch.testing.assert_close(again(x), deployed(x))
    doubled = copy.deepcopy(deployed).double()
    assert relative_error(doubled(x.double()), deployed(x).double()) < 1e-5


def test_features_are_those_of_the_model() -> None:
    model = random_model("efficientvit_m0").double()
    deployed = deploy(model)
    x = images(1, 3, 224, 224)
    features = deployed.forward_features(x)
    assert features.shape == (1, 192, 4, 4)
    assert relative_error(features, model.forward_features(x)) <= 1e-10
    pooled = deployed.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))


def test_identity_is_the_middle_tap() -> None:
    """By hand: a depthwise kernel of nines and a norm that halves, around an identity."""
    layer = ConvNorm(2, 2, 3, groups=2).eval()
    assert isinstance(layer.bn, nn.BatchNorm2d)
    with torch.no_grad():
        layer.conv.weight.fill_(9.0)
        layer.bn.weight.fill_(0.5 * (1 + layer.bn.eps) ** 0.5)
        layer.bn.bias.fill_(3.0)
    weight, bias = fold_conv(layer)
    torch.testing.assert_close(weight, torch.full((2, 1, 3, 3), 4.5, dtype=torch.float64))
    part = Depthwise(layer, residual=True, shift=torch.tensor([1.0, 2.0]))
    expected = torch.full((3, 3), 4.5)
    expected[1, 1] = 5.5
    torch.testing.assert_close(part.weight[1, 0], expected)
    torch.testing.assert_close(part.bias, torch.tensor([4.0, 5.0]))


def test_large_windows_get_no_table() -> None:
    def tables(side: int) -> set[bool]:
        model = random_model("efficientvit_m0", window_size=(side,) * 3, depth=(1, 1, 1))
        heads = [m for m in deploy(model).modules() if isinstance(m, AttentionHead)]
        return {head.table is not None for head in heads[:4]}

    assert tables(8) == {True}
    assert tables(9) == {False}


def test_it_only_infers() -> None:
    model = random_model("efficientvit_m0", depth=(1, 1, 1))
    deployed = deploy(model)
    assert not deployed.training and deployed.eval() is deployed
    with pytest.raises(ValueError, match="only infers"):
        deployed.train()
    with pytest.raises(ValueError, match="takes none, its weights are folded.*deploy that"):
        deployed.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="takes none, its weights are folded"):
        evitlab.load_weights(deployed, model.state_dict())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Linear(2, 2),
            "model: expected an EfficientViT, or a ViT, DeiT or Swin of timm, got Linear",
        ),
        (evitlab.create_model("efficientvit_m0"), "model: expected evaluation mode"),
        (
            evitlab.create_model("efficientvit_m0", norm="layer").eval(),
            "model: expected BatchNorm, which folds .* got LayerNorm2d",
        ),
    ],
    ids=["another model", "training", "layer norm"],
)
def test_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deploy(model)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 4, 224, 224), "images: expected [B, 3, H, W], got [1, 4, 224, 224]"),
        ((3, 224, 224), "images: expected [B, 3, H, W], got [3, 224, 224]"),
        ((1, 3, 8, 224), "images: expected sides of at least 16, got [8, 224]"),
    ],
)
def test_images_that_do_not_fit(shape: tuple[int, ...], message: str) -> None:
    deployed: DeployedEfficientViT = deploy(random_model("efficientvit_m0", depth=(1, 1, 1)))
    with pytest.raises(ValueError, match=re.escape(message)):
        deployed(torch.zeros(shape))

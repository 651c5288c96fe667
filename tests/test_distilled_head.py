"""The second head: a pair in training, the mean in evaluation, in every form a model takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from randomised import images, random_model, randomise, relative_error
from small_runs import tiny_vit
from torch import nn

from evitlab import (
    count_macs,
    count_params,
    create_model,
    deploy,
    load_model,
    load_weights,
    save_weights,
)
from evitlab.models.export import inference_form

TINY: dict[str, Any] = dict(img_size=32, patch_size=4, num_classes=10, depth=(1, 1, 1))


def tiny(**options: Any) -> Any:
    return random_model("efficientvit_m0", **{**TINY, "distilled": True, **options})


def test_a_pair_in_training_and_its_mean_in_evaluation() -> None:
    model, x = tiny().double(), images(4, 3, 32, 32)
    with torch.no_grad():
        pooled = model.forward_features(x).mean((2, 3))
        expected = model.head(pooled), model.head_dist(pooled)
        assert not torch.allclose(*expected)
        torch.testing.assert_close(model(x), (expected[0] + expected[1]) / 2)
        assert torch.equal(model.forward_head(model.forward_features(x), pre_logits=True), pooled)
        pair = model.train()(x)
    assert isinstance(pair, tuple) and [part.shape for part in pair] == [(4, 10)] * 2


def test_it_costs_one_more_classifier() -> None:
    one, two = create_model("efficientvit_m0"), create_model("efficientvit_m0", distilled=True)
    assert count_params(two) - count_params(one) == 192 * 2 + 193 * 1000
    assert count_macs(two) - count_macs(one) == 192 * 1000
    assert two.config.distilled and not one.config.distilled and not hasattr(one, "head_dist")


def test_both_classifiers_are_named_and_reset() -> None:
    model, x = tiny().double(), images(2, 3, 32, 32)
    assert model.get_classifier() == (model.head.linear, model.head_dist.linear)
    assert model.pretrained_cfg["classifier"] == ("head.linear", "head_dist.linear")
    model.reset_classifier(7)
    assert model.num_classes == 7 and model(x).shape == (2, 7) and model(x).dtype == torch.float64
    assert not any(module.training for module in model.modules())
    model.reset_classifier(0)
    assert torch.equal(model(x), model.forward_features(x).mean((2, 3)))
    assert all(isinstance(part, nn.Identity) for part in model.get_classifier())


@pytest.mark.parametrize("name", ["efficientvit_m0_p4", "efficientvit_m5_p4"])
def test_deployed_it_is_one_exact_classifier(name: str) -> None:
    small = {"img_size": 32, "num_classes": 30}
    model, x = random_model(name, distilled=True, **small), images(1, 3, 32, 32)
    deployed = deploy(model)
    with torch.no_grad():
        assert relative_error(deployed(x.float()), model(x.float())) <= 1e-5
        model.double()
        assert relative_error(deploy(model)(x), model(x)) <= 1e-10
        assert relative_error(inference_form(model, onnx=True)(x), model(x)) <= 1e-10
    single = deploy(random_model(name, **small))
    assert count_params(deployed) == count_params(single)


def test_the_mean_of_two_classifiers_by_hand() -> None:
    """Weights 1 and 3, biases 0 and 4, behind norms that do nothing: 2 x + 2."""
    model = create_model("efficientvit_m0_p4", img_size=32, num_classes=1, distilled=True).eval()
    for head, weight, bias in ((model.head, 1.0, 0.0), (model.head_dist, 3.0, 4.0)):
        head.bn.running_var.fill_(1 - head.bn.eps)
        nn.init.constant_(head.linear.weight, weight)
        nn.init.constant_(head.linear.bias, bias)
    head = deploy(model).head
    torch.testing.assert_close(head.weight, torch.full((1, 192), 2.0))
    torch.testing.assert_close(head.bias, torch.full((1,), 2.0))


def test_a_file_keeps_both_heads(tmp_path: Path) -> None:
    model, x = tiny(), images(2, 3, 32, 32).float()
    path = save_weights(model, tmp_path / "two.safetensors", class_names=tuple("abcdefghij"))
    again = load_model(path)
    assert again.config == model.config and again.class_names == tuple("abcdefghij")
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def tiny_two() -> Any:
    return randomise(tiny_vit(distilled=True)).eval()


def test_official_names_of_both_heads_are_ours() -> None:
    """head.l and head_dist.l, as in the official .pth files."""
    source = tiny()
    weights = {
        key.replace("head.linear", "head.l").replace("head_dist.linear", "head_dist.l"): value
        for key, value in source.state_dict().items()
        if key.startswith("head")
    }
    assert {"head.l.weight", "head_dist.l.bias", "head_dist.bn.running_var"} <= weights.keys()
    rest = {k: v for k, v in source.state_dict().items() if not k.startswith("head")}
    first = {"patch_embed.0.c.weight": rest.pop("patch_embed.conv1.conv.weight")}
    model = tiny(seed=1)
    report = load_weights(model, {**weights, **rest, **first})
    assert report.layout == "official" and not report.missing
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_gradients_reach_every_weight_of_both() -> None:
    model = tiny_two().train()
    logits, distilled = model(torch.randn(4, 3, 32, 32))
    (logits.square().sum() + distilled.square().sum()).backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert not without

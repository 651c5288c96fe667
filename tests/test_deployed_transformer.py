"""The inference form of ViT, DeiT and Swin is the same function in every configuration."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from randomised import images, randomise, relative_error
from timm.layers import RmsNorm
from torch import nn

from evitlab import create_model, deploy, export_onnx, load_weights
from evitlab.models.deployed_transformer import DeployedTransformer

SMALL: dict[str, Any] = {"img_size": 32, "num_classes": 5}
DEIT: dict[str, Any] = {**SMALL, "embed_dim": 24, "depth": (2,)}
SWIN: dict[str, Any] = {
    **SMALL, "embed_dim": 12, "depth": (2, 1, 1, 1), "num_heads": (3, 3, 3, 3)
}  # fmt: skip


def vit(**options: Any) -> nn.Module:
    small = {**SMALL, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    return timm.create_model("vit_tiny_patch16_224", **{**small, **options})


def swin(**options: Any) -> nn.Module:
    small = {**SMALL, "embed_dim": 12, "depths": (2, 1), "num_heads": (3, 3), "window_size": 4}
    return timm.create_model("swin_tiny_patch4_window7_224", **{**small, **options})


CASES: dict[str, Callable[[], nn.Module]] = {
    "deit": lambda: create_model("deit_t_p4", **DEIT),
    "few attention": lambda: create_model("deit_t_p4", **DEIT, attention_share=0.25),
    "much attention": lambda: create_model("deit_t_p4", **DEIT, attention_share=0.75),
    "split heads": lambda: create_model("deit_t_p4", **DEIT, split_heads=True),
    "swin": lambda: create_model("swin_t_p2", **SWIN),
    "swin, much attention": lambda: create_model("swin_t_p2", **SWIN, attention_share=0.8),
    "class token": vit,
    "layer scale": lambda: vit(init_values=0.5),
    "norms of Q and K": lambda: vit(qk_norm=True),
    "another norm": lambda: vit(norm_layer=RmsNorm),
    "no bias": lambda: vit(qkv_bias=False),
    "shifted windows": lambda: swin(img_size=64),
    "padded windows": lambda: swin(img_size=40),  # maps of 10, windows of 4
    "masks made on the way": lambda: swin(strict_img_size=False),
}


def randomised(case: str) -> Any:
    model = randomise(CASES[case]())
    with torch.no_grad():
        for module in model.modules():  # gains and shifts that would be seen
            if isinstance(module, nn.LayerNorm):
                module.weight.add_(1.0)
    return model.eval()


def batch(model: Any, count: int = 2) -> torch.Tensor:
    side = model.patch_embed.img_size[0]
    return images(count, 3, side, side)


@torch.no_grad()
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_same_function(case: str, fused: bool) -> None:
    model = randomised(case).double()
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    x = batch(model)
    assert relative_error(deploy(model)(x), model(x)) <= 1e-10


@torch.no_grad()
def test_what_is_left_out() -> None:
    model = randomised("layer scale")
    deployed = deploy(model)
    scales = [m for m in deployed.modules() if type(m).__name__ == "LayerScale"]
    norms = [m for b in deployed.model.blocks for m in (b.norm1, b.norm2)]
    assert not scales and all(norm.weight is None and norm.bias is None for norm in norms)
    assert all(block.attn.scale == 1.0 for block in deployed.model.blocks)
    assert deployed.num_classes == 5 and deployed.pretrained_cfg == model.pretrained_cfg


@torch.no_grad()
def test_model_is_untouched_and_the_form_only_infers() -> None:
    model = randomised("shifted windows")
    x, state = batch(model).float(), copy.deepcopy(model.state_dict())
    expected = model(x)
    deployed = deploy(model)
    assert isinstance(deployed, DeployedTransformer) and deploy(deployed) is deployed
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    for parameter in deployed.parameters():
        assert not parameter.requires_grad
        parameter.zero_()
    torch.testing.assert_close(model(x), expected)
    for again in (copy.deepcopy(deploy(model)), pickle.loads(pickle.dumps(deploy(model)))):
        assert relative_error(again(x), expected) <= 1e-5
    with pytest.raises(ValueError, match="only infers"):
        deployed.train()
    with pytest.raises(ValueError, match="takes none"):
        load_weights(deployed, state)
    with pytest.raises(ValueError, match="expected evaluation mode"):
        deploy(model.train())


@pytest.mark.slow
def test_the_form_exports(tmp_path: Path) -> None:
    model = deploy(randomised("shifted windows"))
    size = model.model.patch_embed.img_size
    assert export_onnx(model, tmp_path / "model.onnx", img_size=size).is_file()

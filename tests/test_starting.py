"""What training begins with: weights decide the architecture, data the size and the classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from randomised import randomise
from small_runs import one_line, tiny_vit

from evitlab import create_model, load_model, save_weights
from evitlab.models.config import EfficientViTConfig
from evitlab.models.starting import starting_model, weights_card
from evitlab.models.zoo import MODELS

NAMES = ("disk", "square", "triangle")
VARIANT, TINY = "efficientvit_m0_p4", ("depth", "embed_dim", "num_heads", "key_dim")


def saved(path: Path, *, names: tuple[str, ...] = NAMES, **overrides: Any) -> Path:
    model = randomise(tiny_vit(num_classes=len(names), **overrides))
    return save_weights(model, path / "weights.safetensors", class_names=names)


def start(name: str, weights: Any = None, *, side: int = 32, **options: Any) -> Any:
    names = options.pop("class_names", NAMES)
    return starting_model(
        name, img_size=(side, side), class_names=names, weights=weights, **options
    )


def test_without_weights_the_image_size_chooses_the_variant() -> None:
    for side, variant in ((32, "efficientvit_m0_p4"), (64, "efficientvit_m0_p8")):
        model, said = start("efficientvit_m0", side=side, drop_path_rate=0.3)
        assert model.pretrained_cfg["architecture"] == variant and said == ()
        assert model.config.drop_path_rate == 0.3 and not model.config.distilled


@pytest.mark.parametrize(
    ("side", "windows"), [(32, (8, 4, 2)), (48, (8, 6, 3)), (64, (8, 8, 4))], ids=str
)
def test_weights_keep_their_patch_size_at_larger_images(
    tmp_path: Path, side: int, windows: tuple[int, ...]
) -> None:
    """32-pixel weights with patches of 4, which 64 pixels alone would give patches of 8."""
    file = saved(tmp_path, cascade=False)
    model, said = start("efficientvit_m0", file, side=side)
    source = load_model(file)
    assert model.pretrained_cfg["architecture"] == "efficientvit_m0_p4"
    assert model.config.img_size == (side, side) and not model.config.cascade
    tables = {
        name: module.attention_biases.shape[1]
        for name, module in model.named_modules()
        if hasattr(module, "attention_biases")
    }
    assert list(tables.values()) == [side**2 for side in windows]
    resized = [f"stages.{i}.blocks.0" for i in (1, 2) if windows[i] != (8, 4, 2)[i]]
    if resized:
        assert said == (
            f"weights.safetensors: {len(resized)} attention-bias tables resized from 32x32 to "
            f"{side}x{side} pixels: {', '.join(resized)}",
        )
    else:
        assert said == ()
    for key, value in source.state_dict().items():
        if "attention_biases" not in key or key.split(".mixer")[0] not in resized:
            assert torch.equal(model.state_dict()[key], value), key
    with torch.no_grad():
        assert model.eval()(torch.randn(2, 3, side, side)).shape == (2, 3)


def test_a_variant_named_in_full_is_that_variant(tmp_path: Path) -> None:
    model, _ = start("efficientvit_m0_p4", saved(tmp_path), side=64)
    assert model.config.patch_size == 4 and model.config.depth == (1, 1, 1)
    whole = save_weights(
        create_model("efficientvit_m0_p4", img_size=32), tmp_path / "m0.safetensors"
    )
    model, _ = start("efficientvit_m0_p8", whole, side=64)
    assert model.pretrained_cfg["architecture"] == "efficientvit_m0_p8"


@pytest.mark.parametrize("names", [("cat", "dog", "cow"), ("square", "disk", "triangle"), ("a",)])
def test_a_classifier_of_other_classes_is_drawn_anew(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    """Also where there are as many, or the same in another order."""
    file = saved(tmp_path, names=names)
    torch.manual_seed(5)
    drawn, _ = start("efficientvit_m0", file)
    torch.manual_seed(5)
    model, said = start("efficientvit_m0", file)
    assert said == (
        "weights.safetensors: of other classes, so the classifier is trained from scratch",
    )
    source = load_model(file).state_dict()
    for key, value in model.state_dict().items():
        if key.startswith("head.linear."):
            assert len(value) == 3 and torch.equal(value, drawn.state_dict()[key])
            assert source[key].shape != value.shape or not torch.equal(value, source[key])
        else:
            assert torch.equal(value, source[key]), key
    assert not model.head.linear.bias.any()  # as a fresh one


def test_a_second_head_begins_as_a_copy(tmp_path: Path) -> None:
    """So what is computed before the first step is what the weights computed."""
    file, x = saved(tmp_path), torch.randn(2, 3, 32, 32)
    model, said = start("efficientvit_m0", file, distilled=True)
    assert said == (
        "weights.safetensors: of one head, so the second begins as a copy of the first",
    )
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), load_model(file)(x))


@pytest.mark.parametrize("card", [True, False], ids=["a run", "a state dict"])
def test_weights_of_two_heads_keep_both(
    tmp_path: Path, card: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = randomise(tiny_vit(distilled=True))
    file = tmp_path / ("two.safetensors" if card else "two.pt")
    if card:
        save_weights(source, file, class_names=NAMES)
    else:
        torch.save(source.state_dict(), file)
    if not card:  # without one the weights must be those of the name
        small = {name: getattr(source.config, name) for name in TINY}
        monkeypatch.setitem(
            MODELS, VARIANT, replace(cast(EfficientViTConfig, MODELS[VARIANT]), **small)
        )
    model, said = start("efficientvit_m0", file)
    assert model.config.distilled and said == ()
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


@pytest.mark.parametrize(
    ("name", "overrides", "places"),
    [
        ("deit_t", {"embed_dim": 24, "depth": (1,)}, "1 position embedding "),
        ("swin_t", {"embed_dim": 24, "depth": (1, 1, 1, 1)}, "1 attention-bias table "),
    ],
)
def test_baselines_are_resized_too(
    tmp_path: Path, name: str, overrides: dict[str, Any], places: str
) -> None:
    variant = "deit_t_p4" if name == "deit_t" else "swin_t_p2"
    source = create_model(variant, img_size=32, num_classes=3, **overrides)
    file = save_weights(source, tmp_path / "small.safetensors", class_names=NAMES)
    model, (said,) = start(name, file, side=48)
    assert said.startswith(f"small.safetensors: {places}resized from 32x32 to 48x48 pixels: ")
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 3, 48, 48)).shape == (1, 3)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    file = saved(tmp_path)
    with pytest.raises(ValueError, match="expected those of efficientvit_m4, got eff.*_m0_p4"):
        start("efficientvit_m4", file)
    torch.save({"head.linear.weight": torch.zeros(3, 192)}, tmp_path / "half.pt")
    with pytest.raises(ValueError, match="does not fit the model: .* missing") as raised:
        start("efficientvit_m0", tmp_path / "half.pt")
    one_line(raised)
    with pytest.raises(FileNotFoundError, match="nothing: expected a weights file"):
        start("efficientvit_m0", tmp_path / "nothing")


def test_cards(tmp_path: Path) -> None:
    card = weights_card(saved(tmp_path))
    assert card is not None and card["class_names"] == list(NAMES)
    torch.save({}, tmp_path / "bare.pt")
    assert weights_card(tmp_path / "bare.pt") is None and weights_card("timm") is None

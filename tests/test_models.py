"""Laws that hold for all six models: the paper's counts, timm's logits, gradients, sizes."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import timm
import torch
from randomised import images, random_model, relative_error
from torch import Tensor, nn

from evitlab import count_macs, count_params, create_model, list_models, load_weights, paper
from evitlab.models.zoo import normalization, small_image_name

FAMILY = [f"efficientvit_m{i}" for i in range(6)]
TINY: dict[str, Any] = dict(img_size=32, num_classes=10, depth=(1, 1, 1))


@functools.cache
def pair(name: str) -> tuple[Any, Any]:
    """Ours and timm's, same random weights, evaluating. Shared: copy before you change one."""
    ours = random_model(name)
    theirs = timm.create_model(name).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def stated(name: str, quantity: str) -> float:
    member = name.replace("efficientvit_m", "EfficientViT-M")
    return paper.number("arch", model=member, quantity=quantity).value


@pytest.mark.parametrize("name", FAMILY)
def test_parameters_are_the_papers(name: str) -> None:
    """Deploying folds a convolution's norm into a bias, and the classifier's into nothing new.

    M5's 12.474 M parameters (the official class's too) stand in Table 1 as 12.4: what is left of
    them when the norms are folded.
    """
    model = pair(name)[0]
    params, folded = count_params(model), 0
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            folded += module.num_features * (1 if isinstance(module, nn.BatchNorm2d) else 2)
    tolerance = 0.075 if name == "efficientvit_m5" else 0.05
    wanted = stated(name, "params_m")
    assert abs(params / 1e6 - wanted) <= tolerance, f"{name}: {params:,} parameters"
    assert abs((params - folded) / 1e6 - wanted) <= 0.05, f"{name}: {params - folded:,} folded"
    assert params == count_params(pair(name)[1]), f"{name}: timm's has another number"


@pytest.mark.parametrize("name", FAMILY)
def test_macs_are_the_papers(name: str) -> None:
    macs_m = count_macs(pair(name)[0]) / 1e6
    assert abs(macs_m / stated(name, "macs_m") - 1) <= 0.01, f"{name}: {macs_m:.1f} M MACs"


@pytest.mark.parametrize("name", FAMILY)
def test_widths_are_those_of_table_1(name: str) -> None:
    table = paper.architecture().set_index("model")
    row = table.loc[name.replace("efficientvit_m", "EfficientViT-M")]
    config = pair(name)[0].config
    for field in ("embed_dim", "depth", "num_heads"):
        assert getattr(config, field) == row[field], f"{name}: {field}"


@pytest.mark.parametrize("name", FAMILY)
def test_state_dict_is_timms_and_so_is_its_start(name: str) -> None:
    ours, theirs = create_model(name).state_dict(), timm.create_model(name).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    for key in ours:
        if key.endswith(("bn.weight", "bn.bias", "attention_biases", "linear.bias")):
            assert torch.equal(ours[key], theirs[key]), f"{name}: {key} starts elsewhere"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("name", FAMILY)
def test_logits_are_timms(name: str, dtype: torch.dtype, tolerance: float) -> None:
    # timm caches its bias tables, and lets go of them when it is cast.
    ours, theirs = (copy.deepcopy(model).to(dtype) for model in pair(name))
    x = images(1, 3, 224, 224).to(dtype)
    with torch.no_grad():
        error = relative_error(ours(x), theirs(x))
    assert error <= tolerance, f"{name}: logits differ from timm's by {error:.1e}"


def test_a_training_step_is_timms() -> None:
    """Logits, the gradient of every parameter, and every BatchNorm statistic afterwards."""

    def step(model: Any) -> dict[str, Tensor]:
        logits = model.train()(images(3, 3, 224, 224))
        (logits * images(*logits.shape, seed=1)).sum().backward()
        gradients = {f"gradient of {key}": p.grad for key, p in model.named_parameters()}
        return {"logits": logits, **gradients, **dict(model.named_buffers())}

    ours, theirs = (step(copy.deepcopy(model).double()) for model in pair("efficientvit_m0"))
    assert ours.keys() == theirs.keys()
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-8, atol=1e-8, msg=key)


@pytest.mark.parametrize("name", FAMILY)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = copy.deepcopy(pair(name)[0]).train()
    logits = model(images(4, 3, 224, 224).float())
    (logits * images(*logits.shape, seed=1)).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name}: {key} has no gradient"
        assert parameter.grad.isfinite().all(), f"{name}: gradient of {key} is not finite"
        assert parameter.grad.abs().max() > 0, f"{name}: gradient of {key} is zero"


@pytest.mark.parametrize("name", FAMILY)
def test_a_fresh_block_passes_its_input_through(name: str) -> None:
    model: Any = create_model(name, img_size=32, patch_size=4)
    for i, stage in enumerate(model.stages):
        side = 8 // 2**i
        x = images(2, model.config.embed_dim[i], side, side).float()
        for j, block in enumerate(stage.blocks):
            assert torch.equal(block(x), x), f"{name}: stages.{i}.blocks.{j}"


@pytest.mark.parametrize("name", FAMILY)
def test_sizes_other_than_the_one_built_for(name: str) -> None:
    model = pair(name)[0]
    with torch.no_grad():
        for size in ((256, 256), (320, 192)):
            features = model.forward_features(images(1, 3, *size).float())
            side = [math.ceil(s / 64) for s in size]
            assert list(features.shape) == [1, model.config.embed_dim[2], *side], (name, size)
            assert features.isfinite().all(), f"{name} at {size}"


@pytest.mark.parametrize("name", FAMILY)
def test_built_for_an_upright_image(name: str) -> None:
    model = random_model(name, img_size=(320, 192))
    assert [s.blocks[0].mixer.m.window for s in model.stages] == [(7, 7), (7, 6), (5, 3)]
    with torch.no_grad():
        assert model(images(1, 3, 320, 192).float()).isfinite().all(), name


@pytest.mark.parametrize("name", FAMILY)
def test_weights_of_224_run_at_512(name: str) -> None:
    model = create_model(name, img_size=512).eval()
    report = load_weights(model, pair(name)[0].state_dict())
    depth = model.config.depth[2]  # only the third stage's windows, 4 x 4 at 224, grow to 7 x 7
    tables = [f"stages.2.blocks.{j}.mixer.m.attn.attention_biases" for j in range(depth)]
    assert list(report.resized) == tables, name
    assert set(report.loaded) == set(model.state_dict()), name
    assert not (report.missing or report.unexpected or report.mismatched), name
    with torch.no_grad():
        assert model(images(1, 3, 512, 512).float()).isfinite().all(), name


@pytest.mark.parametrize("name", [*list_models("efficientvit*_p4"), *list_models("*m[05]_p8")])
def test_small_images_keep_8_x_8_tokens(name: str) -> None:
    patch = int(name[-1])
    model = random_model(name, img_size=8 * patch, num_classes=10, depth=(1, 1, 1))
    tokens: list[Sequence[int]] = []
    model.patch_embed.register_forward_hook(lambda _m, _x, out: tokens.append(out.shape[2:]))
    with torch.no_grad():
        logits = model(images(2, 3, 8 * patch, 8 * patch).float())
    assert tuple(tokens[0]) == (8, 8) == model.stages[0].blocks[0].mixer.m.window, name
    assert logits.shape == (2, 10) and logits.isfinite().all(), name


@pytest.mark.parametrize("name", ["efficientvit_m0", "efficientvit_m1"])
def test_unmasked_padding_is_timms(name: str) -> None:
    """At 256 the maps are 16, 8 and 4 a side, so windows of 7 are padded."""
    weights = pair(name)[0].state_dict()
    theirs = timm.create_model(name, img_size=256).eval().double()
    theirs.load_state_dict(weights)
    x = images(1, 3, 256, 256)
    with torch.no_grad():
        unmasked = create_model(name, img_size=256, mask_padding=False, weights=weights)
        masked = create_model(name, img_size=256, weights=weights)
        expected = theirs(x)
        assert relative_error(unmasked.eval().double()(x), expected) < 1e-10
        assert relative_error(masked.eval().double()(x), expected) > 1e-3


def test_stochastic_depth_drops_whole_images() -> None:
    rate, count = 0.3, 4000
    model = random_model("efficientvit_m0", drop_path_rate=rate)
    residual = model.stages[2].blocks[2].ffn0
    residual.train()
    residual.m.eval()  # so that what is added to an image depends on that image alone
    x = images(count, 192, 1, 1).float()
    with torch.no_grad():
        added, whole = residual(x) - x, residual.m(x)
    dropped = (added == 0).flatten(1).all(1)
    assert torch.allclose(added[~dropped], whole[~dropped] / (1 - rate), rtol=1e-4, atol=1e-5)
    expected, sigma = count * rate, (count * rate * (1 - rate)) ** 0.5
    assert abs(int(dropped.sum()) - expected) < 4 * sigma


def test_stochastic_depth_rises_with_depth() -> None:
    model: Any = create_model("efficientvit_m5", drop_path_rate=0.35)
    blocks = [block for stage in model.stages for block in stage.blocks]
    for i, block in enumerate(blocks):
        for part, residual in block.named_children():
            assert residual.drop == pytest.approx(0.05 * i), f"block {i}, {part}"


def test_stochastic_depth_is_off_in_evaluation() -> None:
    plain = random_model("efficientvit_m0_p4", **TINY)
    dropping = create_model("efficientvit_m0_p4", **TINY, drop_path_rate=0.9)
    dropping.load_state_dict(plain.state_dict())
    x = images(4, 3, 32, 32).float()
    torch.testing.assert_close(dropping.eval()(x), plain(x))
    assert not torch.allclose(dropping.train()(x), plain.train()(x))


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    model = random_model("efficientvit_m1_p4", **TINY, drop_path_rate=0.5).double()
    x, calls = images(8, 3, 32, 32), []
    model.stages[1].blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))

    def gradients(enable: bool) -> dict[str, Tensor]:
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        calls.clear()
        torch.manual_seed(1)  # which images are dropped
        model.train()(x).square().sum().backward()
        return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}

    stored = gradients(False)
    assert len(calls) == 1
    recomputed = gradients(True)
    assert len(calls) == 2, "the block was not run again in the backward pass"
    assert stored.keys() == recomputed.keys()
    for key in stored:
        torch.testing.assert_close(recomputed[key], stored[key], rtol=1e-9, atol=1e-12, msg=key)


def test_no_stale_bias_after_loading_in_evaluation_mode() -> None:
    model, other = (random_model("efficientvit_m0_p4", **TINY, seed=s) for s in (0, 1))
    x = images(2, 3, 32, 32).float()
    with torch.no_grad():
        before, expected = model.eval()(x), other.eval()(x)
        weights = model.state_dict()
        model.load_state_dict({**weights, **{k: v for k, v in other.state_dict().items()}})
        torch.testing.assert_close(model(x), expected)
        for key in weights:
            if "attention_biases" in key:
                weights[key].mul_(2)  # in place, as an optimiser does
        assert not torch.allclose(model(x), expected)
    assert not torch.allclose(before, expected)


def test_train_and_eval_return_the_module() -> None:
    for name, module in create_model("efficientvit_m0_p4", **TINY).named_modules():
        assert module.train() is module, name
        assert module.eval() is module, name


def test_an_image_does_not_depend_on_its_batch() -> None:
    model = random_model("efficientvit_m0_p4", **TINY).double()
    x = images(40, 3, 32, 32)
    with torch.no_grad():
        alone = torch.cat([model(x[i : i + 1]) for i in (0, 17, 39)])
        torch.testing.assert_close(model(x)[[0, 17, 39]], alone, rtol=1e-11, atol=1e-11)
        strided = model(x.to(memory_format=torch.channels_last))[[0, 17, 39]]
        torch.testing.assert_close(strided, alone, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_folding_norms_on_the_way_changes_nothing(
    norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = random_model("efficientvit_m1_p4", **TINY, norm=norm).double(), images(2, 3, 32, 32)

    def run(fold_from: float) -> list[Tensor]:
        monkeypatch.setattr("evitlab.models.layers.FOLD_FROM", fold_from)
        logits = model(x.requires_grad_())
        return [logits, *torch.autograd.grad(logits.square().sum(), [x, *model.parameters()])]

    for folded, apart in zip(run(0), run(math.inf), strict=True):
        torch.testing.assert_close(folded, apart, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_runs_in_the_precision_it_is_cast_to(dtype: torch.dtype) -> None:
    model = random_model("efficientvit_m0_p4", **TINY).to(dtype)
    for mode in (True, False):
        out = model.train(mode)(images(4, 3, 40, 24).to(dtype))  # padded windows too
        assert out.dtype == dtype and out.isfinite().all()


def test_timm_contract() -> None:
    ours, theirs = pair("efficientvit_m3")
    assert ours.feature_info == theirs.feature_info
    assert ours.num_features == theirs.num_features == ours.head_hidden_size
    assert ours.num_classes == theirs.num_classes == 1000
    assert ours.no_weight_decay() == theirs.no_weight_decay()
    assert ours.get_classifier() is ours.head.linear
    x = images(1, 3, 224, 224).float()
    with torch.no_grad():
        features = ours.forward_features(x)
        pooled = ours.forward_head(features, pre_logits=True)
        assert torch.allclose(pooled, features.mean((2, 3)))
        assert torch.equal(ours.forward_head(features), ours(x))
        assert torch.equal(ours.head(pooled), ours(x))
        assert torch.allclose(features, theirs.forward_features(x), rtol=1e-3, atol=1e-4)


def test_feature_info_describes_the_stages() -> None:
    model = create_model("efficientvit_m2_p8", img_size=64).eval()
    shapes: dict[str, Sequence[int]] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _m, _x, out, n=name: shapes.update({n: out.shape}))
    model(images(1, 3, 64, 64).float())
    for info in model.feature_info:
        side = 64 // info["reduction"]
        assert shapes[info["module"]] == (1, info["num_chs"], side, side), info["module"]


def test_reset_classifier_keeps_precision_and_mode() -> None:
    model = random_model("efficientvit_m0_p4", **TINY).double().eval()
    x = images(2, 3, 32, 32)
    model.reset_classifier(7)
    assert model.num_classes == model.config.num_classes == 7
    assert model(x).shape == (2, 7) and model(x).dtype == torch.float64
    assert not any(module.training for module in model.modules())
    model.reset_classifier(0)
    assert torch.equal(model(x), model.forward_head(model.forward_features(x), pre_logits=True))
    assert model.get_classifier() is model.head and isinstance(model.head, nn.Identity)
    with pytest.raises(ValueError, match="global_pool: expected 'avg', got 'max'"):
        model.reset_classifier(5, "max")


def test_names_are_listed_in_the_papers_order() -> None:
    assert list_models("efficientvit_m?") == FAMILY
    assert list_models("*m0*") == ["efficientvit_m0", "efficientvit_m0_p4", "efficientvit_m0_p8"]
    assert list_models("resnet*") == []


def test_small_image_name() -> None:
    assert small_image_name("efficientvit_m0", (32, 32)) == "efficientvit_m0_p4"
    assert small_image_name("efficientvit_m0", (64, 96)) == "efficientvit_m0_p8"
    assert small_image_name("efficientvit_m0", (224, 224)) == "efficientvit_m0"
    assert small_image_name("efficientvit_m0_p8", (32, 32)) == "efficientvit_m0_p8"


def test_normalization() -> None:
    model: Any = create_model("efficientvit_m0_p4", **TINY)
    assert normalization(model) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    model.pretrained_cfg["mean"] = [0.1, 0.2, 0.3]
    assert normalization(model)[0] == (0.1, 0.2, 0.3)
    assert normalization(nn.Linear(1, 1)) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("efficientvit_m6", "efficientvit_m5"),
        ("efficientvit-m3", "efficientvit_m3"),
        ("eficientvit_m0_p4", "efficientvit_m0_p4"),
        ("EfficientViT_M4", "efficientvit_m4"),
    ],
)
def test_unknown_name_suggests_the_closest(name: str, closest: str) -> None:
    with pytest.raises(ValueError, match=f"{name!r}; did you mean {closest!r}"):
        create_model(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(img_size=15), r"img_size: .*patch_size=16 .*\(15, 15\); patch_size=8 would fit"),
        (dict(img_size=(224, 3)), r"img_size: .*at least patch_size=16 pixels, got \(224, 3\)"),
        (dict(img_size=(224, 224, 3)), "img_size: expected height and width"),
        (dict(img_size=224.0), "img_size: expected height and width"),
        (dict(img_size="224"), "img_size: expected height and width"),
        (dict(num_classes=-1), "num_classes: expected .* 0 classes, got 3 and -1"),
        (dict(num_classes=2.5), "num_classes: expected an integer, got 2.5"),
        (dict(in_chans=0), "in_chans .* expected at least 1 channel"),
        (dict(pach_size=4), "pach_size: unknown override; did you mean 'patch_size'.*known: embed"),
        (dict(patch_size=5), r"patch_size: expected one of \(16, 8, 4\), got 5"),
        (dict(norm="group"), "norm: expected one of .*'layer'.*, got 'group'"),
        (dict(activation="gelu"), "activation: expected one of .*'hardswish'.*, got 'gelu'"),
        (dict(embed_dim=(4, 8, 12)), "embed_dim: expected at least 8 channels"),
        (dict(embed_dim=(66, 128, 192)), "num_heads: expected divisors of embed_dim"),
        (dict(depth=(1, 2)), r"depth: expected three positive integers, got \(1, 2\)"),
        (dict(depth=(1, 0, 2)), "depth: expected three positive integers"),
        (dict(key_dim=16), "key_dim: expected three positive integers, got 16"),
        (dict(key_dim=(16, 16, 0.5)), "key_dim: expected three positive integers"),
        (dict(window_size=0), "window_size: expected three positive integers"),
        (dict(num_heads=(8, 8, 8)), "kernels: expected an odd kernel for each of 8 heads"),
        (dict(kernels=(5, 5, 4, 5)), "kernels: expected an odd kernel"),
        (dict(kernels=(-5, 5, 5, 5)), "kernels: expected positive integers"),
        (dict(ffns=(-1, 1)), r"ffns: expected how many FFNs .*, got \(-1, 1\)"),
        (dict(ffns=2), "ffns: expected how many FFNs"),
        (dict(ffn_ratio=0), "ffn_ratio: expected more than 0, got 0"),
        (dict(ffn_ratio=1e-3), "ffn_ratio: expected to leave a hidden channel"),
        (dict(value_ratio=float("nan")), "value_ratio: expected more than 0, got nan"),
        (dict(split=False), "cascade: expected False where split is False"),
        (dict(drop_path_rate=1.0), "drop_path_rate: expected 0 to below 1, got 1.0"),
    ],
    ids=str,
)
def test_bad_argument(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        create_model("efficientvit_m0", **arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 32, 32), r"expected \[B, 3, H, W\], got \[1, 1, 32, 32\]"),
        ((3, 32, 32), r"expected \[B, 3, H, W\], got \[3, 32, 32\]"),
        ((1, 32, 32, 3), r"expected \[B, 3, H, W\], got \[1, 32, 32, 3\]"),
        ((1, 3, 32, 3), r"expected sides of at least 4, got \[32, 3\]"),
    ],
)
def test_bad_images(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"images: {message}"):
        create_model("efficientvit_m0_p4", **TINY)(torch.zeros(shape))


def test_other_channel_counts() -> None:
    model: Any = create_model("efficientvit_m0_p4", **TINY, in_chans=5).eval()
    assert model(images(1, 5, 32, 32).float()).shape == (1, 10)
    assert model.pretrained_cfg["input_size"] == (5, 32, 32)

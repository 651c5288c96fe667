"""Weights of every layout end up where they belong, or nothing changes and one line says why."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from randomised import images, random_model, relative_error
from safetensors.torch import save_file
from timm.layers import resize_rel_pos_bias_table_levit
from torch import Tensor, nn

from evitlab import create_model, load_model, load_weights, save_weights
from evitlab.models.weights import resize_bias_table

TINY: dict[str, Any] = dict(img_size=32, patch_size=4, num_classes=10, depth=(1, 1, 1))


def tiny(**options: Any) -> Any:
    return random_model("efficientvit_m0", **{**TINY, **options})


def assert_same(model: nn.Module, weights: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert state.keys() == weights.keys()
    for key in state:
        assert torch.equal(state[key], weights[key]), key


@contextmanager
def refused(model: nn.Module, error: type[Exception], message: str) -> Iterator[None]:
    """One line is raised, and the model keeps what it had."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(error, match=message) as raised:
        yield
    assert "\n" not in str(raised.value)
    assert_same(model, before)


def official(model: Any) -> dict[str, Tensor]:
    """The state dict under the names of the official code, with all that its files hold."""

    def rename(key: str) -> str:
        key = re.sub(r"\.conv\.weight", ".c.weight", key).replace("head.linear.", "head.l.")
        key = re.sub(r"^patch_embed\.conv(\d)", lambda m: f"patch_embed.{2 * (int(m[1]) - 1)}", key)
        for stage in (1, 2, 3):  # official stages count from 1
            ours = rf"^stages\.{stage - 1}\."
            for i, part in enumerate(("res1", "patchmerge", "res2")):
                key = re.sub(rf"{ours}downsample\.{part}\.", f"blocks{stage}.{i}.", key)
            first = 0 if stage == 1 else 3
            block = re.match(rf"{ours}blocks\.(\d+)\.", key)
            if block:
                key = f"blocks{stage}.{int(block[1]) + first}.{key[block.end() :]}"
        return key

    weights = {rename(key): value.clone() for key, value in model.state_dict().items()}
    for name, module in model.named_modules():
        if name.endswith(".attn"):
            table, indices = module.attention_biases.detach(), module.attention_bias_idxs
            weights[rename(f"{name}.attention_bias_idxs")] = indices
            weights[rename(f"{name}.ab")] = table[:, indices]  # the cache of evaluation mode
    return weights


def test_official_names_are_official() -> None:
    """A few names as they stand in the official files."""
    names = official(create_model("efficientvit_m0"))
    for key in (
        "patch_embed.0.c.weight",
        "patch_embed.6.bn.running_var",
        "blocks1.0.dw0.m.c.weight",
        "blocks1.0.mixer.m.attn.qkvs.3.c.weight",
        "blocks1.0.mixer.m.attn.attention_bias_idxs",
        "blocks2.0.0.m.c.weight",
        "blocks2.0.1.m.pw1.c.weight",
        "blocks2.1.conv2.c.weight",
        "blocks2.1.se.fc1.weight",
        "blocks2.2.1.m.pw2.bn.bias",
        "blocks3.5.mixer.m.attn.proj.1.c.weight",
        "head.bn.weight",
        "head.l.bias",
    ):
        assert key in names, key
    assert not [key for key in names if "stages" in key or "linear" in key or ".conv." in key]


@pytest.mark.parametrize("name", ["efficientvit_m0", "efficientvit_m5"])
def test_official_file(name: str, tmp_path: Path) -> None:
    source = random_model(name)
    torch.save({"model": official(source), "epoch": 299}, tmp_path / "official.pth")
    model = create_model(name, num_classes=1000)
    report = load_weights(model, tmp_path / "official.pth")
    assert_same(model, source.state_dict())
    assert report.layout == "official"
    assert report.loaded == tuple(model.state_dict())
    assert report.resized == report.missing == report.unexpected == report.mismatched == ()


def test_official_pointwise_kernels_may_be_matrices() -> None:
    source, model = tiny(), tiny(seed=1)
    weights = official(source)
    flat = [key for key, value in weights.items() if value.shape[2:] == (1, 1)]
    assert len(flat) > 20
    weights.update({key: weights[key].flatten(1) for key in flat})
    nested: dict[str, Any] = {"model": weights}
    load_weights(model, nested)
    assert_same(model, source.state_dict())


def test_official_distilled_head_is_named() -> None:
    weights = official(tiny())
    weights.update({k.replace("head", "head_dist"): v for k, v in weights.items() if "head" in k})
    with refused(tiny(seed=1), ValueError, "7 unexpected .head_dist.bn.bias"):
        load_weights(model := tiny(seed=1), weights)
    report = load_weights(model, weights, strict=False)
    assert len(report.unexpected) == 7 and "head_dist.linear.weight" in report.unexpected


def nest(key: str) -> Callable[[dict], dict]:
    return lambda weights: {key: weights, "epoch": 3, "best": 71.5}


@pytest.mark.parametrize("wrap", [dict, nest("model"), nest("state_dict")])
@pytest.mark.parametrize("store", ["memory", "zip", "legacy"])
def test_state_dicts(wrap: Callable[[dict], dict], store: str, tmp_path: Path) -> None:
    source, model = tiny(), tiny(seed=1)
    given: Any = wrap(source.state_dict())
    if store != "memory":
        torch.save(given, tmp_path / "w.pt", _use_new_zipfile_serialization=store == "zip")
        given = tmp_path / "w.pt"
    report = load_weights(model, given)
    assert report.layout == "timm" and len(report.loaded) == len(model.state_dict())
    assert_same(model, source.state_dict())


def test_timm_model_gives_its_weights() -> None:
    source = timm.create_model("efficientvit_m1", num_classes=7)
    model = create_model("efficientvit_m1", num_classes=7, weights=source.state_dict())
    assert_same(model, source.state_dict())


@pytest.mark.parametrize("half", [False, True])
def test_own_safetensors(half: bool, tmp_path: Path) -> None:
    source, model = tiny(), tiny(seed=1)
    path = save_weights(source, tmp_path / "model.safetensors", half=half)
    expected = source.state_dict()
    if half:
        expected = {k: v.half().float() if v.ndim > 1 else v for k, v in expected.items()}
    for given in (path, str(path), tmp_path):  # a run's folder holds model.safetensors
        load_weights(model, given)
        assert_same(model, expected)
        model = tiny(seed=2)


def test_half_precision_state_dict_into_double_precision() -> None:
    source, model = tiny().half(), tiny(seed=1).double()
    load_weights(model, source.state_dict())
    assert {v.dtype for v in model.state_dict().values()} == {torch.float64, torch.int64}
    assert_same(model, source.double().state_dict())


def test_name_in_data_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoints").mkdir()
    source = tiny()
    save_weights(source, tmp_path / "checkpoints" / "m0_toy.safetensors")
    monkeypatch.setattr("evitlab.models.weights.data_dir", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    assert_same(create_model("efficientvit_m0", **TINY, weights="m0_toy"), source.state_dict())
    with refused(source, FileNotFoundError, "m0_toi: expected .* one of m0_toy"):
        load_weights(source, "m0_toi")


def test_load_model_rebuilds_what_was_saved(tmp_path: Path) -> None:
    options = dict(cascade=False, ffns=(0, 1), activation="hardswish", window_size=(4, 4, 4))
    source = tiny(img_size=(32, 48), in_chans=1, **options)
    source.reset_classifier(3)
    x = images(2, 1, 32, 48).float()
    save_weights(source, tmp_path / "model.safetensors", class_names=("cat", "dog", "ship"))
    model: Any = load_model(tmp_path)
    assert model.config == source.config and model.class_names == ("cat", "dog", "ship")
    assert not model.training
    torch.testing.assert_close(model(x), source(x))


def resized_from_timm(table: Tensor, side: int) -> Tensor:
    shape = (side * side, table.shape[0])
    return resize_rel_pos_bias_table_levit(table.T, shape).T


def test_tables_are_resized_as_timm_does() -> None:
    source = random_model("efficientvit_m0", num_classes=10)
    model: Any = create_model("efficientvit_m0_p4", img_size=32, num_classes=10)
    report = load_weights(model, source.state_dict())
    tables = [key for key in model.state_dict() if "attention_biases" in key]
    assert sorted(report.resized) == sorted(tables) and set(tables) <= set(report.loaded)
    given, own = source.state_dict(), model.state_dict()
    for key in tables:  # windows of 7, 7, 4 at 224 and of 8, 4, 2 here
        side = model.get_submodule(key.rpartition(".")[0]).window[0]
        expected = resized_from_timm(given[key], side)
        assert relative_error(own[key], expected) < 1e-6, key


def test_resizing_a_table_by_hand() -> None:
    flat = torch.full((2, 49), 3.0)
    assert torch.allclose(resize_bias_table(flat, (5, 3)), torch.full((2, 15), 3.0))
    rising = torch.arange(16.0).view(1, 16)  # 4 * row + column
    shrunk = resize_bias_table(rising, (4, 2)).view(4, 2)
    assert torch.allclose(shrunk[1:] - shrunk[:-1], torch.full((3, 2), 4.0), atol=1e-5)
    assert (shrunk[:, 1] > shrunk[:, 0]).all() and shrunk.mean().item() == pytest.approx(7.5)
    assert resize_bias_table(flat.half(), (4, 4)).dtype == torch.float16


def test_table_of_a_rectangular_window_is_not_resized() -> None:
    source, model = tiny(img_size=(32, 16)), tiny(img_size=32)
    with refused(model, ValueError, "table of a square window, got 28 offsets; build the model"):
        load_weights(model, source.state_dict())


def test_resizing_between_upright_and_square_images() -> None:
    source, model = tiny(img_size=32), tiny(img_size=(32, 16), seed=1)
    by_column = source.stages[0].blocks[0].mixer.m.attn.attention_biases.detach().view(4, 7, 7)
    by_column[:] = torch.arange(7.0)
    assert len(load_weights(model, source.state_dict()).resized) == 3
    attention = model.stages[0].blocks[0].mixer.m.attn
    assert attention.window == (7, 4)
    table = attention.attention_biases.detach().view(4, 7, 4)
    assert torch.allclose(table, table[:, :1]) and (table[:, :, 1:] > table[:, :, :-1]).all()


def test_classifier_of_another_class_count() -> None:
    source, model = tiny(), tiny(num_classes=7, seed=1)
    message = r"head.linear.* is \[10.*\], expected \[7.*; strict=False takes what fits"
    with refused(model, ValueError, message):
        load_weights(model, source.state_dict())
    before = model.head.linear.weight.clone()
    report = load_weights(model, source.state_dict(), strict=False)
    assert report.mismatched == ("head.linear.bias", "head.linear.weight")
    assert len(report.loaded) == len(model.state_dict()) - 2
    assert torch.equal(model.head.linear.weight, before)
    assert torch.equal(model.head.bn.weight, source.head.bn.weight)


def test_missing_and_unexpected_keys() -> None:
    source, model = tiny(), tiny(seed=1)
    weights = {**source.state_dict(), "stages.9.weight": torch.zeros(1)}
    del weights["head.bn.bias"], weights["patch_embed.conv1.bn.weight"]
    message = r"2 missing \(patch_embed.conv1.bn.weight, head.bn.bias\); 1 unexpected \(stages.9"
    with refused(model, ValueError, message):
        load_weights(model, weights)
    kept = model.head.bn.bias.clone()
    report = load_weights(model, weights, strict=False)
    assert report.missing == ("patch_embed.conv1.bn.weight", "head.bn.bias")
    assert report.unexpected == ("stages.9.weight",)
    assert torch.equal(model.head.bn.bias, kept)
    assert torch.equal(model.patch_embed.conv1.conv.weight, source.patch_embed.conv1.conv.weight)


def test_weights_of_another_member_do_not_fit() -> None:
    other = random_model("efficientvit_m1", **TINY).state_dict()
    with refused(model := tiny(), ValueError, "source: does not fit the model: .* expected"):
        load_weights(model, other)
    with pytest.raises(ValueError, match="does not fit the model"):
        create_model("efficientvit_m0", **TINY, weights=other)


@pytest.mark.parametrize("given", [{}, {"model": {}}, {"weight": torch.zeros(2)}], ids=str)
def test_state_dict_of_something_else(given: dict) -> None:
    with refused(model := tiny(), ValueError, "693 missing|missing"):
        load_weights(model, given)
    with refused(model, ValueError, "expected a state dict of this model, got none of its keys"):
        load_weights(model, given, strict=False)


def write(path: Path, content: Any) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize(
    "content", [[1, 2], {"a": 1}, torch.zeros(2)], ids=["list", "int", "tensor"]
)
def test_file_without_a_state_dict(content: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "w.pth", content)
    with refused(model := tiny(), ValueError, "source: expected a state dict of tensors, got"):
        load_weights(model, path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".legacy.pth"])
@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, -1])
def test_truncated_file(suffix: str, keep: float, tmp_path: Path) -> None:
    model, path = tiny(), tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_weights(model, path)
    else:
        zipped = suffix == ".pth"
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep) if keep == 0.5 else int(keep)])
    with refused(model, ValueError, rf"w{suffix}: truncated or not a weights file \(.+\)"):
        load_weights(model, path, strict=False)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.bin"])
@pytest.mark.parametrize("content", [b"hello world, not weights\n", bytes(range(256))], ids=len)
def test_file_of_something_else(name: str, content: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / name, content)
    with refused(model := tiny(), ValueError, f"{name}: truncated or not a weights file"):
        load_weights(model, path)


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_the_trap_closes(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Trap(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["checkpoint", "legacy checkpoint", "plain pickle", "module"])
def test_pickle_with_code_is_refused_and_not_run(kind: str, tmp_path: Path) -> None:
    model, path = tiny(), tmp_path / "w.pth"
    trapped = {"model": model.state_dict(), "optimizer": Trap(tmp_path / "ran")}
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps(trapped["optimizer"], protocol=2))
    elif kind == "module":
        model.extra = trapped["optimizer"]
        torch.save(model, path)
    else:
        torch.save(trapped, path, _use_new_zipfile_serialization=kind == "checkpoint")
    for strict in (True, False):
        with refused(
            model, ValueError, r"w.pth: needs code to be unpickled \(\S+\), which is refus"
        ):
            load_weights(model, path, strict=strict)
    assert not (tmp_path / "ran").exists()


def test_nothing_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pth", tmp_path):
        with refused(model := tiny(), FileNotFoundError, f"{path}: expected a weights file"):
            load_weights(model, path)
        with pytest.raises(FileNotFoundError, match=f"{path}: expected a weights file"):
            load_model(path)


def fetching(result: Any, asked: list[str]) -> Callable[..., Any]:
    def fetch(repository: str, **options: Any) -> Any:
        asked.append(repository)
        assert options.get("weights_only") is True, "the hub's pickles may hold code too"
        if isinstance(result, Exception):
            raise result
        return result

    return fetch


def test_weights_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    source = random_model("efficientvit_m1")
    fetch = fetching(source.state_dict(), asked)
    monkeypatch.setattr("timm.models.load_state_dict_from_hf", fetch)
    assert_same(create_model("efficientvit_m1", weights="timm"), source.state_dict())
    small: Any = create_model("efficientvit_m1_p8", img_size=64, weights="timm")
    assert torch.equal(small.head.linear.weight, source.head.linear.weight)
    assert asked == ["timm/efficientvit_m1.r224_in1k"] * 2


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = fetching(OSError("offline:\nno such host"), [])
    monkeypatch.setattr("timm.models.load_state_dict_from_hf", fetch)
    message = r"timm/efficientvit_m0.r224_in1k is not in the local cache .*OSError.*pass its path"
    with refused(model := tiny(), FileNotFoundError, message):
        load_weights(model, "timm")
    with pytest.raises(ValueError, match="'timm' needs a model by name, got a Linear"):
        load_weights(nn.Linear(1, 1), "timm")


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (None, "expected safetensors written by evitlab"),
        ("no JSON", "expected safetensors written by evitlab"),
        ("[1]", "expected safetensors written by evitlab"),
        ("{}", "expected safetensors written by evitlab"),
        (dict(architecture="resnet50", config={}, class_names=[]), "got 'resnet50'"),
        (dict(architecture="efficientvit_m0", config={"head": 1}, class_names=[]), "head: unknown"),
        (dict(architecture="efficientvit_m0", config=3, class_names=[]), "expected safetensors"),
    ],
    ids=str,
)
def test_load_model_without_a_good_card(card: Any, message: str, tmp_path: Path) -> None:
    text = card if isinstance(card, str) else json.dumps(card)
    metadata = {} if card is None else {"evitlab": text}
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=message) as raised:
        load_model(tmp_path / "w.safetensors")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_load_model_of_a_damaged_file(keep: float, tmp_path: Path) -> None:
    path = save_weights(tiny(), tmp_path / "w.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep) if keep == 0.5 else int(keep)])
    with pytest.raises(ValueError, match="w.safetensors: expected safetensors written by evitlab"):
        load_model(path)

"""Checkpoints and weights come back whole, or one line says why not; nothing in them is run."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from randomised import images, randomise
from safetensors import safe_open
from safetensors.torch import load_file
from small_runs import RunsCode, one_line, tiny_vit
from torch import Tensor, nn

from evitlab import load_model, save_weights
from evitlab.training.checkpoint import load_checkpoint, save_checkpoint


def a_state() -> dict[str, Any]:
    return {
        "identity": {"model": "m", "img_size": (32, 32), "recipe": {"betas": (0.9, 0.999)}},
        "model": {
            "weight": torch.randn(4, 3),
            "count": torch.tensor(7),
            "half": torch.ones(2).half(),
        },
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]},
        "ema": None,
        "history": [{"epoch": 1, "val_top1": None}],
    }


def assert_equal(ours: Any, theirs: Any) -> None:
    """Values and types, tensors bit by bit."""
    assert type(ours) is type(theirs)
    if isinstance(ours, Tensor):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for key in ours:
            assert_equal(ours[key], theirs[key])
    elif isinstance(ours, (list, tuple)):
        for mine, other in zip(ours, theirs, strict=True):
            assert_equal(mine, other)
    else:
        assert ours == theirs


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    state = a_state()
    path = save_checkpoint(state, tmp_path / "new folder" / "last.pt")
    found = load_checkpoint(path)
    assert found.pop("format") == 1
    assert_equal(found, state)


def test_a_checkpoint_cut_anywhere_is_refused_by_name(tmp_path: Path) -> None:
    path = save_checkpoint(a_state(), tmp_path / "last.pt")
    content = path.read_bytes()
    for size in (0, 1, 100, len(content) // 2, len(content) - 100, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError) as raised:
            load_checkpoint(path)
        assert one_line(raised).startswith(f"{path}: truncated"), size


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no checkpoint at all", "truncated or not a weights file"),
        (bytes(range(256)) * 8, "truncated or not a weights file"),
        ({"model": {"weight": torch.ones(2)}}, "expected a checkpoint of format 1"),
        ({"format": 2}, "expected a checkpoint of format 1"),
        ([1, 2, 3], "expected a checkpoint of format 1"),
    ],
    ids=["text", "bytes", "state dict", "another format", "list"],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "last.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message) as raised:
        load_checkpoint(path)
    assert one_line(raised).startswith(f"{path}: ")


def test_code_in_a_checkpoint_is_named_and_not_run(tmp_path: Path) -> None:
    path = save_checkpoint({"state": RunsCode(tmp_path / "broken into")}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"needs code to be unpickled \(\w+\.mkdir\)") as raised:
        load_checkpoint(path)
    assert "weights_only" not in one_line(raised)  # torch's advice on how to run it
    assert not (tmp_path / "broken into").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "broken into").exists()  # it would have run


def test_a_missing_checkpoint_or_a_folder_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "last.pt")
    with pytest.raises(IsADirectoryError):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("save", ["checkpoint", "weights"])
def test_writing_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: str
) -> None:
    def write(value: float) -> None:
        if save == "checkpoint":
            save_checkpoint({"value": value}, tmp_path / "file")
        else:
            model = nn.Linear(1, 1)
            nn.init.constant_(model.weight, value)
            save_weights(model, tmp_path / "file")

    write(1.0)
    before = (tmp_path / "file").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left") as raised:
        patch.setattr(os, "fsync", full)
        write(2.0)
    assert str(tmp_path / "file") in one_line(raised)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": before}
    write(2.0)
    assert (tmp_path / "file").read_bytes() != before


NAMES = ("disk", "square", "triangle")


@pytest.fixture(scope="module")
def model() -> Any:
    """Not channels-last only, not initialised weights only: as training leaves it."""
    model = randomise(tiny_vit(ffn_ratio=3.0, cascade=False))
    return model.to(memory_format=torch.channels_last).train()


def test_weights_come_back_with_what_rebuilds_the_model(model: Any, tmp_path: Path) -> None:
    again: Any = load_model(save_weights(model, tmp_path / "m.safetensors", class_names=NAMES))
    assert again.config == model.config
    assert not again.config.cascade  # of no effect on names and shapes
    assert again.pretrained_cfg == model.pretrained_cfg
    assert again.class_names == NAMES
    assert not again.training
    assert_equal(dict(again.state_dict()), dict(model.state_dict()))
    batch = images(2, 3, 32, 32).float()
    # State dicts are equal bit for bit; sums may differ in the last with the tensors' alignment.
    torch.testing.assert_close(again(batch), model.eval()(batch))
    model.train()


def test_weights_know_their_normalisation(tmp_path: Path) -> None:
    model = tiny_vit()
    model.pretrained_cfg |= {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    again: Any = load_model(save_weights(model, tmp_path / "m.safetensors"))
    assert list(again.pretrained_cfg["mean"]) == [0.5, 0.5, 0.5]
    assert list(again.pretrained_cfg["std"]) == [0.25, 0.25, 0.25]


def test_half_precision_halves_the_file_and_keeps_the_logits(model: Any, tmp_path: Path) -> None:
    whole = save_weights(model, tmp_path / "whole.safetensors", class_names=NAMES)
    half = save_weights(model, tmp_path / "half.safetensors", class_names=NAMES, half=True)
    bytes_of = {path: sum(t.nbytes for t in load_file(path).values()) for path in (whole, half)}
    assert bytes_of[half] / bytes_of[whole] == pytest.approx(0.5, abs=0.1)
    assert half.stat().st_size < 0.7 * whole.stat().st_size  # tensors are small here
    for key, value in load_file(half).items():
        original = model.state_dict()[key]
        halved = original.ndim > 1  # norms' statistics may be larger than float16 holds
        expected = torch.float16 if halved else original.dtype
        assert value.dtype == expected, key
    again = load_model(half)
    assert {tensor.dtype for tensor in again.parameters()} == {torch.float32}
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    batch = images(4, 3, 32, 32).float()
    torch.testing.assert_close(again(batch), load_model(whole)(batch), rtol=0, atol=1e-2)


def test_statistics_that_float16_cannot_hold_survive_half_precision(tmp_path: Path) -> None:
    """A variance of about 1e6, with weights that keep the function as it was."""
    model = randomise(tiny_vit()).eval()
    batch = images(2, 3, 32, 32).float()
    expected = model(batch)
    bn = model.patch_embed.conv1.bn
    with torch.no_grad():
        bn.running_var *= 1e6
        bn.weight *= 1e3
    again = load_model(save_weights(model, tmp_path / "m.safetensors", half=True))
    torch.testing.assert_close(again(batch), expected, rtol=0, atol=1e-2)
    assert expected.abs().max() > 0.1


def test_weights_of_timms_model_are_saved_under_its_name(tmp_path: Path) -> None:
    path = save_weights(
        timm.create_model("efficientvit_m0", num_classes=3), tmp_path / "t.safetensors"
    )
    with safe_open(path, "pt") as file:
        card = json.loads(file.metadata()["evitlab"])
    assert (card["architecture"], card["config"]) == ("efficientvit_m0", {})


def test_equal_weights_make_equal_files(model: Any, tmp_path: Path) -> None:
    """Whatever the memory layout: else equal runs could not be told by their bytes."""
    first = save_weights(model, tmp_path / "1.safetensors", class_names=NAMES)
    other = tiny_vit(1, **{name: getattr(model.config, name) for name in ("ffn_ratio", "cascade")})
    other.load_state_dict(model.state_dict())
    assert dataclasses.asdict(other.config) == dataclasses.asdict(model.config)
    second = save_weights(other, tmp_path / "2.safetensors", class_names=NAMES)
    assert first.read_bytes() == second.read_bytes()

"""`evitlab heads`, the models it takes, and the sweep that says for which it works."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from evitlab import create_model, deploy, save_weights
from evitlab.analysis import capture_sweep
from evitlab.analysis.subjects import build, open_model, untrained
from evitlab.cli import main
from evitlab.records import CaptureSweep, HeadSimilarities
from evitlab.resources import data_dir


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Five pictures of five sizes, as they come from a camera or a screen."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i, size in enumerate([(300, 200), (64, 512), (224, 224), (97, 101), (640, 480)]):
        pixels = random.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.{'png' if i % 2 else 'jpg'}")
    return folder


def test_heads_of_a_timm_model_on_photographs(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures"
    command = ["heads", "vit_tiny_patch16_224", "--images", str(photographs), "--img-size", "64"]
    assert main([*command, "--out", str(out), "--json", str(tmp_path / "heads.json")]) == 0
    printed = capsys.readouterr().out
    assert "5 images" in printed and "untrained" in printed
    record = HeadSimilarities.load(tmp_path / "heads.json")
    assert [one.weights for one in record.records] == ["untrained"]  # nothing to compare with
    assert [block.num_heads for block in record.records[0].blocks] == [3] * 12
    first = f"{record.records[0].blocks[0].max_similarity:.3f}"
    assert any(line.split()[:4] == ["1", "global", "3", "17"] and first in line
               for line in printed.splitlines())  # fmt: skip
    for kind in ("maps", "blocks"):
        for ending in ("png", "svg", "csv"):
            assert (out / f"heads_{kind}_vit_tiny_patch16_224.{ending}").stat().st_size > 100
    rows = (out / "heads_maps_vit_tiny_patch16_224.csv").read_text().splitlines()
    assert len(rows) == 1 + 12 * 9


def test_heads_of_a_trained_model_beside_itself_untrained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = create_model("efficientvit_m0_p4", img_size=32, num_classes=10)
    path = save_weights(model, tmp_path / "mine.safetensors")
    command = ["heads", str(path), "--images", "embedded", "--limit", "8", "--json"]
    assert main([*command, str(tmp_path / "r.json"), "--out", str(tmp_path)]) == 0
    assert "untrained" in capsys.readouterr().out
    records = HeadSimilarities.load(tmp_path / "r.json").records
    assert [record.weights for record in records] == ["trained", "untrained"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["heads"], "MODEL: expected a model, or --sweep"),
        (["heads", "deit_tiny_patch16_224"], "--images: expected a folder"),
        (["heads", "resnet18", "--images", "embedded"],
         "model: expected attention of a known kind, got ResNet without any; supported:"),
        (["heads", "vit_tiny_patch16_225", "--images", "embedded"],
         "did you mean 'vit_tiny_patch16_224'?"),
        (["heads", "efficientvit_m0_p4", "--images", "embedded", "--limit", "1"],
         "images: expected at least 2, got 1"),
        (["heads", "efficientvit_m0_p4", "--images", "nowhere/photographs"], "nowhere"),
        (["heads", "nowhere/model.safetensors", "--images", "embedded"], "nowhere"),
        (["heads", "efficientvit_m0_cifar10", "--images", "embedded", "--weights", "hub"],
         "weights: expected the name of a model, got 'efficientvit_m0_cifar10'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--out", str(tmp_path)] if len(words) > 1 else words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("evitlab: error: ") and message in error


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "efficientvit_m0", "deit_t"])
def test_weights_of_the_hub_are_missed_in_one_line(name: str) -> None:
    """Tests have no network, and the hub's weights lie in no cache here."""
    with pytest.raises(FileNotFoundError, match="in the local cache and cannot be fetched"):
        open_model(name, weights="hub")


def test_weights_from_a_file_go_into_a_timm_model(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224")
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    loaded, label = open_model("vit_tiny_patch16_224", weights=str(tmp_path / "vit.pth"))
    assert label == "vit.pth"
    assert torch.equal(loaded.get_parameter("head.weight"), model.get_parameter("head.weight"))


@pytest.mark.parametrize(
    "name", ["efficientvit_m0", "deit_t_p4", "swin_t_p2", "vit_tiny_patch16_224", "levit_128s"]
)
def test_untrained_is_the_same_architecture_with_other_weights(name: str) -> None:
    model = build(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)  # as if trained
    fresh = untrained(model)
    for (key, ours), (other, theirs) in zip(
        model.named_parameters(), fresh.named_parameters(), strict=True
    ):
        assert key == other and ours.shape == theirs.shape
        assert not torch.equal(ours, theirs), key
    assert torch.equal(next(untrained(model).parameters()), next(fresh.parameters()))
    assert not torch.equal(next(untrained(model, seed=1).parameters()), next(fresh.parameters()))


def test_untrained_keeps_what_was_changed_or_says_that_it_cannot() -> None:
    model = create_model("deit_t_p4", img_size=32, num_classes=7, embed_dim=48, split_heads=True)
    assert untrained(model).config == model.config
    form = deploy(create_model("efficientvit_m0_p4", img_size=32).eval())
    assert type(untrained(form)) is type(form)
    with pytest.raises(ValueError, match="expected one that its name describes"):
        untrained(timm.create_model("vit_tiny_patch16_224", depth=2))
    with pytest.raises(ValueError, match="expected one that its name describes"):
        untrained(torch.nn.Linear(2, 2))


def test_a_sweep_continues_what_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("timm/efficientvit_m0", "resnet10t", "no_such_model")
    monkeypatch.setattr(capture_sweep, "FAMILIES", {"some": names})
    command = ["heads", "--sweep", "--json", str(tmp_path / "sweep.json")]
    assert main(command) == 0
    assert "1 of 3 models captured" in capsys.readouterr().out
    rows = {row.model: row for row in CaptureSweep.load(tmp_path / "sweep.json").rows}
    assert rows["timm/efficientvit_m0"].error is None
    assert rows["timm/efficientvit_m0"].kinds == ("cascade",)
    assert rows["timm/efficientvit_m0"].heads == (4,) * 6
    assert "expected attention" in (rows["resnet10t"].error or "")
    assert rows["no_such_model"].error == "not in this timm"
    built: list[str] = []

    def noted(name: str) -> torch.nn.Module:
        built.append(name)
        return build(name)

    monkeypatch.setattr(capture_sweep, "build", noted)
    assert main(command) == 0  # what worked is not done again
    assert built == ["resnet10t"]
    assert len(CaptureSweep.load(tmp_path / "sweep.json").rows) == 3


def test_the_recorded_sweep_covers_every_family() -> None:
    record = CaptureSweep.load(data_dir() / "results" / "capture_sweep.json")
    worked = [row for row in record.rows if row.error is None]
    assert len({row.model for row in worked}) >= 60
    assert {row.family for row in worked} == set(capture_sweep.FAMILIES)
    for row in worked:
        assert row.blocks > 0 and row.identity_error < 1e-5, row.model
        assert row.row_error < 1e-5 and row.output_error < 1e-3, row.model
    assert not [row.model for row in record.rows if row.error]
    assert "--sweep" in record.command and "/" not in json.dumps(record.environment.__dict__)

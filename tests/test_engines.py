"""Every engine computes what the model computes; folding changes nothing but the form."""

from __future__ import annotations

import copy
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evitlab import create_model
from evitlab.analysis import engines
from evitlab.analysis.engines import ENGINES, Setting, check_engine
from evitlab.analysis.folding import deployed, draw_statistics, fold_batch_norms
from evitlab.analysis.subjects import build

PEERS = ("timm/test_efficientnet", "timm/test_byobnet", "timm/levit_128s", "timm/efficientvit_m0")


def noise(batch: int, side: int = 160) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def close(found: Any, expected: Tensor) -> None:
    difference = float((torch.as_tensor(found) - expected).abs().max() / expected.abs().max())
    assert difference < 1e-4, f"relative difference {difference:.1e}"


def norms(model: nn.Module) -> int:
    return sum(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx")


@pytest.mark.parametrize(
    "name", [name for name in ENGINES if name not in ("compile", "cuda-graph", "openvino")]
)
def test_an_engine_computes_what_the_model_computes(name: str, folder: Path) -> None:
    """At two batch sizes; of ONNX one file serves both."""
    for module in ENGINES[name].needs:
        pytest.importorskip(module)
    model = draw_statistics(build("timm/test_efficientnet"))
    for batch in (1, 3):
        images = noise(batch)
        setting = Setting(images, "float32", torch.device("cpu"), 1, folder / "model.onnx")
        with torch.inference_mode():
            expected = model(images)
            call = ENGINES[name].build(copy.deepcopy(model), setting)
            answer: Any = call()
        close(answer[0] if name == "onnxruntime" else answer, expected)


OPENVINO = """
import copy, pathlib, sys, torch
from evitlab.analysis.engines import ENGINES, Setting
from evitlab.analysis.folding import draw_statistics
from evitlab.analysis.subjects import build
torch.manual_seed(0)
model = draw_statistics(build("timm/test_efficientnet"))
for batch in (1, 3):
    images = torch.randn(batch, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    setting = Setting(images, "float32", torch.device("cpu"), 1, pathlib.Path(sys.argv[1]))
    with torch.inference_mode():
        expected = model(images)
        answer = ENGINES["openvino"].build(copy.deepcopy(model), setting)()
    found = torch.as_tensor(next(iter(answer.values())))
    assert (found - expected).abs().max() / expected.abs().max() < 1e-4, batch
"""


def test_openvino_computes_what_the_model_computes(folder: Path) -> None:
    """In a process of its own, as `evitlab bench` runs it, from ONNX Runtime's file if it is there.

    Each test here starts from the same seed, so the model is the same.
    """
    pytest.importorskip("onnxscript")
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    command = [sys.executable, "-W", "ignore", "-c", OPENVINO, str(folder / "model.onnx")]
    subprocess.run(command, check=True, timeout=300)


def test_ours_is_exported_by_export_onnx_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is there for the next engine and batch size; tests/test_export.py checks it."""
    asked: list[tuple[nn.Module, Path]] = []

    def export(model: nn.Module, path: Path, *, verify: bool) -> Path:
        asked.append((model, path))
        path.write_bytes(b"")
        return path

    monkeypatch.setattr("evitlab.models.export.export_onnx", export)
    model = create_model("efficientvit_m0_p4", img_size=32, num_classes=4).eval()
    file = tmp_path / "ours.onnx"
    for batch in (1, 2):
        setting = Setting(noise(batch, 32), "float32", torch.device("cpu"), 1, file)
        assert engines._onnx_file(model, setting) == file
    assert asked == [(model, file)]


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_folds_all_its_norms_and_stays_the_same(name: str) -> None:
    model = draw_statistics(build(name))
    images = noise(1, 160 if "test" in name else 224)
    before = norms(model)
    folded = deployed(model, images)
    assert (before > 0, norms(folded)) == (True, 0)
    assert norms(model) == before, "the model passed in has changed"
    with torch.inference_mode():
        close(folded(images), model(images))


class Crossed(nn.Module):
    """Its norm stands behind a convolution and is called before it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(self.bn(images))


def test_a_model_that_cannot_be_folded_stays_as_it_is() -> None:
    model = draw_statistics(Crossed()).eval()
    images = noise(1, 4)
    found = deployed(model, images)
    assert norms(found) == 1
    with torch.inference_mode():
        close(found(images), model(images))


def test_folding_by_hand() -> None:
    """conv 2 x + 1, then (y - 5) / 2 * 6 + 7: 6 x - 5."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Identity(), nn.BatchNorm2d(1, eps=0)).eval()
    values = {"0.weight": 2.0, "0.bias": 1.0, "2.weight": 6.0, "2.bias": 7.0,
              "2.running_mean": 5.0, "2.running_var": 4.0}  # fmt: skip
    for name, value in values.items():
        model.state_dict()[name].fill_(value)
    assert fold_batch_norms(model) is model
    conv = model[0]
    assert isinstance(conv, nn.Conv2d) and conv.bias is not None
    assert (conv.weight.item(), conv.bias.item()) == (6.0, -5.0)
    assert isinstance(model[2], nn.Identity)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("onnxruntim", r"^engine: expected one of eager, .* got 'onnxruntim'; did you mean 'onnx"),
        ("tensorrt", r"^engine: expected one of eager, "),
    ],
)
def test_an_unknown_engine_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_engine(name)


@pytest.mark.parametrize(
    ("name", "extra"), [("onnxruntime", "onnx"), ("openvino", "onnx,openvino")]
)
def test_an_engine_that_is_not_installed_names_its_extra(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda module: None)
    with pytest.raises(ValueError, match=rf'^engine: {name} needs .*"evitlab\[{extra}\]"'):
        check_engine(name)
    assert check_engine("eager") is ENGINES["eager"]

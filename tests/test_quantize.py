"""int8: it runs, stays close, says what is left in float32, and what it gains and costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from exported import CLASSES, small_file, small_model
from randomised import images

from evitlab import open_dataset
from evitlab.analysis.quantization import (
    OnnxModel,
    calibration_batches,
    evaluate_onnx,
    quantize_and_measure,
)
from evitlab.cli import main
from evitlab.models import quantize
from evitlab.models.onnx_graph import describe_onnx, onnx_session
from evitlab.models.quantize import float_layers, quantize_onnx
from evitlab.records import QuantizationRecord
from evitlab.training.checkpoint import save_weights
from evitlab.training.evaluation import evaluate

# In float32 beside attention: torch 2.11 exports the scaling of padded windows on its own.
PRODUCTS = 2 if torch.__version__.startswith("2.11.") else 0


def noise(count: int, *size: int) -> torch.Tensor:
    return images(count, 3, *(size or (32, 32)), seed=5).float()


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model in int8."""
    path = tmp_path_factory.mktemp("int8") / "int8.onnx"
    return quantize_onnx(small_file(), path, noise(40))


@torch.no_grad()
def test_int8_stays_close_at_any_batch_size(int8: Path) -> None:
    call = onnx_session(int8)
    for batch in (1, 7):
        expected, found = small_model()(noise(batch)), call(noise(batch))
        assert found.shape == (batch, 10)
        assert (found - expected).square().mean() < 0.05 * expected.square().mean()
    assert 0 < describe_onnx(int8).card["quantized"]["relative_error"] < 0.2


def test_file_is_unsigned_by_signed_seven_bits_per_channel(int8: Path) -> None:
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(int8).graph.initializer}
    kernels = [t for t in tensors.values() if t.dtype.name == "int8" and t.ndim == 4]
    assert kernels and max(abs(int(k.min())) for k in kernels) <= 64
    assert any(t.dtype.name == "uint8" for t in tensors.values()), "zero points of activations"
    assert len(int8.read_bytes()) < len(small_file().read_bytes())


def test_layers_in_float32_are_named(int8: Path) -> None:
    """Attention without padding is one operator, which has no integer form."""
    kept = describe_onnx(int8).card["quantized"]["float32"]
    assert tuple(kept) == float_layers(int8)
    kinds = [name.rpartition("/")[2] for name in kept]
    assert kinds.count("Attention") == 4, "two heads each in the last two stages"
    assert len([kind for kind in kinds if kind.startswith("Mul")]) == PRODUCTS == len(kinds) - 4
    assert len(float_layers(small_file())) > 30, "of the float file all of them"


def test_card_is_of_the_model_and_no_longer_of_the_float_file(int8: Path) -> None:
    card = describe_onnx(int8).card
    assert tuple(card["class_names"]) == CLASSES and "verified" not in card
    assert card["quantized"]["images"] == 40


def test_an_exported_file_is_as_accurate_as_its_model(int8: Path) -> None:
    data = open_dataset("embedded", "val", limit=96)
    ours, theirs = evaluate_onnx(small_file(), data), evaluate(small_model(), data)
    assert (ours.top1, ours.top5, ours.n) == (theirs.top1, theirs.top5, theirs.n)
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
    assert ours.environment.precision == "float32"
    assert evaluate_onnx(int8, data).environment.precision == "int8"


def test_images_are_normalised_as_the_model_expects() -> None:
    data = open_dataset("embedded", "train", limit=40)
    batches = calibration_batches(OnnxModel(small_file()), data)
    assert [len(batch) for batch in batches] == [32, 8]
    red = data.images[:32, 0].float() / 255  # type: ignore[union-attr]
    torch.testing.assert_close(batches[0][:, 0], (red - 0.485) / 0.229)


def test_command_prints_what_int8_gains_and_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evitlab.models.export.trace_onnx", lambda *_: onnx.load(small_file()))
    weights = save_weights(small_model(), tmp_path / "w.safetensors", class_names=CLASSES)
    file, record_file = tmp_path / "int8.onnx", tmp_path / "int8.json"
    command = ["export", str(weights), str(file), "--int8", "--data", "embedded"]
    assert main([*command, "--calibrate", "32", "--json", str(record_file)]) == 0
    record = QuantizationRecord.load(record_file)
    out = capsys.readouterr().out
    assert record.float32 is not None and record.int8 is not None and record.points_lost is not None
    assert f"float32 {record.float32.top1:.2f} %, int8 {record.int8.top1:.2f} %" in out
    assert [row.batch_size for row in record.speed] == [1, 16]
    assert all(f"{row.ratio:.2f}x" in out for row in record.speed)
    products = f"{PRODUCTS} Mul, " if PRODUCTS else ""
    assert f"layers in float32: {products}4 Attention\n" in out
    assert record.float32_layers == float_layers(file)
    assert record.calibration_images == 32 and record.int8_bytes < record.float32_bytes
    assert record.command == (
        "evitlab export w.safetensors int8.onnx --int8 --data embedded --calibrate 32 "
        "--json int8.json"
    )
    assert list(record.to_frame()["batch_size"]) == [1, 16]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no images": ({"images": noise(0)}, "images: expected some to calibrate with, got none"),
    "other size": ({"images": noise(2, 40, 32)}, r"images: expected float32 \[n, 3, 32, 32\], got"),
    "pixels": ({"images": noise(2).byte()}, r"images: expected float32 .* got torch.uint8"),
    "images that are no numbers": ({"images": noise(2) * float("nan")}, "are not finite"),
}


@pytest.mark.parametrize(("changes", "said"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_said_and_leaves_nothing(
    changes: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(  # the tool itself takes its seconds
        quantize, "_quantize", lambda _, path, *__: path.write_bytes(small_file().read_bytes())
    )
    with pytest.raises(ValueError, match=said):
        quantize_onnx(small_file(), tmp_path / "int8.onnx", **{"images": noise(2), **changes})
    assert not list(tmp_path.iterdir())


def test_wrong_source_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.onnx"):
        quantize_onnx(tmp_path / "nowhere.onnx", tmp_path / "int8.onnx", noise(1))
    bare = onnx.load(small_file())
    del bare.metadata_props[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    with pytest.raises(ValueError, match=r"bare\.onnx: expected a file that evitlab exported"):
        OnnxModel(tmp_path / "bare.onnx")
    data = open_dataset("embedded", "val", limit=10)
    with pytest.raises(ValueError, match="batch_sizes and rounds: expected at least 1, got"):
        quantize_and_measure(small_file(), tmp_path / "x", calibration=data, data=None, rounds=0)

"""ONNX files and programs: equal at any batch size, with a card, and nothing left by errors."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from exported import CLASSES, small_file, small_model
from randomised import images, relative_error

from evitlab.cli import main
from evitlab.models import export, onnx_graph
from evitlab.models.export import export_onnx, export_program
from evitlab.models.onnx_graph import describe_onnx, onnx_session, trace_onnx
from evitlab.training.checkpoint import save_weights

ROOT = Path(__file__).parents[1]


def pixels(batch: int, *size: int, seed: int = 3) -> torch.Tensor:
    return images(batch, 3, *(size or (32, 32)), seed=seed).float()


@torch.no_grad()
def differs(model: Any, call: Any, *size: int) -> float:
    """Largest relative difference over batch sizes 1 and 7."""
    batches = [pixels(batch, *size) for batch in (1, 7)]
    return max(relative_error(call(batch), model(batch)) for batch in batches)


def test_file_gives_the_logits_of_the_model_at_any_batch_size() -> None:
    assert differs(small_model(), onnx_session(small_file())) < 1e-5


def test_batch_dimension_is_free_and_names_are_said() -> None:
    graph = onnx.load(small_file()).graph
    (into,), (out,) = graph.input, graph.output
    shape = [d.dim_param or d.dim_value for d in into.type.tensor_type.shape.dim]
    assert (into.name, shape) == ("images", ["batch", 3, 32, 32])
    shape = [d.dim_param or d.dim_value for d in out.type.tensor_type.shape.dim]
    assert (out.name, shape) == ("logits", ["batch", 10])


def test_card_says_what_a_user_of_the_file_needs() -> None:
    summary = describe_onnx(small_file())
    card = summary.card
    assert card["architecture"] == "efficientvit_m0_p4"
    assert tuple(card["class_names"]) == CLASSES
    assert card["img_size"] == [32, 32] and card["config"]["embed_dim"] == [16, 24, 32]
    assert card["mean"] == [0.485, 0.456, 0.406] and card["std"] == [0.229, 0.224, 0.225]
    assert card["verified"]["batch_sizes"] == [1, 8]
    assert 0 <= card["verified"]["relative_error"] <= 1e-5
    assert summary.opset == onnx_graph.OPSET and summary.nodes == sum(summary.operators.values())
    plain = {entry.key: entry.value for entry in onnx.load(small_file()).metadata_props}
    assert json.loads(plain["class_names"]) == list(CLASSES)  # for tools that know no card


def test_nodes_are_named_by_module_and_no_folder_of_this_machine_is_in_the_file() -> None:
    names = [node.name for node in onnx.load(small_file()).graph.node]
    assert len(set(names)) == len(names)
    for module in ("patch_embed", "stages.0.", "stages.2."):
        assert any(name.startswith(module) for name in names), module
    content = small_file().read_bytes()
    assert str(ROOT).encode() not in content and b"site-packages" not in content


def test_means_over_maps_become_pooling() -> None:
    class Means(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gate = x.mean((2, 3), keepdim=True)
            return (x * gate).mean((2, 3)) + x.mean((1, 2)).sum(1, keepdim=True)

    proto = trace_onnx(Means().eval(), pixels(2))
    operators = [node.op_type for node in proto.graph.node]
    assert operators.count("GlobalAveragePool") == 2
    assert operators.count("ReduceMean") == 1, "a mean over other axes stays"
    assert differs(Means(), onnx_session(proto.SerializeToString())) < 1e-5


def test_norms_that_do_not_fold_are_exported_as_they_are() -> None:
    model = small_model(norm="layer")
    assert export.inference_form(model, onnx=True) is model


def test_command_writes_a_program_that_runs_without_the_library(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small_model()
    weights = save_weights(model, tmp_path / "w.safetensors", class_names=CLASSES)
    path = tmp_path / "deeper" / "model.pt2"
    assert main(["export", str(weights), str(path)]) == 0
    assert capsys.readouterr().out.rstrip().endswith("equal to PyTorch at batch sizes 1 and 8")
    extra = {"evitlab": ""}
    program = torch.export.load(path, extra_files=extra).module()
    assert differs(model, program) < 1e-5
    assert tuple(json.loads(extra["evitlab"])["class_names"]) == CLASSES
    assert str(ROOT).encode() not in path.read_bytes()
    assert [file.name for file in path.parent.iterdir()] == ["model.pt2"]


def test_model_stays_as_it_was() -> None:
    model = small_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export.inference_form(model, onnx=True)
    assert not model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the seconds of tracing: the file of `small_model()`, whatever the model."""
    monkeypatch.setattr(export, "trace_onnx", lambda *_: onnx.load(small_file()))


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("wrong", [0.999, float("nan")])
def test_a_file_that_disagrees_does_not_stay(
    wrong: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("the file of yesterday")
    model = small_model()
    monkeypatch.setattr(export, "onnx_session", lambda _: lambda x: wrong * model(x))
    with pytest.raises(ValueError, match=r"model\.onnx: expected PyTorch's logits within 1e-04 at"):
        export_onnx(model, path)
    assert path.read_text() == "the file of yesterday"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("traced")
def test_without_verification_no_engine_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "onnxruntime")
    path = export_onnx(small_model(), tmp_path / "model.onnx", verify=False)
    assert "verified" not in describe_onnx(path).card
    with pytest.raises(ImportError, match=r"needs onnxruntime, not .* \"evitlab\[onnx\]\""):
        export_onnx(small_model(), path)


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """As if packages were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(onnx_graph, "find_spec", lambda n: None if n in packages else find(n))


@pytest.mark.parametrize(
    ("model", "arguments", "said"),
    [
        (lambda: small_model().train(), {}, "model: expected evaluation mode"),
        (lambda: small_model().half(), {}, r"model: expected float32, got torch.float16"),
        (lambda: torch.nn.Linear(2, 2).eval(), {}, "img_size: expected pixels, got None"),
        (small_model, {"img_size": 0}, "img_size: expected pixels, got 0"),
        (small_model, {"batch_sizes": ()}, r"batch_sizes: expected numbers of at least 1, got \[]"),
        (small_model, {"batch_sizes": (1, 0)}, "batch_sizes: expected numbers of at least 1"),
    ],
)
@pytest.mark.parametrize("write", [export_onnx, export_program])
def test_wrong_input_is_said_and_leaves_nothing(
    write: Any, model: Any, arguments: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        write(model(), tmp_path / "model.pt2", **arguments)
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_written_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(export, "trace_onnx", None)
    with pytest.raises(OSError, match=r"cannot write here .*file/model\.onnx"):
        export_onnx(small_model(), tmp_path / "file" / "model.onnx")


@pytest.mark.parametrize("content", [b"", b"not an ONNX file", b"\x00" * 64])
def test_what_is_no_onnx_file_is_said(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.onnx: expected an ONNX file"):
        describe_onnx(tmp_path / "x.onnx")
    with pytest.raises(ValueError, match=r"x\.onnx: ONNX Runtime refuses it"):
        onnx_session(tmp_path / "x.onnx")


@pytest.mark.slow
def test_command_exports_m0_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m0.onnx"
    assert main(["export", "efficientvit_m0", str(path)]) == 0
    said, untrained = capsys.readouterr().out.splitlines()
    summary = describe_onnx(path)
    assert f"opset {summary.opset}, {summary.nodes} nodes; equal to PyTorch within" in said
    assert said.endswith("at batch sizes 1 and 8")
    assert untrained == "efficientvit_m0: random weights; --weights loads trained ones"
    call = onnx_session(path)
    assert [call(pixels(batch, 224, 224)).shape for batch in (1, 7)] == [(1, 1000), (7, 1000)]


WRONG_COMMANDS = {
    "model with a typing error": (["efficientvit_mo", "x.onnx"], "did you mean 'efficientvit_m"),
    "nothing there": (["nowhere", "x.onnx"], "nowhere: expected a weights file, a run's folder"),
    "other suffix": (["efficientvit_m0", "x.pth"], "ends in .onnx, .pt2, .safetensors, got"),
    "half a file": (["efficientvit_m0", "x.onnx", "--half"], "--half: expected a FILE that ends"),
    "int8 program": (["efficientvit_m0", "x.pt2", "--int8"], "--int8: expected a FILE that ends"),
    "int8 without data": (["efficientvit_m0", "x.onnx", "--int8"], "--int8: expected --data too"),
    "data without int8": (["efficientvit_m0", "x.onnx", "--data", "cifar10"], "--data: expected"),
    "weights of weights": (
        ["efficientvit_m0_cifar10", "x.onnx", "--weights", "y"],
        "--weights: expected the name of a model, got 'efficientvit_m0_cifar10'",
    ),
    "no such data": (
        ["efficientvit_m0_p4", "x.onnx", "--int8", "--data", "cifar11"],
        "'cifar10'",
    ),
}


@pytest.mark.parametrize(("command", "said"), WRONG_COMMANDS.values(), ids=WRONG_COMMANDS)
def test_wrong_command_is_one_line(
    command: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", *command]) == 2
    error = capsys.readouterr().err
    assert error.startswith("evitlab: error: ") and error.count("\n") == 1
    assert said in error
    assert not list(tmp_path.iterdir())


def test_command_names_the_extra_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without(monkeypatch, "onnx", "onnxscript", "onnxruntime")
    assert main(["export", "efficientvit_m0_p4", str(tmp_path / "x.onnx")]) == 2
    expected = (
        "evitlab: error: ONNX needs onnx, onnxscript and onnxruntime, not installed here: "
        'pip install "evitlab[onnx]"\n'
    )
    assert capsys.readouterr().err == expected

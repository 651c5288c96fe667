"""What can run a model: one entry of ENGINES each, from a model and a batch to a call.

`eager` and `channels-last` run a model as it is built; all others run the form in which it would be
deployed (see `folding.deployed`): ours through `deploy`, any other through its library's own
folding. The ONNX file of ours comes from `export_onnx`; any other is exported the plain way,
`torch.onnx.export` after folding. Attention is as the library builds it: timm fuses DeiT's, not
Swin's.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from evitlab.analysis.folding import deployed
from evitlab.models.deploy import DeployedEfficientViT
from evitlab.models.efficientvit import EfficientViT
from evitlab.models.onnx_graph import quietly, require_onnx
from evitlab.wording import check_choice

PRECISIONS = ("float32", "bfloat16", "float16")
Call = Callable[[], object]  # runs one batch


@dataclass(frozen=True)
class Setting:
    """What a model is run on.

    Attributes:
        images: [B, 3, H, W], float32, on the CPU.
        onnx_file: where an engine that needs one puts the model, or finds it from before.
    """

    images: Tensor
    precision: str
    device: torch.device
    threads: int
    onnx_file: Path

    def place(self, model: nn.Module) -> tuple[nn.Module, Tensor]:
        """Model and images on the device, in the precision."""
        dtype: torch.dtype = getattr(torch, self.precision)
        return model.to(self.device, dtype), self.images.to(self.device, dtype)


@dataclass(frozen=True)
class Engine:
    """One way to run a model."""

    build: Callable[[nn.Module, Setting], Call]  # a model in float32 on the CPU -> its call
    title: str
    layout: str = "contiguous"  # of the images: "contiguous" or "channels_last"
    needs: tuple[str, ...] = ()  # modules that must be installed
    extra: str | None = None  # the extra of evitlab that brings them
    devices: tuple[str, ...] = ("cpu", "cuda")
    precisions: tuple[str, ...] = PRECISIONS


def _eager(model: nn.Module, setting: Setting) -> Call:
    placed, images = setting.place(model)
    return lambda: placed(images)


def _channels_last(model: nn.Module, setting: Setting) -> Call:
    placed, images = setting.place(model)
    placed = placed.to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    return lambda: placed(images)


def _deploy(model: nn.Module, setting: Setting) -> Call:
    return _eager(deployed(model, setting.images[:1]), setting)


def _traced(model: nn.Module, setting: Setting) -> Call:
    placed, images = setting.place(deployed(model, setting.images[:1]))
    with warnings.catch_warnings():
        # torch has deprecated its tracer, which the paper's protocol asks for; and it warns of each
        # shape that becomes a constant, which for one size of images is what we want.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.freeze(torch.jit.trace(placed, images, check_trace=False))
    return lambda: traced(images)


def _compile(model: nn.Module, setting: Setting) -> Call:
    import torch._inductor.config as inductor

    placed, images = setting.place(deployed(model, setting.images[:1]))
    compiled = torch.compile(placed, dynamic=False)

    def call() -> object:
        # Weights as constants, packed for the CPU's kernels; read when the first call compiles.
        with inductor.patch(freezing=setting.device.type == "cpu"):
            return compiled(images)

    return call


def _cuda_graph(model: nn.Module, setting: Setting) -> Call:
    """Kernels recorded once and launched together: no work of Python between them."""
    placed, images = setting.place(deployed(model, setting.images[:1]))
    side = torch.cuda.Stream(setting.device)
    side.wait_stream(torch.cuda.current_stream(setting.device))
    with torch.cuda.stream(side):  # what libraries set up at their first call cannot be recorded
        for _ in range(3):
            placed(images)
    torch.cuda.current_stream(setting.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = placed(images)

    def replay() -> object:
        graph.replay()
        return placed, images, logits  # the graph holds their addresses, not them

    return replay


def _onnxruntime(model: nn.Module, setting: Setting) -> Call:
    require_onnx("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(
        str(_onnx_file(model, setting)), options, providers=["CPUExecutionProvider"]
    )
    feed = {session.get_inputs()[0].name: setting.images.numpy()}
    return lambda: session.run(None, feed)


def _openvino(model: nn.Module, setting: Setting) -> Call:
    # OpenVINO tells its makers that it is used, unless this package of theirs is missing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    core = openvino.Core()
    network = core.read_model(_onnx_file(model, setting))
    network.reshape(list(setting.images.shape))
    options = {
        "INFERENCE_NUM_THREADS": setting.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, as all engines here
        "INFERENCE_PRECISION_HINT": "f32",  # by itself it takes bfloat16 where the CPU has it
    }
    request = core.compile_model(network, "CPU", options).create_infer_request()
    images = setting.images.numpy()
    request.set_input_tensor(openvino.Tensor(images, shared_memory=True))

    def infer() -> object:
        assert images.size  # the request reads this memory, and does not hold it
        return request.infer()

    return infer


def _onnx_file(model: nn.Module, setting: Setting) -> Path:
    """The exported model, with a batch of any size; written where it is not there yet."""
    if setting.onnx_file.exists():
        return setting.onnx_file
    if isinstance(model, (EfficientViT, DeployedEfficientViT)):
        from evitlab.models.export import export_onnx

        return export_onnx(model, setting.onnx_file, verify=False)
    images = setting.images[:1].repeat(2, 1, 1, 1)  # of one image the exporter makes a constant
    module = deployed(model, images)
    with quietly():
        torch.onnx.export(
            module,
            (images,),
            setting.onnx_file,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    return setting.onnx_file


ENGINES = {
    "eager": Engine(_eager, "PyTorch"),
    "channels-last": Engine(_channels_last, "PyTorch, channels last", layout="channels_last"),
    "deploy": Engine(_deploy, "PyTorch, deployed form"),
    "traced": Engine(_traced, "torch.jit.trace, frozen (the paper's protocol)"),
    "compile": Engine(_compile, "torch.compile"),
    "cuda-graph": Engine(_cuda_graph, "CUDA graph", devices=("cuda",)),
    "onnxruntime": Engine(
        _onnxruntime,
        "ONNX Runtime",
        needs=("onnx", "onnxscript", "onnxruntime"),
        extra="onnx",
        devices=("cpu",),
        precisions=("float32",),
    ),
    "openvino": Engine(
        _openvino,
        "OpenVINO",
        needs=("onnx", "onnxscript", "openvino"),
        extra="onnx,openvino",
        devices=("cpu",),
        precisions=("float32",),
    ),
}


def missing(name: str) -> tuple[str, ...]:
    """Modules that an engine needs and that are not installed."""
    return tuple(module for module in ENGINES[name].needs if find_spec(module) is None)


def check_engine(name: str) -> Engine:
    """The engine of this name.

    Raises ValueError where there is none, or what it needs is not installed, with the extra.
    """
    check_choice("engine", name, ENGINES)
    absent = missing(name)
    if absent:
        install = f'pip install "evitlab[{ENGINES[name].extra}]"'
        raise ValueError(f"engine: {name} needs {', '.join(absent)}, not installed: {install}")
    return ENGINES[name]

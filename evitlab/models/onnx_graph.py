"""ONNX graphs: traced from a module, tidied, run, and described by the card they carry."""

import ast
import contextlib
import json
import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import onnx

OPSET = 23  # the first with the operator Attention
CARD = "evitlab"  # key of the card among the metadata of a file
_PLAIN = ("architecture", "class_names", "mean", "std", "img_size")  # also under their own keys


@dataclass(frozen=True)
class OnnxSummary:
    """What an ONNX file holds.

    Attributes:
        size_bytes: of the file.
        opset: version of the standard operators.
        operators: how many nodes of each type, the most frequent first.
        card: of the model: architecture, config, class_names, mean, std, img_size, evitlab (the
            release), and what was verified or quantized; empty for a file from elsewhere.
    """

    size_bytes: int
    opset: int
    operators: dict[str, int]
    card: dict[str, Any]

    @property
    def nodes(self) -> int:
        return sum(self.operators.values())


def describe_onnx(path: str | os.PathLike[str]) -> OnnxSummary:
    """Read what an ONNX file holds.

    Raises:
        ImportError: onnx is not installed.
        FileNotFoundError: no such file.
        ValueError: not an ONNX file.
    """
    proto = read_onnx(path)
    cards = [entry.value for entry in proto.metadata_props if entry.key == CARD]
    return OnnxSummary(
        size_bytes=Path(path).stat().st_size,
        opset=next(entry.version for entry in proto.opset_import if not entry.domain),
        operators=dict(Counter(node.op_type for node in proto.graph.node).most_common()),
        card=json.loads(cards[0]) if cards else {},
    )


def read_onnx(path: str | os.PathLike[str]) -> "onnx.ModelProto":
    """The graph in a file; raises as `describe_onnx`."""
    require_onnx("onnx")
    import onnx

    try:
        proto = onnx.load(os.fspath(path))
    except OSError:
        raise
    except Exception as error:  # protobuf's decoder raises its own types
        raise ValueError(f"{path}: expected an ONNX file ({type(error).__name__})") from error
    if not proto.graph.node:  # also an empty file decodes
        raise ValueError(f"{path}: expected an ONNX file, got one without operators")
    return proto


def trace_onnx(module: nn.Module, example: Tensor) -> "onnx.ModelProto":
    """ONNX of a module in evaluation mode that takes images [B, C, H, W] and gives one tensor.

    Nodes are named by the module that called them ("stages.0.blocks.0.mixer.m.attn/MatMul"); the
    exporter's own notes, which hold folders of this machine, are taken out.

    Args:
        module: any, of this library or not.
        example: a batch of at least two images; the batch dimension of the graph is free.

    Raises:
        ImportError: onnx or onnxscript is not installed.
    """
    require_onnx("onnx", "onnxscript")
    with quietly(), torch.no_grad():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _name_nodes(proto.graph)
    _pool_means(proto.graph)
    graph = proto.graph
    tensors = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for part in (proto, graph, *graph.node, *tensors):
        del part.metadata_props[:]
        part.doc_string = ""
    return proto


def _name_nodes(graph: "onnx.GraphProto") -> None:
    used: Counter[str] = Counter()
    caller = ""
    for node in graph.node:
        scopes = [e.value for e in node.metadata_props if e.key == "pkg.torch.onnx.name_scopes"]
        if scopes:  # a node that the optimiser made belongs to the one before
            caller = ast.literal_eval(scopes[0])[-2]
        name = f"{caller}/{node.op_type}"
        used[name] += 1
        node.name = f"{name}_{used[name]}" if used[name] > 1 else name


def _pool_means(graph: "onnx.GraphProto") -> None:
    """Means over the map become GlobalAveragePool, which engines run in the layout of convolutions.

    ONNX Runtime saves two reorderings (M0 at batch size 1 is 3 % faster), and has it in int8.
    """
    from onnx import helper, numpy_helper

    axes = {t.name: t for t in graph.initializer}
    known = (*graph.input, *graph.value_info)
    maps = {v.name for v in known if len(v.type.tensor_type.shape.dim) == 4}
    nodes, unused = [], set()
    for node in graph.node:
        nodes.append(node)
        if node.op_type != "ReduceMean" or node.input[0] not in maps or len(node.input) < 2:
            continue
        over = numpy_helper.to_array(axes[node.input[1]]) if node.input[1] in axes else ()
        if sorted(int(axis) % 4 for axis in over) != [2, 3]:
            continue
        keeps = all(a.i for a in node.attribute if a.name == "keepdims")
        pooled = node.output[0] if keeps else f"{node.output[0]}_pooled"
        unused.add(node.input[1])
        name = node.name.replace("ReduceMean", "GlobalAveragePool")
        nodes[-1] = helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name)
        if not keeps:
            flatten = node.name.replace("ReduceMean", "Flatten")
            nodes.append(helper.make_node("Flatten", [pooled], [node.output[0]], flatten))
    del graph.node[:]
    graph.node.extend(nodes)
    unused -= {name for node in nodes for name in node.input}
    for tensor in [t for t in graph.initializer if t.name in unused]:
        graph.initializer.remove(tensor)


def set_card(proto: "onnx.ModelProto", card: dict[str, Any]) -> None:
    """Put the card into a graph's metadata, and beside it the fields that other tools may read."""
    from onnx import helper

    texts = {
        key: card[key] if isinstance(card[key], str) else json.dumps(card[key])
        for key in _PLAIN
        if key in card
    }
    helper.set_model_props(proto, {CARD: json.dumps(card), **texts})
    proto.producer_name, proto.producer_version = "evitlab", card.get("evitlab", "")


def onnx_session(model: str | os.PathLike[str] | bytes) -> Callable[[Tensor], Tensor]:
    """A function from images to logits through ONNX Runtime, on as many threads as torch has.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: the engine refuses the file.
    """
    require_onnx("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    # Waiting threads that spin would take the processor from torch's, in the same process.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = model if isinstance(model, bytes) else os.fspath(model)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the engine's exceptions have no common class
        name = "model" if isinstance(model, bytes) else model
        raise ValueError(f"{name}: ONNX Runtime refuses it ({error})") from error
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(
        session.run(None, {name: images.contiguous().numpy()})[0]
    )


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the warnings, log lines and prints of the exporter and the quantiser."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def require_onnx(*packages: str) -> None:
    """Raise ImportError where a package of the extra is missing; to be called before it is loaded.

    ONNX Runtime is told to keep to itself what it runs: as of 1.29 it reports that to its makers,
    unless the environment says otherwise by the time that it is loaded.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ImportError(
            f'ONNX needs {_and(missing)}, not installed here: pip install "evitlab[onnx]"'
        )


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))

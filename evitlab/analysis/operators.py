"""Where the time of a forward pass goes: operator by operator, and part by part.

Two kinds of passes. One runs under a dispatch mode, which sees every operator call with its
tensors, and yields bytes and multiply-accumulates (`analysis.traffic`). The others run in turns
without and with torch's profiler, which yields self times. Both mark which part of the model is
running (`analysis.parts`), so the two meet in rows of one operator in one part.
"""

from __future__ import annotations

import copy
import inspect
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm.auto import tqdm

from evitlab.analysis.categories import category_of
from evitlab.analysis.conditions import fused_attention as attention_fused
from evitlab.analysis.parts import parts_of, scopes
from evitlab.analysis.roofline import measure_roofline, synchronize
from evitlab.analysis.traffic import call_traffic
from evitlab.records import (
    CATEGORIES,
    OperatorProfile,
    OperatorRow,
    environment_card,
    write_atomically,
)
from evitlab.training.evaluation import checked_device

_SCOPE = "part: "  # how a part's range is named in the profile and in its trace
_Key = tuple[str, str]  # operator ("aten::addmm"), part


def profile_operators(
    model: nn.Module,
    inputs: Tensor | Sequence[Any],
    *,
    device: str | torch.device | None = None,
    fused_attention: bool | None = None,
    rounds: int = 5,
    name: str | None = None,
    trace_path: str | os.PathLike[str] | None = None,
) -> OperatorProfile:
    """Profile the forward pass of a model in evaluation mode.

    Args:
        model: any module. It is not touched: in training mode or on another device, a copy runs.
        inputs: [B, C, H, W] images, or a sequence of all that the forward pass takes.
        device: None is where the model is.
        fused_attention: False splits attention into separate operators wherever it is fused,
            the paper's conditions; True fuses it wherever the model can; None leaves it as it is.
        rounds: passes with the profiler, in turns with passes without; medians of both.
        name: the model's, in the record; None takes its timm-style card's, or its class's.
        trace_path: also write the last pass there, as a trace for Chrome or Perfetto.

    Returns:
        Rows of one operator in one part of the model, the longest first. On a GPU, self times
        are those of the kernels.

    Raises:
        ValueError: inputs that the forward pass does not take, `rounds` below one, or a device
            that torch cannot use here.
        OSError: `trace_path` cannot be written.

    Paper: Section 2.1, Fig. 2, measured there on one V100 with unfused attention.
    Pitfall: the profiler makes each operator call some microseconds longer, so shares of small
    operators come out too high where `OperatorProfile.overhead` is far above 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds: expected at least 1, got {rounds}")
    given = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    _check_inputs(model, given)
    home = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    place = home if device is None else checked_device(device)
    # Ordinary tensors: ones made in inference mode hide composite operators' parts.
    with torch.inference_mode(False), torch.no_grad():
        given = tuple(
            value.to(place, copy=value.is_inference()) if isinstance(value, Tensor) else value
            for value in given
        )
    if place != home or any(module.training for module in model.modules()):
        model = copy.deepcopy(model).to(place).eval()
    parts = parts_of(model)

    def forward() -> None:
        model(*given)
        synchronize(place)

    with attention_fused(model, fused_attention):
        counter = _TrafficCounter()
        with torch.inference_mode(False), torch.no_grad(), scopes(parts, counter.part), counter:
            model(*given)
        plain, profiled, tables = [], [], []
        with torch.inference_mode(), _quiet(place):
            for round_ in tqdm(range(-1, rounds), desc="profile", unit="round", leave=False):
                seconds = _timed(forward)
                with scopes(parts, _range), _profiler(place) as profiler:
                    slower = _timed(forward)
                if round_ < 0:
                    continue  # warm-up
                plain.append(seconds)
                profiled.append(slower)
                tables.append(_self_times(profiler.events(), counter.operators, place))
    if trace_path is not None:
        _write_trace(profiler, Path(trace_path))

    images = given[0] if given and isinstance(given[0], Tensor) else torch.empty(0)
    dtype = images.dtype if images.dtype.is_floating_point else torch.float32
    card = getattr(model, "pretrained_cfg", None) or {}
    batch_size = len(images) if images.ndim else 1
    last = images.is_contiguous(memory_format=torch.channels_last) if images.ndim == 4 else False
    return OperatorProfile(
        model=name or card.get("architecture") or type(model).__name__,
        batch_size=batch_size,
        img_size=(images.shape[2], images.shape[3]) if images.ndim == 4 else None,
        fused_attention=counter.fused if fused_attention is None else fused_attention,
        rows=_rows(tables, counter),
        plain_ms=1e3 * median(plain),
        profiled_ms=1e3 * median(profiled),
        roofline=measure_roofline(place, dtype=dtype),
        environment=environment_card(
            device=place,
            precision=str(dtype).removeprefix("torch."),
            layout="channels_last" if last and not images.is_contiguous() else "contiguous",
            batch_size=batch_size,
        ),
    )


def _check_inputs(model: nn.Module, given: tuple[Any, ...]) -> None:
    """The forward pass must take as many inputs as there are."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # written in C++, or scripted: it will say so itself
        return
    try:
        signature.bind(*given)
    except TypeError:
        needed = [
            parameter.name
            for parameter in signature.parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        raise ValueError(
            f"inputs: {type(model).__name__}.forward expected {len(needed)} "
            f"input{'s' if len(needed) != 1 else ''} ({', '.join(needed)}), got {len(given)}"
        ) from None


class _TrafficCounter(TorchDispatchMode):
    """Bytes, multiply-accumulates and calls of every operator that runs, by operator and part."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[_Key] = Counter()
        self.bytes: Counter[_Key] = Counter()
        self.macs: Counter[_Key] = Counter()
        self._parts = ["other"]

    @property
    def operators(self) -> set[str]:
        return {operator for operator, _ in self.calls}

    @property
    def fused(self) -> bool:
        """An attention ran as one kernel."""
        return any("attention" in name for name in self.operators)

    @contextmanager
    def part(self, part: str) -> Iterator[None]:
        self._parts.append(part)
        try:
            yield
        finally:
            self._parts.pop()

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        result = func(*args, **(kwargs or {}))
        traffic = call_traffic(func, args, kwargs or {}, result)
        key = func._schema.name, self._parts[-1]
        self.calls[key] += 1
        self.bytes[key] += traffic.bytes
        self.macs[key] += traffic.macs
        return result


def _timed(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _profiler(place: torch.device) -> profile:
    activities = [ProfilerActivity.CPU]
    if place.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    return profile(activities=activities, acc_events=True)


def _range(part: str) -> record_function:
    return record_function(_SCOPE + part)


@contextmanager
def _quiet(place: torch.device) -> Iterator[None]:
    """On a CPU the profiler's library reports each start, and that there is no GPU, on stderr."""
    key = "KINETO_LOG_LEVEL"
    if place.type != "cpu" or key in os.environ:
        yield
        return
    os.environ[key] = "99"
    try:
        yield
    finally:
        del os.environ[key]


def _self_times(
    events: Sequence[FunctionEvent], seen: set[str], place: torch.device
) -> dict[_Key, tuple[int, float]]:
    """Calls and self milliseconds by operator and part, of one profiled pass.

    An event below an operator that the dispatcher showed (`seen`) is that operator's own work; an
    allocation below a wrapper is the wrapper's.
    """
    owners: dict[int, tuple[FunctionEvent | None, str]] = {}

    def owner(event: FunctionEvent | None) -> tuple[FunctionEvent | None, str]:
        """The event that this one's time belongs to, and the part it runs in."""
        if event is None:
            return None, "other"
        if event.id not in owners:
            above, part = owner(event.cpu_parent)
            if event.name.startswith(_SCOPE):
                above, part = None, event.name.removeprefix(_SCOPE)
            elif "::" in event.name:
                known = category_of(event.name) != CATEGORIES[-1]
                if above is None or (above.name not in seen and known):
                    above = event
            owners[event.id] = above, part
        return owners[event.id]

    calls: Counter[_Key] = Counter()
    times: defaultdict[_Key, float] = defaultdict(float)
    for event in events:
        if event.device_type != torch.autograd.DeviceType.CPU:
            continue  # a kernel: it stands with the operator that launched it
        operator, part = owner(event)
        if operator is None or event.name.startswith(_SCOPE):
            continue
        key = operator.name, part
        calls[key] += operator is event
        on_gpu = place.type == "cuda"
        times[key] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    return {key: (calls[key], 1e-3 * times[key]) for key in times}


def _rows(
    tables: Sequence[Mapping[_Key, tuple[int, float]]], counter: _TrafficCounter
) -> tuple[OperatorRow, ...]:
    """Medians over the passes, with what the traffic counter saw, the longest first."""
    none = (0, 0.0)
    busy = {key for key in counter.calls if counter.bytes[key] or counter.macs[key]}
    rows = [
        OperatorRow(
            operator=key[0],
            category=category_of(key[0]),
            module=key[1],
            calls=tables[-1].get(key, none)[0],
            self_ms=median(table.get(key, none)[1] for table in tables),
            bytes=counter.bytes[key],
            macs=counter.macs[key],
        )
        for key in busy.union(*tables)
    ]
    return tuple(sorted(rows, key=lambda row: (-row.self_ms, row.operator, row.module)))


def _write_trace(profiler: profile, path: Path) -> None:
    with TemporaryDirectory() as folder:
        # Not the file's own name: where that is none, torch would say so in its way.
        trace = Path(folder) / ("trace.json.gz" if path.suffix == ".gz" else "trace.json")
        profiler.export_chrome_trace(str(trace))
        write_atomically(path, trace.read_bytes())

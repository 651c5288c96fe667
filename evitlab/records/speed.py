"""Records of what was timed: operator profiles, throughput, and the ceilings beside them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from evitlab.records.base import Record
from evitlab.records.environment import Environment

# Kinds of operators. The paper calls those memory-bound that move data rather than compute.
CATEGORIES = (
    "matmul/conv", "softmax", "normalisation", "element-wise", "reshape/copy", "other",
)  # fmt: skip
MEMORY_BOUND = ("softmax", "normalisation", "element-wise", "reshape/copy")
# Parts of a model. "token mixing": depthwise and other spatial convolutions outside of the rest;
# "embedding": stem and subsampling; "other": what no module claims, mostly residual additions.
PARTS = ("attention", "token mixing", "ffn", "norm", "embedding", "head", "other")

# What the rows of one curve over the batch size have in common.
CURVE = ("model", "engine", "layout", "precision", "threads", "img_size")


@dataclass(frozen=True)
class Roofline(Record):
    """Ceilings of one device, measured."""

    peak_gmac_s: float  # 1e9 multiply-accumulates per second, the best of large matrix products
    bandwidth_gb_s: float  # 1e9 bytes read or written per second, far beyond the caches
    dispatch_us: float  # microseconds of an operator call that computes next to nothing
    environment: Environment

    @property
    def ridge(self) -> float:
        """Multiply-accumulates per byte at which computation and memory take equally long."""
        return self.peak_gmac_s / self.bandwidth_gb_s

    def floor_ms(self, macs: float, bytes_: float) -> float:
        """Milliseconds below which work of this size cannot come on this device."""
        return 1e-6 * max(macs / self.peak_gmac_s, bytes_ / self.bandwidth_gb_s)


@dataclass(frozen=True)
class OperatorRow:
    """All calls of one operator in one part of the model, during one forward pass."""

    operator: str  # as the dispatcher names it: "aten::addmm"
    category: str  # one of CATEGORIES
    module: str  # one of PARTS: the part of the model that called it
    calls: int
    self_ms: float  # its own time and its allocations' and kernels', not that of other rows
    bytes: int  # read and written, by the analytic model of analysis.traffic
    macs: int  # multiply-accumulates


@dataclass(frozen=True)
class OperatorProfile(Record):
    """Where the time of one forward pass goes."""

    model: str
    batch_size: int
    img_size: tuple[int, int] | None  # height, width; None where the input is no image
    fused_attention: bool  # torch's fused kernel allowed, or attention as separate operators
    rows: tuple[OperatorRow, ...]
    plain_ms: float  # median wall time of the forward pass without the profiler
    profiled_ms: float  # median wall time with it
    roofline: Roofline
    environment: Environment

    @property
    def self_ms(self) -> float:
        """Self time of all operators."""
        return sum(row.self_ms for row in self.rows)

    @property
    def memory_bound_share(self) -> float:
        """Share of the self time that operators of the MEMORY_BOUND categories take, 0 to 1."""
        bound = sum(row.self_ms for row in self.rows if row.category in MEMORY_BOUND)
        return bound / self.self_ms

    @property
    def overhead(self) -> float:
        """Profiled over plain wall time: how much the profiler slows what it measures."""
        return self.profiled_ms / self.plain_ms

    @property
    def calls(self) -> int:
        """Operator calls of one forward pass, views and wrappers included."""
        return sum(row.calls for row in self.rows)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one forward pass."""
        return sum(row.macs for row in self.rows)

    @property
    def bytes(self) -> int:
        """Bytes that one forward pass reads and writes, by the analytic model."""
        return sum(row.bytes for row in self.rows)

    @property
    def dispatch_ms(self) -> float:
        """What its calls alone would take, were there nothing to compute or move."""
        return 1e-3 * self.calls * self.roofline.dispatch_us

    @property
    def peak_share(self) -> float:
        """Multiply-accumulates per second over the device's peak, by the plain wall time; 0 to 1.

        Pitfall: a convolution that saves multiplications (Winograd's) can come out above 1.
        """
        return 1e-6 * self.macs / self.plain_ms / self.roofline.peak_gmac_s

    def by_category(self, roofline: Roofline | None = None) -> pd.DataFrame:
        """One row per operator category, in the order of CATEGORIES, also where nothing ran.

        Columns: category, calls, self_ms, share (of the self time, 0 to 1), bytes, macs,
        intensity (multiply-accumulates per byte), floor_ms (below which the roofline lets no
        operator come), floor_share (of all floors), achieved (floor_ms / self_ms: 1 is the best).

        Args:
            roofline: of another device, whose floors and their shares to show; None is the own.

        Pitfall: `achieved` above 1 is data that came from a cache, not from memory.
        """
        return self._by("category", CATEGORIES, roofline)

    def by_module(self, roofline: Roofline | None = None) -> pd.DataFrame:
        """One row per part of the model, in the order of PARTS; columns as `by_category` has."""
        return self._by("module", PARTS, roofline)

    def _by(self, column: str, order: tuple[str, ...], roofline: Roofline | None) -> pd.DataFrame:
        ceilings = roofline or self.roofline
        frame = self.to_frame()
        frame["floor_ms"] = [ceilings.floor_ms(row.macs, row.bytes) for row in self.rows]
        sums = ["calls", "self_ms", "bytes", "macs", "floor_ms"]
        frame = frame.groupby(column)[sums].sum().reindex(order, fill_value=0)
        frame.insert(2, "share", frame["self_ms"] / frame["self_ms"].sum())
        frame.insert(5, "intensity", frame["macs"] / frame["bytes"].where(frame["bytes"] > 0))
        frame["floor_share"] = frame["floor_ms"] / frame["floor_ms"].sum()
        frame["achieved"] = frame["floor_ms"] / frame["self_ms"].where(frame["self_ms"] > 0)
        return frame.reset_index()

    def to_frame(self) -> pd.DataFrame:
        """One row per operator and part; model and fused_attention stand in every row."""
        columns = [field.name for field in dataclasses.fields(OperatorRow)]
        frame = pd.DataFrame([dataclasses.asdict(row) for row in self.rows], columns=columns)
        frame.insert(0, "fused_attention", self.fused_attention)
        frame.insert(0, "model", self.model)
        return frame


@dataclass(frozen=True)
class OperatorProfiles(Record):
    """Profiles taken by one command."""

    profiles: tuple[OperatorProfile, ...]
    command: str  # the one command that regenerates this record
    environment: Environment

    def to_frame(self) -> pd.DataFrame:
        """The rows of all profiles."""
        return pd.concat([profile.to_frame() for profile in self.profiles], ignore_index=True)


@dataclass(frozen=True)
class ThroughputRecord(Record):
    """One model under one engine at one batch size: medians of interleaved rounds."""

    model: str  # "efficientvit_m0", "timm/deit_tiny_patch16_224", "torchvision/resnet18"
    engine: str  # one of analysis.engines.ENGINES
    layout: str  # memory format of the input: "contiguous" or "channels_last"
    precision: str  # "float32", "bfloat16", "float16", "int8"
    batch_size: int
    threads: int  # of the CPU
    img_size: tuple[int, int]  # height, width
    params: int
    macs: int  # multiply-accumulates for one image
    rounds: int
    img_per_s: float | None  # median of the rounds; None where `error` says why
    img_per_s_low: float | None  # first quartile
    img_per_s_high: float | None  # third quartile
    error: str | None  # one line: out of memory, engine not installed, not exportable
    environment: Environment

    @property
    def batch_ms(self) -> float | None:
        """Milliseconds of one batch."""
        return None if self.img_per_s is None else 1e3 * self.batch_size / self.img_per_s


@dataclass(frozen=True)
class ThroughputSweep(Record):
    """All rows of one sweep, and the ceilings of the device they were measured on."""

    rows: tuple[ThroughputRecord, ...]
    roofline: Roofline
    command: str  # the one command that regenerates this record
    environment: Environment

    def to_frame(self) -> pd.DataFrame:
        """One row per measurement, with device, hardware and the roofline's ceilings."""
        plain = [
            {k: v for k, v in dataclasses.asdict(row).items() if k != "environment"}
            | {"batch_ms": row.batch_ms, "hardware": row.environment.hardware}
            for row in self.rows
        ]
        return pd.DataFrame(plain)

    def half_speed(self) -> pd.DataFrame:
        """Where each curve over the batch size stops being launch-bound, one row per curve.

        Columns: those of CURVE, best_img_per_s, best_batch_size, and half_batch_size: the batch
        size that reaches half of the best speed, interpolated between logarithms, or the smallest
        one measured. Below it more than half of a call is not work on images but the cost of
        calling: with t0 ms per call and t1 per image, it is t0 / t1 in the limit of large batches.
        It is R. Hockney's n-half, for batches instead of vectors.

        Pitfall: operators that use the machine badly on small inputs count as cost of calling.
        """
        columns = [*CURVE, "best_img_per_s", "best_batch_size", "half_batch_size"]
        curves: dict[tuple[Any, ...], list[tuple[int, float]]] = {}
        for row in self.rows:
            if row.img_per_s is not None:
                key = tuple(getattr(row, name) for name in CURVE)
                curves.setdefault(key, []).append((row.batch_size, row.img_per_s))
        rows = []
        for key, curve in curves.items():
            best_size, best = max(curve, key=lambda point: point[1])
            rows.append((*key, best, best_size, _reaches(sorted(curve), best / 2)))
        return pd.DataFrame(rows, columns=columns)


def _reaches(curve: list[tuple[int, float]], speed: float) -> float:
    """Batch size at which a curve first reaches a speed, on straight lines between logarithms."""
    (size_before, before), *rest = curve
    if before >= speed:
        return float(size_before)
    for size, reached in rest:
        if reached >= speed:
            part = math.log(speed / before) / math.log(reached / before)
            return size_before * (size / size_before) ** part
        size_before, before = size, reached
    raise AssertionError("the best speed is on the curve")

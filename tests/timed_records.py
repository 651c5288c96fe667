"""Records of made-up timings, for tests of what reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from evitlab.records import (
    DeployRatios,
    Environment,
    OperatorProfile,
    OperatorRow,
    PeakRow,
    RatioRow,
    Roofline,
    ThroughputRecord,
    ThroughputSweep,
)

CARD = Environment(
    device="cpu",
    cpu_model="Abacus 2",
    cores=2,
    threads=1,
    python="3.11.7",
    torch="2.11.0+cpu",
    timm="1.0.20",
    precision="float32",
    layout="contiguous",
    batch_size=None,
    seed=0,
    dataset=None,
    scale="quick",
    date="2026-01-02T03:04:05+00:00",
    git_commit=None,
)
ROOFLINE = Roofline(peak_gmac_s=80.0, bandwidth_gb_s=10.0, dispatch_us=2.0, environment=CARD)

# operator, category, part, share of the time (percent) unfused, bytes and MACs per ms
_OPERATORS = (
    ("aten::addmm", "matmul/conv", "ffn", 40.0, 4e6, 4e7),
    ("aten::bmm", "matmul/conv", "attention", 20.0, 6e6, 1e7),
    ("aten::_softmax", "softmax", "attention", 8.0, 5e6, 0),
    ("aten::native_layer_norm", "normalisation", "norm", 6.0, 7e6, 0),
    ("aten::gelu", "element-wise", "ffn", 10.0, 8e6, 0),
    ("aten::copy_", "reshape/copy", "attention", 12.0, 9e6, 0),
    ("aten::convolution", "matmul/conv", "embedding", 3.0, 2e6, 3e7),
    ("aten::fill_", "other", "other", 1.0, 1e6, 0),
)


def profile(model: str = "deit_t", *, fused: bool = False, ms: float = 100.0) -> OperatorProfile:
    """A pass of batch 4: 36 % memory-bound unfused; fused, softmax and copies are gone (20 %)."""
    gone = ("softmax", "reshape/copy") if fused else ()
    rows = tuple(
        OperatorRow(
            operator, category, part, 12, pct * ms / 100,
            int(per_byte * pct * ms / 100), int(macs * pct * ms / 100),
        )
        for operator, category, part, pct, per_byte, macs in _OPERATORS
        if category not in gone
    )  # fmt: skip
    return OperatorProfile(
        model, 4, (224, 224), fused, rows, plain_ms=ms, profiled_ms=1.25 * ms,
        roofline=ROOFLINE, environment=CARD,
    )  # fmt: skip


def timing(
    model: str,
    batch_size: int,
    img_per_s: float | None,
    *,
    engine: str = "eager",
    **changes: object,
) -> ThroughputRecord:
    spread = (None, None) if img_per_s is None else (0.9 * img_per_s, 1.1 * img_per_s)
    row = ThroughputRecord(
        model=model, engine=engine, layout="contiguous", precision="float32",
        batch_size=batch_size, threads=1, img_size=(224, 224), params=1_000, macs=1_000_000,
        rounds=3, img_per_s=img_per_s, img_per_s_low=spread[0], img_per_s_high=spread[1],
        error="out of memory" if img_per_s is None else None, environment=CARD,
    )  # fmt: skip
    return dataclasses.replace(row, **changes)  # type: ignore[arg-type]


def sweep(rows: Sequence[ThroughputRecord]) -> ThroughputSweep:
    return ThroughputSweep(tuple(rows), ROOFLINE, "evitlab bench", CARD)


def family_sweep() -> ThroughputSweep:
    """Eight models, three engines, two layouts; a batch takes `call` + `image` * size ms."""
    names = [f"efficientvit_m{i}" for i in range(6)]
    names += ["timm/deit_tiny_patch16_224", "timm/swin_tiny_patch4_window7_224"]
    rows = []
    for i, name in enumerate(names):
        for engine, call in (("eager", 24.0), ("compile", 8.0), ("onnxruntime", 1.0)):
            for layout in ("contiguous", "channels_last"):
                for size in (1, 4, 16, 64, 256):
                    speed = 1e3 * size / (call + 2.0 * (i + 1) * size)
                    failed = size == 256 and "swin" in name
                    rows.append(
                        timing(name, size, None if failed else speed, engine=engine, layout=layout)
                    )
    return sweep(rows)


def deploy_ratios() -> DeployRatios:
    """Six models; the i-th is 1 + i / 10 times as fast, in every comparison."""
    names = [f"efficientvit_m{i}" for i in range(6)]
    compared = (
        ("deploy", 1, "eager"), ("deploy", 1, "folded"),
        ("onnxruntime", 1, "exported"), ("onnxruntime", 16, "exported"),
    )  # fmt: skip
    rows = tuple(
        RatioRow(name, engine, peer, size, 9, 10.0, 10 + i, 1 + i / 10, 0.95 + i / 10, 1.1 + i / 10)
        for engine, size, peer in compared
        for i, name in enumerate(names)
    )
    peak = tuple(
        PeakRow(name, engine, 16, 9, 20.0 + i, 40.0, 0.5 + i / 20, 0.45, 0.8)
        for engine in ("deploy", "onnxruntime")
        for i, name in enumerate(names)
    )
    return DeployRatios(rows, peak, (), (224, 224), "evitlab bench --preset deploy", CARD)

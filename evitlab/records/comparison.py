"""Records of speeds beside a peer's: ratios of times taken in turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles

import pandas as pd

from evitlab.records.base import Record
from evitlab.records.environment import Environment


@dataclass(frozen=True)
class SpeedRow:
    """One comparison."""

    model: str
    task: str  # "forward" or "training step"
    batch_size: int
    ours_ms: float  # median of the rounds
    timm_ms: float  # median of the rounds
    ratio: float  # median over the rounds of timm's time / ours, > 1: ours is faster
    ratio_low: float  # first quartile
    ratio_high: float  # third quartile


@dataclass(frozen=True)
class DataPathRow:
    """What the data path of a recipe takes of a training step."""

    model: str
    recipe: str
    batch_size: int
    data_ms: float  # median: gather, augment, normalise
    step_ms: float  # median: forward, backward, without the data
    share_pct: float  # 100 * data_ms / step_ms


@dataclass(frozen=True)
class SpeedRecord(Record):
    """Eager PyTorch, ours beside timm's, on 224-pixel noise; then the data path at 32 pixels."""

    rows: tuple[SpeedRow, ...]
    data_path: tuple[DataPathRow, ...]
    rounds: int
    environment: Environment

    def to_frame(self) -> pd.DataFrame:
        """One row per comparison of models; the data path stands in `data_path`."""
        return pd.DataFrame([asdict(row) for row in self.rows])


@dataclass(frozen=True)
class RatioRow:
    """One model as we deploy it beside timm's with the same weights."""

    model: str  # "efficientvit_m0"
    engine: str  # ours: "deploy" or "onnxruntime"
    peer: str  # timm's model runs "eager", as its own "folded" form, or "exported" after folding
    batch_size: int
    rounds: int
    ours_ms: float  # median of the rounds
    peer_ms: float  # median of the rounds
    ratio: float  # median over the rounds of the peer's time / ours, > 1: ours is faster
    ratio_low: float  # first quartile
    ratio_high: float  # third quartile


@dataclass(frozen=True)
class PeakRow:
    """How near a model comes to torch's speed in a large matrix product, the device's peak."""

    model: str
    engine: str
    batch_size: int
    rounds: int
    achieved_gmac_s: float  # 1e9 multiply-accumulates per second, median of the rounds
    peak_gmac_s: float  # of a large matrix product measured in turns with it, median
    share: float  # median over the rounds of achieved / peak
    share_low: float  # first quartile
    share_high: float  # third quartile


@dataclass(frozen=True)
class DeployRatios(Record):
    """The deployed family beside timm's models, and how near it comes to the device's peak."""

    rows: tuple[RatioRow, ...]
    peak: tuple[PeakRow, ...]
    failed: tuple[str, ...]  # one line for each measurement that could not be made
    img_size: tuple[int, int]  # height, width
    command: str  # the one command that regenerates this record
    environment: Environment

    def to_frame(self) -> pd.DataFrame:
        """One row per comparison; the shares of the peak stand in `peak`."""
        columns = list(RatioRow.__dataclass_fields__)
        return pd.DataFrame([asdict(row) for row in self.rows], columns=columns)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile; of one value that value three times."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    # Inclusive: with few rounds the other method's quartiles lie beyond all of them.
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, median(values), high


@dataclass(frozen=True)
class WidthSpeed:
    """A subnetwork of one width beside its baseline."""

    embed_dim: int
    macs: int  # multiply-accumulates for one image
    img_per_s: float  # median
    speedup: float  # over the baseline, median of the rounds' ratios
    speedup_low: float  # quartiles
    speedup_high: float


@dataclass(frozen=True)
class ThroughputMatch(Record):
    """The width at which a share of attention layers runs as fast as asked, and what was tried."""

    baseline: str
    baseline_width: int  # embed_dim
    img_size: tuple[int, int]  # height, width
    asked: float  # speed-up over the baseline
    attention_share: float  # of the subnetwork's layers
    split_heads: bool
    embed_dim: int  # the width that comes closest
    tried: tuple[WidthSpeed, ...]
    rounds: int
    environment: Environment

    @property
    def match(self) -> WidthSpeed:
        """The width that comes closest, with what it reached."""
        return next(row for row in self.tried if row.embed_dim == self.embed_dim)

    def to_frame(self) -> pd.DataFrame:
        """One row per width tried."""
        frame = pd.DataFrame([asdict(row) for row in self.tried])
        frame.insert(0, "attention_share", self.attention_share)
        frame.insert(0, "baseline", self.baseline)
        return frame

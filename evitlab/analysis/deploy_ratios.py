"""The deployed family beside timm's models with the same weights, in turns, as ratios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor, nn

from evitlab.analysis.engines import check_engine
from evitlab.analysis.throughput import Plan
from evitlab.analysis.turns import Card, Case, Timing, card_of, time_groups
from evitlab.models.zoo import VARIANTS
from evitlab.records import DeployRatios, PeakRow, RatioRow, environment_card, quartiles

_SIDE = 1024  # of the square matrices whose product shows the peak
_PEAK = "matrix product"
# How timm's model runs under an engine, as RatioRow.peer says it.
_PEERS = {"eager": "eager", "deploy": "folded", "onnxruntime": "exported"}


class SquareProduct(nn.Module):
    """A large matrix product, whatever the images: what the device can compute at best."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.randn(_SIDE, _SIDE))

    def forward(self, images: Tensor) -> Tensor:
        matrix: Tensor = self.get_buffer("matrix")
        return matrix @ matrix


def compare_deploy(
    models: Sequence[str] = tuple(VARIANTS),
    *,
    rounds: int = 100,
    threads: int = 1,
    seconds: float = 6.0,
    img_size: int = 224,
    command: str = "",
) -> DeployRatios:
    """Time the deployed family against timm's models on the CPU.

    At batch 1 in PyTorch against timm's model as it is and in its own folded form; at batch 1 and
    16 in ONNX Runtime, ours from `export_onnx`, timm's exported the plain way after folding, both
    in one process; and the share of torch's speed in a large matrix product that the largest of
    `models` reaches in ONNX Runtime at batch 16, the product taking turns with it.

    Args:
        models: names that both libraries know, `efficientvit_m0` to `efficientvit_m5`.
        rounds: of each at most; those that are compared take turns within a round.
        threads: of the CPU, in every process.
        seconds: for the rounds of each, after which no further one is begun.
        img_size: pixels of both sides.
        command: for the record.

    Raises:
        ValueError: unknown model, ONNX Runtime not installed, or a number below one.
    """
    models = list(dict.fromkeys(models))
    unknown = [name for name in models if name not in VARIANTS]
    if unknown or not models:
        raise ValueError(f"models: expected names of {', '.join(VARIANTS)}, got {unknown}")
    Plan(tuple(models), threads=(threads,), rounds=rounds, seconds=seconds).check()
    check_engine("onnxruntime")
    cards = {name: card_of(name, img_size) for ours in models for name in (ours, f"timm/{ours}")}
    product = card_of(SquareProduct(), 32)
    cards[_PEAK] = replace(product, macs=_SIDE**3, error=None)
    base = Case(models[0], "deploy", 1, (img_size, img_size), threads=threads)
    pairs = [
        (replace(base, model=ours, engine=engine, batch_size=batch),
         replace(base, model=f"timm/{ours}", engine=peer, batch_size=batch))
        for ours in models
        for engine, peer, batch in (
            ("deploy", "eager", 1), ("deploy", "deploy", 1),
            ("onnxruntime", "onnxruntime", 1), ("onnxruntime", "onnxruntime", 16),
        )
    ]  # fmt: skip
    heaviest = max(models, key=lambda name: cards[name].macs)
    largest = replace(base, model=heaviest, engine="onnxruntime", batch_size=16)
    peak = replace(base, model=_PEAK, engine="eager", img_size=(32, 32))
    groups = [
        list(dict.fromkeys(case for pair in pairs for case in pair if _together(case) == kind))
        for kind in dict.fromkeys(_together(ours) for ours, _ in pairs)
    ]
    groups.sort(key=lambda group: group[0].engine == "onnxruntime")  # processes start once
    for group in groups:
        if largest in group:
            group.append(peak)
    timings: dict[Case, Timing] = {}
    for found in time_groups(groups, cards, rounds=rounds, seconds=seconds):
        timings |= found
    return DeployRatios(
        rows=tuple(
            _ratio(ours, timings[ours], peer, timings[peer])
            for ours, peer in pairs
            if timings[ours].seconds and timings[peer].seconds
        ),
        peak=_share(largest, peak, timings, cards),
        failed=tuple(
            f"{case.model}, {case.engine}, batch {case.batch_size}: {timing.error}"
            for case, timing in timings.items()
            if timing.error
        ),
        img_size=(img_size, img_size),
        command=command,
        environment=replace(
            environment_card(seed=0, dataset="noise"), threads=threads, batch_size=None
        ),
    )


def _together(case: Case) -> tuple[str, bool, int]:
    """Cases of one model, family of engines and batch size take turns."""
    return case.model.removeprefix("timm/"), case.engine == "onnxruntime", case.batch_size


def _ratio(ours: Case, our_timing: Timing, peer: Case, peer_timing: Timing) -> RatioRow:
    both = list(zip(our_timing.seconds, peer_timing.seconds, strict=False))  # by round
    low, middle, high = quartiles([theirs / mine for mine, theirs in both])
    return RatioRow(
        model=ours.model,
        engine=ours.engine,
        peer=_PEERS[peer.engine],
        batch_size=ours.batch_size,
        rounds=len(both),
        ours_ms=1e3 * median(mine for mine, _ in both),
        peer_ms=1e3 * median(theirs for _, theirs in both),
        ratio=middle,
        ratio_low=low,
        ratio_high=high,
    )


def _share(
    case: Case, peak: Case, timings: dict[Case, Timing], cards: dict[str, Card]
) -> tuple[PeakRow, ...]:
    """The row of the share of the peak; none where one of the two could not be measured."""
    rates = [
        (
            1e-9 * case.batch_size * cards[case.model].macs / mine,
            1e-9 * cards[peak.model].macs / best,
        )
        for mine, best in zip(timings[case].seconds, timings[peak].seconds, strict=False)
    ]
    if not rates:
        return ()
    low, middle, high = quartiles([mine / best for mine, best in rates])
    achieved, ceiling = (median(values) for values in zip(*rates, strict=True))
    return (
        PeakRow(
            case.model, case.engine, case.batch_size, len(rates),
            achieved, ceiling, middle, low, high,
        ),
    )  # fmt: skip

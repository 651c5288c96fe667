"""Subnetworks of equal speed: the width at which a share of attention layers runs as fast as asked.

Paper: Section 2.1 scales Swin-T and DeiT-T down to 1.25 and 1.5 times their throughput and
compares shares of attention at equal speed (Fig. 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from evitlab.analysis.comparison import interleave
from evitlab.analysis.conditions import cpu_threads, fused_attention
from evitlab.models.baselines import BASELINES, BaselineConfig
from evitlab.models.cost import count_macs
from evitlab.models.zoo import create_model, native_img_size
from evitlab.records import ThroughputMatch, WidthSpeed, environment_card, quartiles
from evitlab.training.evaluation import checked_device
from evitlab.wording import check_choice

_COARSE = (0.06, 0.12, 0.18, 0.25, 0.32, 0.4, 0.5, 0.65, 1.0)  # of twice the baseline's width
_BESIDE = range(-3, 5)  # steps from the best coarse width


def match_throughput(
    baseline: str,
    *,
    speedup: float = 1.25,
    attention_share: float = 0.2,
    split_heads: bool = False,
    device: str | torch.device | None = None,
    img_size: int | None = None,
    batch_size: int = 32,
    tolerance: float = 0.05,
    closest: bool = False,
    rounds: int = 15,
    threads: int = 1,
    **overrides: Any,
) -> ThroughputMatch:
    """Find the widest subnetwork that runs `speedup` times as fast as its baseline.

    Times a few widths far apart, then those around the best of them, each time in turns with the
    baseline, in evaluation mode, attention unfused.

    Args:
        baseline: "deit_t", "swin_t" or their small-image variants, at the original share of one
            half.
        speedup: images per second over the baseline's.
        attention_share: share of the subnetwork's layers that are attention, 0 to 1.
        split_heads: each head of the subnetwork sees only its split of the channels.
        device: None is a GPU if there is one, else the CPU.
        img_size: pixels of both sides; None is what the name is meant for.
        batch_size: images per call.
        tolerance: how much slower than asked a width may run, as a share.
        closest: where no width is fast enough, take the one that comes closest instead of raising.
        rounds: of each width; the ratio is the median over rounds.
        threads: of torch on the CPU.
        overrides: other fields of `BaselineConfig`, of baseline and subnetwork alike; `embed_dim`
            is the baseline's width.

    Raises:
        ValueError: unknown baseline, a number out of its range, or a speed-up that no width up to
            twice the baseline's reaches.

    Paper: Section 2.1.
    Pitfall: a wider network may be the faster one, where channels fill whole vector registers; so
    the widest that is fast enough is taken, and the record says what it reached.
    """
    check_choice("baseline", baseline, BASELINES)
    if not 0 < speedup < math.inf:
        raise ValueError(f"speedup: expected more than 0, got {speedup}")
    for name, value in (("batch_size", batch_size), ("rounds", rounds)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    device = checked_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    side = img_size or native_img_size(baseline)
    images = torch.zeros(batch_size, 3, side, side, device=device)

    def build(**changes: Any) -> nn.Module:
        made: nn.Module = create_model(baseline, img_size=side, **{**overrides, **changes})
        return made.eval().to(device)

    with cpu_threads(threads), torch.random.fork_rng([]), ExitStack() as unfused:

        def unfused_model(**changes: Any) -> nn.Module:
            model = build(**changes)
            unfused.enter_context(fused_attention(model, False))
            return model

        config: BaselineConfig = create_model(baseline, img_size=side, **overrides).config
        step = config.num_heads[0]  # all heads alike
        changes = {"attention_share": attention_share, "split_heads": split_heads}
        original = _call(unfused_model(), images)

        def timed(models: Mapping[int, nn.Module], rounds: int) -> dict[int, _Times]:
            """Each width in turns with all others and the baseline."""
            calls = {str(width): _call(model, images) for width, model in models.items()}
            times = interleave({"original": original, **calls}, rounds=rounds)
            bar.update(len(models))
            return {width: _Times(times["original"], times[str(width)]) for width in models}

        def of_widths(steps: Iterable[int]) -> dict[int, nn.Module]:
            widths = sorted({step * max(1, count) for count in steps})
            return {width: unfused_model(embed_dim=width, **changes) for width in widths}

        def distance(ratio: float) -> float:
            return abs(math.log(ratio / speedup))

        with tqdm(desc=f"{baseline} at {attention_share:.0%}", unit="width", delay=2) as bar:
            most = 2 * config.embed_dim // step  # in steps of the width
            coarse = timed(of_widths(round(most * share) for share in _COARSE), 5)
            reached = {width: median(times.ratios) for width, times in coarse.items()}
            slowest, fastest = min(reached.values()), max(reached.values())
            if not closest and not slowest <= speedup <= fastest:
                raise ValueError(
                    f"speedup: expected {slowest:.2f} to {fastest:.2f}, what widths "
                    f"{min(reached)} to {max(reached)} reach, got {speedup}"
                )
            near = min(reached, key=lambda width: distance(reached[width])) // step
            models = of_widths(near + i for i in _BESIDE)
            tried = []
            for width, times in timed(models, rounds).items():
                low, middle, high = quartiles(times.ratios)
                speed = batch_size / median(times.own)
                macs = count_macs(models[width], side)
                tried.append(WidthSpeed(width, macs, speed, middle, low, high))
    fast_enough = [row for row in tried if row.speedup >= (1 - tolerance) * speedup]
    nearest = min(tried, key=lambda row: distance(row.speedup))
    best = fast_enough[-1] if fast_enough else nearest  # the widest is last
    card = environment_card(device=device, batch_size=batch_size, dataset="zeros")
    return ThroughputMatch(
        baseline=baseline,
        baseline_width=config.embed_dim,
        img_size=(side, side),
        asked=speedup,
        attention_share=attention_share,
        split_heads=split_heads,
        embed_dim=best.embed_dim,
        tried=tuple(tried),
        rounds=rounds,
        environment=card,
    )


@dataclass(frozen=True)
class _Times:
    """Seconds of each call, in turns."""

    original: list[float]
    own: list[float]

    @property
    def ratios(self) -> list[float]:
        return [before / own for before, own in zip(self.original, self.own, strict=True)]


def _call(model: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    @torch.inference_mode()
    def call() -> None:
        model(images)
        if images.is_cuda:
            torch.cuda.synchronize()

    return call

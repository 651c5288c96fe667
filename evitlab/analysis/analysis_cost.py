"""What `head_similarity` and `channel_importance` cost beside the passes they need anyway."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from evitlab.analysis.channels import channel_importance
from evitlab.analysis.comparison import interleave
from evitlab.analysis.conditions import cpu_threads, fused_attention
from evitlab.analysis.heads import head_similarity
from evitlab.analysis.subjects import build
from evitlab.records import AnalysisCost, AnalysisCostRow, environment_card, quartiles

MODELS = ("deit_tiny_patch16_224", "efficientvit_m4")
BATCHES = 4  # of one call, so that what a call does once counts as it does in use


def compare_cost(
    models: Sequence[str] = MODELS,
    *,
    batch_size: int = 8,
    rounds: int = 9,
    threads: int = 1,
    command: str = "",
) -> AnalysisCost:
    """Time both analyses in turns with plain passes over the same images.

    Args:
        models: names that `build` knows and both analyses take.
        batch_size: images of 224 x 224 pixels per batch.
        rounds: measurements of each; the two take turns within a round.
        threads: of torch on the CPU.

    Raises:
        ValueError: unknown model, or a number below one.
    """
    if batch_size < 1 or rounds < 1:
        raise ValueError(
            f"batch_size, rounds: expected at least 1, got {batch_size} and {rounds}"
        )
    rows = []
    with cpu_threads(threads), torch.random.fork_rng([]):
        for name in tqdm(models, desc="bench", unit="model"):
            model = build(name)
            batches = [torch.randn(batch_size, 3, 224, 224) for _ in range(BATCHES)]
            labels = [torch.randint(1000, (batch_size,)) for _ in range(BATCHES)]
            for analysis, passes, calls in (
                ("head_similarity", "forward, attention unfused", _heads(model, batches)),
                ("channel_importance", "forward and backward", _channels(model, batches, labels)),
            ):
                times = interleave(calls, rounds=rounds)
                pairs = zip(times["analysis"], times["plain"], strict=True)
                low, middle, high = quartiles([mine / plain for mine, plain in pairs])
                rows.append(
                    AnalysisCostRow(
                        model=name,
                        analysis=analysis,
                        passes=passes,
                        batches=BATCHES,
                        batch_size=batch_size,
                        plain_ms=1e3 * median(times["plain"]),
                        analysis_ms=1e3 * median(times["analysis"]),
                        ratio=middle,
                        ratio_low=low,
                        ratio_high=high,
                    )
                )
        card = environment_card(batch_size=batch_size, dataset="noise")
    return AnalysisCost(tuple(rows), rounds, command, card)


def _heads(model: nn.Module, batches: list[Tensor]) -> dict[str, Callable[[], object]]:
    @torch.no_grad()
    def plain() -> None:
        with fused_attention(model, False):
            for images in batches:
                model(images)

    return {"plain": plain, "analysis": lambda: head_similarity(model, batches)}


def _channels(
    model: nn.Module, batches: list[Tensor], labels: list[Tensor]
) -> dict[str, Callable[[], object]]:
    given = list(zip(batches, labels, strict=True))

    def plain() -> None:
        for images, targets in given:
            model.zero_grad()
            cross_entropy(model(images), targets).backward()

    return {"plain": plain, "analysis": lambda: channel_importance(model, given)}

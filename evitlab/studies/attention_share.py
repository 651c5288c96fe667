"""Fig. 3: DeiT-T and Swin-T at 1.25 and 1.5 times their speed, with 0 to 100 % attention layers.

Each point is two runs: `width-…` finds the width that runs as fast as the line asks for, and the
point itself trains the subnetwork of that width.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from evitlab.analysis.matching import match_throughput
from evitlab.records import AttentionShareRun, ThroughputMatch
from evitlab.studies.base import Conditions, Run, Study, Training

SHARES = (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0)
LINES = {
    f"{title}-{speedup:.2f}x": (name, speedup)
    for title, name in (("DeiT-T", "deit_t_p4"), ("Swin-T", "swin_t_p2"))
    for speedup in (1.25, 1.5)
}
# The original's width, by model: narrower than the paper's, as the images are smaller.
WIDTHS = {"deit_t_p4": 48, "swin_t_p2": 24}


def run_name(line: str, share: float, *, split_heads: bool = False) -> str:
    """ "DeiT-T-1.25x-20" for a share of 20 %."""
    return f"{line}-{round(100 * share)}{'-split' * split_heads}"


def width_run(line: str, share: float, *, split_heads: bool = False) -> Run:
    """The measurement that decides a subnetwork's width."""
    match = partial(_match, line, share, split_heads)
    return Run(f"width-{run_name(line, share, split_heads=split_heads)}", match, alone=True)


def matched(folder: Path, name: str) -> ThroughputMatch:
    """What `width_run` recorded, beside a run's own folder."""
    return ThroughputMatch.load(folder.parent / f"width-{name}" / "match.json")


def _runs(scale: str) -> tuple[Run, ...]:
    lines = [line for line in LINES if scale != "smoke" or line == "DeiT-T-1.25x"]
    shares = SHARES if scale != "smoke" else (0.0, 0.5)
    points = [(line, share) for line in lines for share in shares]
    widths = tuple(width_run(*point) for point in points)
    return widths + tuple(
        Run(name := run_name(*point), partial(_train, *point, scale), after=(f"width-{name}",))
        for point in points
    )


def _match(
    line: str, share: float, split_heads: bool, folder: Path, conditions: Conditions
) -> ThroughputMatch:
    name, speedup = LINES[line]
    record = match_throughput(
        name,
        speedup=speedup,
        attention_share=share,
        split_heads=split_heads,
        device=conditions.device,
        threads=conditions.threads,
        closest=True,  # attention alone may never be fast enough; the record says what it reached
        rounds=3 if conditions.scale == "smoke" else 13,
        num_classes=10,
        embed_dim=WIDTHS[name],
    )
    record.save(folder / "match.json")  # the training reads it there
    return record


def training(scale: str) -> Training:
    """The budget of each point; the model is put in by the point."""
    if scale == "smoke":
        return Training("", epochs=1, limit=256, val_limit=100)
    changes = {"batch_size": 32, "lr": 1e-3}  # more steps out of a short run
    if scale == "quick":
        return Training("", epochs=1, limit=2000, val_limit=1000, changes=changes)
    return Training("", epochs=2, limit=15_000, changes=changes)


def _train(
    line: str, share: float, scale: str, folder: Path, conditions: Conditions
) -> AttentionShareRun:
    match = matched(folder, run_name(line, share))
    overrides = {"embed_dim": match.embed_dim, "attention_share": share}
    todo = replace(training(scale), model=LINES[line][0], overrides=overrides)
    _, record = todo.run(folder, conditions)
    return AttentionShareRun(line, share, match, record, record.environment)


STUDY = Study(
    "attention-share",
    "Fig. 3: accuracy of subnetworks of equal speed over their share of attention layers",
    (AttentionShareRun, ThroughputMatch),
    _runs,
)

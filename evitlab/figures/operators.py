"""Fig. 2: which operators, and which parts of a model, the time goes to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from evitlab.figures.style import (
    INK,
    MUTED,
    PALETTE,
    add_caption,
    environment_line,
    house_style,
    new_figure,
)
from evitlab.records import MEMORY_BOUND, OperatorProfile

# Cold: computes. Warm: memory-bound. Grey: neither.
CATEGORY_COLORS = {
    "matmul/conv": PALETTE[1],
    "softmax": PALETTE[0],
    "normalisation": PALETTE[4],
    "element-wise": PALETTE[3],
    "reshape/copy": PALETTE[6],
    "other": "#8C8C8C",
}
_PART_COLORS = {  # in the order in which they are drawn; other parts follow
    "attention": PALETTE[0],
    "token mixing": PALETTE[4],
    "ffn": PALETTE[1],
    "norm": PALETTE[3],
    "embedding": PALETTE[2],
    "head": PALETTE[6],
    "other": "#8C8C8C",
}
_STATES = {False: "Attention unfused, as in 2023", True: "Attention fused, as today"}
_HALF = 0.21  # of a bar's height, in rows
_LEGIBLE = 0.055  # share from which a number fits into its segment


def fig2_operators(
    profiles: Sequence[OperatorProfile], *, by: Literal["category", "module"] = "category"
) -> Figure:
    """Runtime breakdown of each model as bars, attention unfused on the left and fused on the
    right, with time per image, the profiler's overhead, and the share of memory-bound operators.

    Args:
        profiles: at most one for a model in each state, in the order in which they are drawn.
        by: segments are operator categories, or parts of the model with their memory-bound share
            hatched.

    Raises:
        ValueError: no profile, a profile without time, two of one model and state, profiles of
            different devices, or an unknown `by`.

    Paper: Fig. 2, whose percentages were not found; there the states were not distinguished.
    Pitfall: shares are of the operators' self time under the profiler; time per image is without.
    """
    if by not in ("category", "module"):
        raise ValueError(f"by: expected 'category' or 'module', got {by!r}")
    cells = _cells(profiles)
    models = list(dict.fromkeys(profile.model for profile in profiles))
    states = [state for state in _STATES if any(key[1] == state for key in cells)]
    with house_style():
        figure = new_figure((8.0, 11.0)[len(states) - 1], 1.5 + 0.78 * len(models))
        panels = figure.subplots(1, len(states), squeeze=False, sharey=True)[0]
        looks = CATEGORY_COLORS if by == "category" else part_colors(profiles)
        for axes, state in zip(panels, states, strict=True):
            axes.set(title=_STATES[state], xlim=(0, 1), ylim=(len(models) - 0.42, -0.62))
            axes.set_xlabel("Share of the operators' time (%)")
            axes.set_xticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "25", "50", "75", "100"])
            axes.grid(False)
            axes.spines["left"].set_visible(False)
            axes.set_yticks(range(len(models)), labels=models)
            axes.tick_params(axis="y", length=0, labelsize=9.5)
            for row, model in enumerate(models):
                if (model, state) in cells:
                    _draw_bar(axes, row, cells[model, state], by, looks)
                else:
                    axes.text(0.01, row, "not profiled", color=MUTED, fontsize=8, va="center")
        shown = {getattr(row, by) for profile in profiles for row in profile.rows}
        handles = [Patch(color=looks[key], label=key) for key in looks if key in shown]
        if by == "module":
            hatch = Patch(fc="white", ec=MUTED, hatch="////", lw=0, label="memory-bound operators")
            handles.append(hatch)
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=8)
        add_caption(figure, note=_note(profiles, by))
    return figure


def _draw_bar(
    axes: Axes, row: int, profile: OperatorProfile, by: str, looks: dict[str, str]
) -> None:
    left, bound = 0.0, (1.0, 0.0)
    for key, color in looks.items():
        rows = [r for r in profile.rows if getattr(r, by) == key]
        share = sum(r.self_ms for r in rows) / profile.self_ms
        if not share:
            continue
        axes.barh(row, share, 2 * _HALF, left=left, color=color, ec="white", lw=0.6)
        memory = sum(r.self_ms for r in rows if r.category in MEMORY_BOUND) / profile.self_ms
        if by == "module" and memory:
            axes.barh(
                row, memory, 2 * _HALF, left=left + share - memory, fc="none", ec="white",
                hatch="////", lw=0,
            )  # fmt: skip
        if by == "category" and memory:
            bound = (min(bound[0], left), left + share)
        if share >= _LEGIBLE:
            axes.text(
                left + share / 2, row, f"{100 * share:.0f}", color="white", ha="center",
                va="center", fontsize=8.5, fontweight="bold",
                bbox={"fc": color, "ec": "none", "pad": 1.2} if by == "module" else None,
            )  # fmt: skip
        left += share
    if bound[1] > bound[0]:
        y = row - _HALF - 0.07
        axes.plot(bound, (y, y), color=PALETTE[0], lw=1.6, solid_capstyle="butt")
    below = (
        f"{profile.plain_ms / profile.batch_size:.3g} ms per image · "
        f"with the profiler {profile.overhead:.2f} ×"
    )
    axes.text(0, row + _HALF + 0.06, below, color=MUTED, fontsize=7.5, va="top")
    axes.text(
        1, row - _HALF - 0.11, f"memory-bound {100 * profile.memory_bound_share:.0f} %",
        color=PALETTE[0] if by == "category" else INK, fontsize=8.5, fontweight="bold",
        ha="right", va="bottom",
    )  # fmt: skip


def _cells(profiles: Sequence[OperatorProfile]) -> dict[tuple[str, bool], OperatorProfile]:
    if not profiles:
        raise ValueError("profiles: expected at least one operator profile, got none")
    cells = {}
    for profile in profiles:
        key = (profile.model, profile.fused_attention)
        if key in cells:
            state = "fused" if key[1] else "unfused"
            raise ValueError(f"profiles: {profile.model!r} stands twice with attention {state}")
        if not profile.self_ms > 0:
            raise ValueError(f"profiles: no operator of {profile.model!r} took any time")
        cells[key] = profile
    devices = list(dict.fromkeys(profile.environment.hardware for profile in profiles))
    if len(devices) > 1:
        raise ValueError(f"profiles: expected one device, got {', '.join(devices)}")
    return cells


def part_colors(profiles: Iterable[OperatorProfile]) -> dict[str, str]:
    """Colours of all parts of the models, in the order of _PART_COLORS."""
    found = dict.fromkeys(row.module for profile in profiles for row in profile.rows)
    known = {part: color for part, color in _PART_COLORS.items() if part in found}
    rest = zip([part for part in found if part not in known], cycle(PALETTE))
    return {**known, **dict(rest)}


def _note(profiles: Sequence[OperatorProfile], by: str) -> str:
    batches = sorted({profile.batch_size for profile in profiles})
    sizes = sorted({"×".join(map(str, p.img_size)) + " px" for p in profiles if p.img_size})
    what = {
        "category": "Warm colours: memory-bound, operators that move data rather than compute. "
        "A fused attention kernel counts as matmul/conv.",
        "module": "Numbers: share of a part, its memory-bound operators (hatched) included.",
    }[by]
    batch = f"batch {', '.join(map(str, batches))}"
    return f"{what}\n{' · '.join([batch, *sizes, environment_line(profiles[0].environment)])}"

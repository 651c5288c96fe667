"""Which of timm's models attention can be captured in: built without weights, one image each."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator

import timm
import torch
from tqdm.auto import tqdm

from evitlab.analysis.capture import AttentionMaps, capture_attention
from evitlab.analysis.subjects import build, default_img_size
from evitlab.records import CaptureRow
from evitlab.wording import on_one_line

# Small and base models of each family, at their own image size.
FAMILIES: dict[str, tuple[str, ...]] = {
    "vit": (
        "vit_tiny_patch16_224", "vit_small_patch16_224", "vit_small_patch32_224",
        "vit_base_patch16_224", "vit_base_patch32_224", "vit_base_patch16_clip_224",
        "vit_base_patch32_clip_224", "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2",
        "vit_base_patch16_siglip_224", "vit_wee_patch16_reg1_gap_256",
        "vit_pwee_patch16_reg1_gap_256",
        "vit_little_patch16_reg4_gap_256", "vit_medium_patch16_gap_256",
        "vit_betwixt_patch16_gap_256", "vit_mediumd_patch16_rope_reg1_gap_256",
        "vit_xsmall_patch16_clip_224", "vit_relpos_small_patch16_224",
        "vit_srelpos_small_patch16_224", "vit_tiny_r_s16_p8_224", "flexivit_small",
        "vit_base_patch16_xp_224", "vit_base_patch16_rope_reg1_gap_256",
    ),
    "deit": (
        "deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224",
        "deit_tiny_distilled_patch16_224", "deit_small_distilled_patch16_224",
    ),
    "deit3": (
        "deit3_small_patch16_224", "deit3_medium_patch16_224", "deit3_base_patch16_224",
    ),
    "beit": ("beit_base_patch16_224", "beitv2_base_patch16_224", "beit3_base_patch16_224"),
    "eva02": (
        "eva02_tiny_patch14_224", "eva02_small_patch14_224", "eva02_base_patch14_224",
        "eva02_base_patch16_clip_224",
    ),
    "swin": (
        "swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224",
        "swin_base_patch4_window7_224", "swin_s3_tiny_224", "swin_s3_small_224",
        "swin_s3_base_224",
    ),
    "swinv2": (
        "swinv2_tiny_window8_256", "swinv2_tiny_window16_256", "swinv2_small_window8_256",
        "swinv2_small_window16_256", "swinv2_base_window8_256", "swinv2_base_window16_256",
    ),
    "levit": (
        "levit_128s", "levit_128", "levit_192", "levit_256", "levit_256d", "levit_384",
        "levit_384_s8", "levit_conv_128s", "levit_conv_128", "levit_conv_192", "levit_conv_256",
        "levit_conv_384",
    ),
    "tiny_vit": (
        "tiny_vit_5m_224", "tiny_vit_11m_224", "tiny_vit_21m_224", "tiny_vit_21m_384",
    ),
    "efficientvit (msra)": tuple(f"timm/efficientvit_m{i}" for i in range(6)),
}  # fmt: skip


def sweep(*, done: Collection[str] = ()) -> Iterator[CaptureRow]:
    """Capture in every model of FAMILIES; yields a row as soon as it is known.

    Args:
        done: models that are left out.
    """
    todo = [
        (family, name) for family, names in FAMILIES.items() for name in names if name not in done
    ]
    for family, name in tqdm(todo, desc="capture", unit="model", delay=2):
        known = timm.is_model(name.removeprefix("timm/"))
        yield capture_row(name, family) if known else _failed(name, family, "not in this timm")
        gc.collect()


@torch.no_grad()
def capture_row(name: str, family: str) -> CaptureRow:
    """Capture in one model, and compare with what it does unwatched."""
    seen: list[tuple[str, int, int, float, float]] = []

    def each(block: AttentionMaps) -> None:
        off = (block.maps @ block.values - block.outputs).abs().max() / block.outputs.abs().max()
        row = (block.maps.sum(-1) - 1).abs().max()
        M = block.maps.shape[-1]
        seen.append((block.kind, block.num_heads, M, off.item(), row.item()))

    try:
        model = build(name)
        side = default_img_size(model)
        image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        plain = model(image)
        with capture_attention(model, each=each):
            watched = model(image)
    except (ValueError, RuntimeError) as error:  # the sweep goes on, and shows it
        return _failed(name, family, f"{type(error).__name__}: {error}")
    kinds, heads, keys, identity_errors, row_errors = zip(*seen, strict=True)
    return CaptureRow(
        model=name,
        family=family,
        img_size=side,
        blocks=len(seen),
        kinds=tuple(sorted(set(kinds))),
        heads=heads,
        keys=keys,
        identity_error=max(identity_errors),
        row_error=max(row_errors),
        output_error=((watched - plain).abs().max() / plain.abs().max()).item(),
    )


def _failed(name: str, family: str, error: str) -> CaptureRow:
    return CaptureRow(name, family, 0, 0, (), (), (), 0.0, 0.0, 0.0, on_one_line(error))

"""Published speed and accuracy, on their own and beside speeds that were measured here."""

from __future__ import annotations

import pandas as pd

from evitlab.paper.published import PROVENANCES, known, load, wide

# Name as published, and family, by the name that `evitlab bench` times a model under.
MODELS = {
    **{f"efficientvit_m{i}": (f"EfficientViT-M{i}", "EfficientViT") for i in range(6)},
    "timm/mobilenetv3_large_100": ("MobileNetV3-Large 1.0x", "MobileNetV3"),
    "timm/mobilenetv3_small_100": ("MobileNetV3-Small 1.0x", "MobileNetV3"),
    "timm/mobilenetv4_conv_small": ("MobileNetV4-S", "MobileNetV4"),
    "timm/mobilenetv2_100": ("MobileNetV2 1.0x", "MobileNetV2"),
    "timm/efficientnet_b0": ("EfficientNet-B0", "EfficientNet"),
    "timm/ghostnet_050": ("GhostNet 0.5x", "GhostNet"),
    "timm/ghostnet_100": ("GhostNet 1.0x", "GhostNet"),
    "torchvision/shufflenet_v2_x1_0": ("ShuffleNetV2 1.0x", "ShuffleNetV2"),
    "torchvision/shufflenet_v2_x1_5": ("ShuffleNetV2 1.5x", "ShuffleNetV2"),
    "torchvision/shufflenet_v2_x2_0": ("ShuffleNetV2 2.0x", "ShuffleNetV2"),
    "timm/convnext_atto": ("ConvNeXt-Atto", "ConvNeXt"),
    "timm/mobileone_s1": ("MobileOne-S1", "MobileOne"),
    "timm/repvit_m0_9": ("RepViT-M0.9", "RepViT"),
    "timm/fastvit_t8": ("FastViT-T8", "FastViT"),
    "timm/levit_128s": ("LeViT-128S", "LeViT"),
    "timm/levit_128": ("LeViT-128", "LeViT"),
    "timm/tiny_vit_5m_224": ("TinyViT-5M", "TinyViT"),
    "timm/deit_tiny_patch16_224": ("DeiT-T", "DeiT"),
    "timm/swin_tiny_patch4_window7_224": ("Swin-T", "Swin"),
    "timm/pvt_v2_b0": ("PVTv2-B0", "PVTv2"),
    "timm/edgenext_xx_small": ("EdgeNeXt-XXS", "EdgeNeXt"),
    "timm/mobilevit_xxs": ("MobileViT-XXS", "MobileViT"),
    "timm/mobilevitv2_050": ("MobileViTV2-0.5", "MobileViTV2"),
    "timm/mobilevitv2_075": ("MobileViTV2-0.75", "MobileViTV2"),
    "timm/efficientformer_l1": ("EfficientFormer-L1", "EfficientFormer"),
    "timm/poolformer_s12": ("PoolFormer-12S", "PoolFormer"),
}
_MEMBERS = [name for name, family in MODELS.values() if family == "EfficientViT"]
_COLUMNS = ("gpu", "cpu", "onnx")


def speed_accuracy() -> pd.DataFrame:
    """The points of Fig. 1: model, family, top1 (percent), img_per_s (V100, batch 2,048).

    `provenance` is "printed" only where both coordinates are printed.
    """
    values, origins = wide("imagenet"), wide("imagenet", show="provenance")
    points = values[["model", "family", "top1", "gpu_img_s"]].rename(
        columns={"gpu_img_s": "img_per_s"}
    )
    pairs = zip(origins["top1"], origins["gpu_img_s"], strict=True)
    points["provenance"] = [x if y == "printed" else y for x, y in pairs]
    return points.dropna(subset=["top1", "img_per_s"]).reset_index(drop=True)


def timm_top1() -> pd.DataFrame:
    """ImageNet-1k top-1 (percent) as timm publishes it: model (as in MODELS), img_size, top1,
    weights (timm's tag), distilled.

    One row per model and size: its most accurate weights among those trained on ImageNet-1k alone.
    """
    rows = load("timm_accuracy").query("dataset == 'imagenet' and quantity == 'top1'")
    name = rows["model"].str.partition(".")
    frame = pd.DataFrame(
        {
            "model": [n if n in MODELS else f"timm/{n}" for n in name[0]],
            "img_size": rows["img_size"].astype(int),
            "top1": rows["value"],
            "weights": name[2],
            "distilled": name[2].str.contains("dist"),
        }
    )
    frame = frame[~frame["weights"].str.contains("in21k|in22k")]
    best_first = frame.sort_values("top1", ascending=False, kind="stable")
    return best_first.drop_duplicates(["model", "img_size"]).sort_index().reset_index(drop=True)


def measured_speed_accuracy(measured: pd.DataFrame) -> pd.DataFrame:
    """The points of Fig. 1 with speeds measured here: model, family, top1 (percent), img_per_s,
    provenance and weights of the accuracy, timed (the name it was timed under), img_size.

    The accuracy is timm's at the same image size (`timm_top1`), else the paper's in Fig. 1; a model
    that has neither is left out.

    Args:
        measured: one row per model: model (one of MODELS; others are left out), img_size (pixels,
            or height and width), img_per_s (where it is missing, the model is left out).

    Raises:
        ValueError: a column is missing, or a model stands twice.

    Pitfall: weights differ in training: peers may be distilled, or trained ten times as long.
    """
    for column in ("model", "img_size", "img_per_s"):
        known("column of measured", column, list(measured.columns))
    _once(measured, ["model"])
    by_timm = timm_top1().set_index(["model", "img_size"])
    by_paper = load("imagenet").query("quantity == 'top1'").set_index("model")
    points = []
    for row in measured.dropna(subset=["img_per_s"]).itertuples():
        timed = _key(row.model)
        if timed is None:
            continue
        name, family = MODELS[timed]
        size = max(row.img_size) if isinstance(row.img_size, tuple | list) else row.img_size
        if (timed, size) in by_timm.index:
            published = by_timm.loc[(timed, size)]
            top1, origin = published["top1"], ("secondary", published["weights"])
        elif name in by_paper.index:
            published = by_paper.loc[name]
            top1, origin = published["value"], (published["provenance"], published["source"])
        else:
            continue
        points.append((name, family, top1, row.img_per_s, *origin, row.model, size))
    columns = ["model", "family", "top1", "img_per_s", "provenance", "weights", "timed", "img_size"]
    return pd.DataFrame(points, columns=columns)


def speed_ratios(measured: pd.DataFrame | None = None) -> pd.DataFrame:
    """How many times faster a member of the family is than a peer: the speed columns of Tables 2
    and 3 as ratios, one row per pair and column.

    Columns: member, peer, column ("gpu", "cpu" or "onnx"), paper, provenance, source. A peer's
    member is the one that the text compares it with, else the smallest that is as accurate (to 0.1
    points; M5 where none is). M0 is held against the other members.

    Args:
        measured: our speeds, one row per model and column: model (one of MODELS), column,
            img_per_s. They add `ours`, and rows where the paper has nothing (NaN).

    Raises:
        ValueError: a column is missing or unknown, or a model stands twice in one.

    Pitfall: gpu is a V100 in half precision at batch 2,048; cpu one thread at batch 16. On other
    hardware expect the direction of a ratio, not its size.
    """
    published = {**_computed_ratios(), **_stated_ratios()}
    ours = {} if measured is None else _by_model(measured)
    rows = []
    for member, peer in _pairs():
        for column in _COLUMNS:
            ratio, provenance, source = published.get((member, peer, column), (None, None, None))
            fast, slow = ours.get((member, column)), ours.get((peer, column))
            here = fast / slow if fast and slow else None
            if ratio or here:
                rows.append((member, peer, column, ratio, provenance, source, here))
    names = ["member", "peer", "column", "paper", "provenance", "source", "ours"]
    frame = pd.DataFrame(rows, columns=names).astype({"paper": float, "ours": float})
    return frame.drop(columns="ours") if measured is None else frame


def _stated_ratios() -> dict[tuple[str, str, str], tuple[float, str, str]]:
    """Ratios that the paper's text states, by member, peer and column."""
    found = {}
    for row in load("claims").itertuples():
        column, _, kind = row.quantity.partition("_")
        if row.subject in _MEMBERS and column in _COLUMNS and kind in ("gain", "ratio"):
            ratio = row.value if kind == "ratio" else 1 + row.value / 100
            found[row.subject, row.reference, column] = (ratio, row.provenance, row.source)
    return found


def _computed_ratios() -> dict[tuple[str, str, str], tuple[float, str, str]]:
    """Ratios of two published speeds; one is as trustworthy as the worse of the two."""
    found = {}
    for column in _COLUMNS:
        speeds = load("imagenet").query("quantity == @column + '_img_s'").set_index("model")
        for member, peer in _pairs():
            if member in speeds.index and peer in speeds.index:
                fast, slow = speeds.loc[member], speeds.loc[peer]
                worse = max(fast, slow, key=lambda cell: PROVENANCES.index(cell["provenance"]))
                ratio = fast["value"] / slow["value"]
                found[member, peer, column] = (ratio, worse["provenance"], worse["source"])
    return found


def _pairs() -> list[tuple[str, str]]:
    """(member, peer): M0 and the other members, then each member and the paper's peers of it."""
    top1 = load("imagenet").query("quantity == 'top1'").set_index("model")["value"]
    members = {peer: member for member, peer, _ in _stated_ratios()}
    for peer in speed_accuracy().query("family != 'EfficientViT'")["model"]:
        as_good = [member for member in _MEMBERS if top1[member] >= round(top1[peer] - 0.1, 6)]
        members.setdefault(peer, as_good[0] if as_good else _MEMBERS[-1])
    pairs = sorted(((member, peer) for peer, member in members.items()), key=lambda pair: pair[0])
    return [(_MEMBERS[0], other) for other in _MEMBERS[1:]] + pairs


def _by_model(measured: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Images per second by published name and column."""
    for column in ("model", "column", "img_per_s"):
        known("column of measured", column, list(measured.columns))
    for column in measured["column"].unique():
        known("column", column, list(_COLUMNS))
    _once(measured, ["model", "column"])
    rows = measured.dropna(subset=["img_per_s"]).itertuples()
    return {(MODELS[key][0], row.column): row.img_per_s for row in rows if (key := _key(row.model))}


def _key(timed: str) -> str | None:
    """The name in MODELS: timm's models may also be named without their library."""
    return next((name for name in (timed, f"timm/{timed}") if name in MODELS), None)


def _once(measured: pd.DataFrame, key: list[str]) -> None:
    twice = measured.loc[measured.duplicated(key), key]
    if len(twice):
        raise ValueError(f"measured: expected one row for {', '.join(twice.iloc[0])}, got more")

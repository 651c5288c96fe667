"""Published speed and accuracy beside what is measured here."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from evitlab import paper

MEASURED = pd.DataFrame(
    [
        ("efficientvit_m5", 224, 30.0),
        ("timm/efficientnet_b0", 224, 20.0),
        ("fastvit_t8", (256, 256), 10.0),  # of timm, named without it
        ("timm/pvt_v2_b0", 224, 5.0),
        ("timm/resnet18", 224, 5.0),  # not one of MODELS
        ("timm/fastvit_t12", 224, 5.0),
        ("timm/levit_128s", 224, math.nan),  # out of memory
    ],
    columns=["model", "img_size", "img_per_s"],
)


def test_models_are_named_once():
    names = [name for name, _ in paper.MODELS.values()]
    assert len(set(names)) == len(names)
    assert {f"efficientvit_m{i}" for i in range(6)} <= set(paper.MODELS)


def test_names_are_those_of_the_libraries():
    import timm
    import torchvision

    known = {
        "timm": timm.list_models(),
        "torchvision": torchvision.models.list_models(),
        "efficientvit_m0": ["efficientvit_m0"],
    }
    for name in paper.MODELS:
        library, _, rest = name.rpartition("/")
        assert rest in known.get(library, timm.list_models()), name


def test_families_are_the_papers_where_it_has_them():
    published = paper.wide("imagenet").dropna(subset=["top1"]).set_index("model")["family"]
    for name, family in paper.MODELS.values():
        assert published.get(name, family) == family


def test_timm_top1_takes_the_best_weights_of_imagenet_alone():
    top1 = paper.timm_top1().set_index(["model", "img_size"])
    assert not top1.index.has_duplicates
    assert top1.loc[("timm/efficientnet_b0", 224), "weights"] == "ra4_e3600_r224_in1k"
    assert top1.loc[("timm/swin_tiny_patch4_window7_224", 224), "top1"] == 81.388
    large = top1.loc[("timm/mobilenetv3_large_100", 224)]
    assert large["top1"] == 76.31, "77.92 is of weights that have seen ImageNet-21k"
    assert top1.loc[("timm/levit_128s", 224), "distilled"]
    assert not top1.loc[("efficientvit_m0", 224), "distilled"]


def test_accuracy_is_joined_at_the_measured_size():
    points = paper.measured_speed_accuracy(MEASURED).set_index("model")
    assert list(points.index) == ["EfficientViT-M5", "EfficientNet-B0", "FastViT-T8", "PVTv2-B0"]
    assert points.loc["EfficientNet-B0", "top1"] == 78.568  # 79.364 at 256 pixels
    assert points.loc["FastViT-T8", "top1"] == 77.17
    assert points.loc["FastViT-T8", "timed"] == "fastvit_t8"
    assert tuple(points["provenance"]) == ("secondary",) * 3 + ("digitised",)
    assert points.loc["PVTv2-B0", "top1"] == 70.5  # timm publishes none: the paper's
    assert points["img_per_s"].tolist() == [30, 20, 10, 5]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (MEASURED.drop(columns="img_size"), "column of measured: no 'img_size'"),
        (pd.concat([MEASURED, MEASURED]), "one row for efficientvit_m5, got more"),
    ],
)
def test_measured_speeds_need_one_row_per_model(frame, message):
    with pytest.raises(ValueError, match=message):
        paper.measured_speed_accuracy(frame)


def test_ratios_by_hand():
    ratios = paper.speed_ratios().set_index(["member", "peer", "column"])
    assert not ratios.index.has_duplicates

    def cell(member: str, peer: str, column: str) -> tuple[float, str]:
        row = ratios.loc[(f"EfficientViT-{member}", peer, column)]
        return round(float(row["paper"]), 3), row["provenance"]

    # printed in the abstract, which also follows from Fig. 1
    assert cell("M5", "MobileNetV3-Large 1.0x", "gpu") == (1.404, "printed")
    assert cell("M5", "MobileNetV3-Large 1.0x", "cpu") == (1.452, "printed")
    assert cell("M2", "MobileViT-XXS", "onnx") == (7.4, "printed")
    assert cell("M5", "Swin-T", "cpu") == (12.3, "secondary")
    # 27,644 over 10,621 and 340.1 over 108.6
    assert cell("M0", "EfficientViT-M5", "gpu") == (2.603, "printed")
    assert cell("M0", "EfficientViT-M4", "onnx") == (3.132, "printed")
    # 18,218 printed over 13,303 digitised
    assert cell("M2", "ShuffleNetV2 1.0x", "gpu") == (1.369, "digitised")


def test_a_peers_member_is_as_accurate():
    top1 = paper.wide("imagenet").set_index("model")["top1"].dropna()
    members = [f"EfficientViT-M{i}" for i in range(6)]
    for member, peer in paper.speed_ratios()[["member", "peer"]].drop_duplicates().to_numpy():
        if peer in top1 and peer not in members:
            assert top1[member] >= round(top1[peer] - 0.1, 6), f"{member} against {peer}"


def test_our_ratios_stand_beside_the_papers_and_cells_stay_empty():
    measured = pd.DataFrame(
        [
            ("efficientvit_m5", "cpu", 30.0),
            ("timm/mobilenetv3_large_100", "cpu", 20.0),
            ("efficientvit_m0", "cpu", 90.0),
            ("timm/efficientnet_b0", "cpu", None),
            ("efficientvit_m0", "onnx", 100.0),
        ],
        columns=["model", "column", "img_per_s"],
    )
    frame = paper.speed_ratios(measured).set_index(["member", "peer", "column"])
    both = frame.loc[("EfficientViT-M5", "MobileNetV3-Large 1.0x", "cpu")]
    assert (both["ours"], both["paper"]) == (1.5, pytest.approx(1.452))
    alone = frame.loc[("EfficientViT-M0", "EfficientViT-M5", "cpu")]
    assert alone["ours"] == 3 and math.isnan(alone["paper"])
    assert frame["ours"].notna().sum() == 2
    assert len(frame) == len(paper.speed_ratios()) + 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("efficientvit_m0", "gpus", 1.0)], "column: no 'gpus'; the closest is 'gpu'"),
        ([("efficientvit_m0", "cpu", 1.0)] * 2, "one row for efficientvit_m0, cpu, got more"),
    ],
)
def test_ratios_refuse_an_unknown_column_and_one_twice(rows, message):
    with pytest.raises(ValueError, match=message):
        paper.speed_ratios(pd.DataFrame(rows, columns=["model", "column", "img_per_s"]))

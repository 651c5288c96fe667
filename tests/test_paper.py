"""The published numbers: each has a provenance, and they agree with one another."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from evitlab import paper


@pytest.fixture(params=paper.tables())
def table(request: pytest.FixtureRequest) -> str:
    return request.param


def test_the_tables_are_there():
    expected = "ablations arch claims coco downstream fig3 fig4 fig5 imagenet largescale".split()
    assert set(expected) <= set(paper.tables())


def test_every_number_has_value_unit_source_and_provenance(table):
    rows = paper.load(table)
    assert rows["value"].notna().all()
    assert rows[["unit", "source", "quantity"]].notna().all(axis=None)
    assert set(rows["provenance"]) <= set(paper.PROVENANCES)
    digitised = rows["provenance"] == "digitised"
    assert rows["error"].notna().equals(digitised), "an error where, and only where, digitised"


def test_derived_numbers_say_what_from(table):
    rows = paper.load(table)
    assert (rows.loc[rows["provenance"] == "derived", "note"] != "").all()


def test_no_number_stands_twice(table):
    rows = paper.load(table)
    keys = [c for c in rows if c not in ("value", "unit", "provenance", "error", "source", "note")]
    assert not rows.duplicated(keys).any()


def test_wide_keeps_every_number(table):
    rows, cells = paper.load(table), paper.wide(table)
    quantities = list(rows["quantity"].unique())
    assert cells[quantities].notna().sum().sum() == len(rows)
    origins = paper.wide(table, show="provenance")[quantities]
    assert origins.notna().equals(cells[quantities].notna())


def test_loading_gives_a_copy():
    rows = paper.load("imagenet")
    rows.loc[:, "value"] = 0.0
    assert paper.load("imagenet")["value"].min() > 0


def test_numbers_by_hand():
    top1 = paper.number("imagenet", model="EfficientViT-M5", quantity="top1")
    assert (top1.value, top1.unit, top1.provenance, top1.error) == (77.1, "%", "printed", None)
    assert str(top1) == "77.1 %"
    speed = paper.number("imagenet", model="GhostNet 1.0x", quantity="gpu_img_s")
    assert str(speed) == "7,384 ± 4 img/s (digitised)"
    assert paper.number("fig4", model="DeiT-T-1.25x", head_splits=True, block=12).value == 61.18
    assert str(paper.number("fig5", projection="v", block=12)) == "0.47 ± 0.03 (digitised)"


@pytest.mark.parametrize(
    ("table", "where", "message"),
    [
        ("imgnet", {}, "table: no 'imgnet'; the closest is 'imagenet'"),
        ("imagenet", {"modle": "x"}, "column of 'imagenet': no 'modle'; the closest is 'model'"),
        (
            "imagenet",
            {"model": "efficientvit-m5"},
            "model of 'imagenet': no 'efficientvit-m5'; the closest is 'EfficientViT-M5'",
        ),
        (
            "imagenet",
            {"model": "EfficientViT-M5", "quantity": "cpu_img_s"},
            "quantity of 'imagenet' where model='EfficientViT-M5': no 'cpu_img_s'",
        ),
        ("imagenet", {"model": "EfficientViT-M5"}, "8 numbers .* choose by quantity"),
        ("fig3", {"mhsa_share": 0.3}, "mhsa_share of 'fig3': no 0.3"),
    ],
)
def test_errors_name_the_table_and_the_closest_match(table, where, message):
    with pytest.raises(ValueError, match=message):
        paper.number(table, **where)


def test_abstract_agrees_with_the_tables():
    """The abstract's gains of M5 over MobileNetV3-Large follow from Fig. 1's points."""
    top1, speed = (
        {
            model: paper.number("imagenet", model=model, quantity=quantity).value
            for model in ("EfficientViT-M5", "MobileNetV3-Large 1.0x")
        }
        for quantity in ("top1", "gpu_img_s")
    )
    ours, theirs = "EfficientViT-M5", "MobileNetV3-Large 1.0x"
    claim = {
        quantity: paper.number("claims", subject=ours, reference=theirs, quantity=quantity).value
        for quantity in ("top1_gain", "gpu_gain")
    }
    assert top1[ours] - top1[theirs] == pytest.approx(claim["top1_gain"], abs=0.05)
    assert 100 * (speed[ours] / speed[theirs] - 1) == pytest.approx(claim["gpu_gain"], abs=0.1)


def test_the_authors_log_rounds_to_the_printed_accuracy():
    cells = paper.wide("imagenet").dropna(subset=["eval_top1"])
    assert len(cells) == 6
    for quantity in ("top1", "top5"):
        difference = (cells[f"eval_{quantity}"] - cells[quantity]).abs()
        assert difference.max() <= 0.1


def test_speed_accuracy_is_printed_only_where_both_are():
    points = paper.speed_accuracy()
    assert len(points) == 25
    ours = points["family"] == "EfficientViT"
    assert ours.sum() == 6
    assert (points.loc[ours, "provenance"] == "printed").all()
    assert (points.loc[~ours, "provenance"] == "digitised").all()


def test_architecture_joins_our_counts():
    computed = pd.DataFrame(
        {"model": ["efficientvit_m5", "EfficientViT-M0"], "params_m": [12.5, 2.2], "macs_m": 100.0}
    )
    frame = paper.architecture(computed)
    assert frame["model"].tolist() == ["EfficientViT-M0", "EfficientViT-M5"]
    assert frame["embed_dim"][0] == (64, 128, 192) and frame["num_heads"][1] == (3, 3, 4)
    assert frame["params_diff_m"].tolist() == pytest.approx([-0.1, 0.1])
    assert frame["macs_diff_pct"][0] == pytest.approx(100 * (100 / 79 - 1))
    assert len(paper.architecture()) == 6


@pytest.mark.parametrize(
    ("computed", "message"),
    [
        (pd.DataFrame({"model": ["efficientvit_m0"], "params_m": [1.0]}), "no 'macs_m'"),
        (
            pd.DataFrame({"model": ["efficientvit_m9"], "params_m": [1.0], "macs_m": [1.0]}),
            "model: no 'efficientvit_m9'; the closest is 'efficientvit_m",
        ),
    ],
)
def test_architecture_refuses_what_it_cannot_join(computed, message):
    with pytest.raises(ValueError, match=message):
        paper.architecture(computed)


def test_two_slips_of_the_sources_are_put_right():
    recipe = paper.recipe("imagenet")
    assert recipe["weight_decay"] == 0.025
    scale = recipe["batch_total"] / recipe["lr_reference_batch"]
    assert math.isclose(recipe["base_lr"] * scale, recipe["effective_lr"])
    share = {
        end: paper.number("claims", quantity=f"best_share_{end}").value / 100
        for end in ("min", "max")
    }
    best = paper.load("fig3").sort_values("value").groupby("model").tail(1)
    assert best["mhsa_share"].between(share["min"], share["max"]).all()


@pytest.mark.parametrize("name", ["imagenet", "finetune", "detection", "speed_test_gpu"])
def test_recipes_state_their_provenance(name):
    recipe = paper.recipe(name)
    assert recipe["provenance"] in paper.PROVENANCES and recipe["source"]


def test_unknown_recipe_suggests_the_closest():
    with pytest.raises(ValueError, match="recipe: no 'image_net'; the closest is 'imagenet'"):
        paper.recipe("image_net")

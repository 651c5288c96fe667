"""Prune, train, and the same call again: what is finished is not repeated, another run refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from small_runs import no_training, one_line, recipe, shapes, stopped_at, tiny_vit

from evitlab.analysis.recovery import prune_and_recover, sample
from evitlab.models.zoo import create_model, load_model
from evitlab.records import PruningRecord

TRAIN, VAL = shapes(32), shapes(18, "val")
OPTIONS: dict[str, Any] = {"macs": 0.8, "images": 16, "steps": 2}


def tiny_deit():
    torch.manual_seed(0)
    return create_model("deit_t_p4", img_size=32, num_classes=3, embed_dim=12, depth=(2,))


@pytest.mark.parametrize("build", [tiny_vit, tiny_deit])
def test_three_accuracies_and_what_was_cut(build, tmp_path):
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    record = prune_and_recover(
        model, TRAIN, VAL, out_dir=tmp_path, recipe=recipe(), command="c", scale="smoke", **OPTIONS
    )
    assert record.before and record.pruned and record.recovered and record.recovery
    assert record.before.n == record.pruned.n == record.recovered.n == 18
    assert len(record.recovery.history) == 2 and record.recovery.macs == record.macs_after
    assert record.macs_after <= 0.8 * record.macs_before
    assert (record.environment.dataset, record.environment.scale) == ("shapes", "smoke")
    assert PruningRecord.load(tmp_path / "record.json") == record
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), f"{name}: the model passed in has changed"

    found = load_model(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(found(images), load_model(tmp_path / "recovery")(images))
    assert found.class_names == TRAIN.class_names
    with no_training():
        again = prune_and_recover(model, TRAIN, VAL, out_dir=tmp_path, recipe=recipe(), **OPTIONS)
    assert (again.pruned, again.recovered) == (record.pruned, record.recovered)


def test_a_stopped_recovery_ends_at_the_same_weights(tmp_path):
    def run(folder):
        return prune_and_recover(tiny_vit(), TRAIN, VAL, out_dir=folder, recipe=recipe(), **OPTIONS)

    whole = run(tmp_path / "whole")
    with stopped_at(2, step=2):
        run(tmp_path / "parts")
    assert not (tmp_path / "parts" / "record.json").exists()
    parts = run(tmp_path / "parts")
    assert parts.widths == whole.widths
    assert (parts.recovered.top1, parts.recovered.loss) == (
        whole.recovered.top1, whole.recovered.loss,
    )  # fmt: skip


def test_without_a_recipe_the_cut_is_all(tmp_path):
    record = prune_and_recover(
        tiny_vit(), TRAIN, VAL, out_dir=tmp_path, criterion="magnitude", **OPTIONS
    )
    assert record.recovered is None and record.recovery is None and record.images == 0
    images = torch.randn(2, 3, 32, 32)
    same = load_model(tmp_path / "pruned.safetensors")(images)
    assert torch.equal(load_model(tmp_path)(images), same)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"macs": 0.7}, "budget {'macs': 0.8} there, {'macs': 0.7} asked for"),
        ({"criterion": "abs-taylor"}, "criterion taylor there, abs-taylor asked for"),
        ({"steps": 1}, "steps 2 there, 1 asked for"),
        ({"images": 8}, "images 16 there, 8 asked for"),
        ({"seed": 1}, "seed 0 there, 1 asked for"),
    ],
)
def test_another_cut_in_the_folder_is_named(change, message, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "cut"
    prune_and_recover(tiny_vit(), TRAIN, VAL, out_dir=folder, **OPTIONS)
    with pytest.raises(ValueError) as raised:
        prune_and_recover(tiny_vit(), TRAIN, VAL, out_dir=folder, **{**OPTIONS, **change})
    assert message in one_line(raised) and "out_dir" in str(raised.value)


def test_another_data_set_in_the_folder_is_named(tmp_path):
    prune_and_recover(tiny_vit(), TRAIN, VAL, out_dir=tmp_path, **OPTIONS)
    other = dataclasses.replace(TRAIN, title="other")
    with pytest.raises(ValueError, match="dataset shapes there, other asked for"):
        prune_and_recover(tiny_vit(), other, VAL, out_dir=tmp_path, **OPTIONS)


def test_images_are_drawn_without_repetition():
    first, second = sample(TRAIN, 20, batch_size=12, seed=3)
    assert (len(first[1]), len(second[1])) == (12, 8)
    pixels = torch.cat([first[0], second[0]]).flatten(1)
    assert len(torch.unique(pixels, dim=0)) == 20
    assert torch.equal(sample(TRAIN, 20, batch_size=12, seed=3)[0][0], first[0])
    with pytest.raises(ValueError, match="images: expected at least 1, got 0"):
        sample(TRAIN, 0)

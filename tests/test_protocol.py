"""The recipes beside the published protocols: every field of either is compared or named."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from small_runs import one_line

from evitlab import RECIPES, Recipe, compare_recipe, paper
from evitlab.cli import main
from evitlab.training import detection_protocol, protocol

# No setting that the authors publish: how a run is carried out, or of no effect in "imagenet".
OWN = {
    "lr_steps": (),
    "validate_every": 1, "compile": False, "crop_padding": 4, "layer_decay": 1.0, "freeze": "none",
}  # fmt: skip
DEVIATIONS = {
    "epochs_trained", "lr_updates", "clip_parameters", "interpolation", "rand_augment_order",
    "mixup_mode", "amp", "eval_amp",
}  # fmt: skip


class Watched:
    """A recipe that notes which of its fields are read."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.read = recipe, set[str]()

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return getattr(self.recipe, name)


def row_of(frame: Any, field: str) -> dict[str, Any]:
    (row,) = frame[frame["field"] == field].to_dict("records")
    return row


@pytest.mark.parametrize("name", protocol.PUBLISHED)
def test_every_published_field_is_compared(name: str) -> None:
    compared = {*protocol._SETTINGS, *protocol._CIRCUMSTANCES}
    if name == "detection":
        compared |= {*detection_protocol.SETTINGS, *detection_protocol.CIRCUMSTANCES}
    unknown = set(protocol.protocol(name)) - compared
    assert not unknown, f"data/paper/recipe.json: no one compares {sorted(unknown)}"
    frame = compare_recipe(name)
    assert list(frame["field"]) == list(protocol.protocol(name))


def test_nothing_of_the_published_recipe_is_left_out() -> None:
    published = set(paper.recipe("imagenet")) - set(protocol.ABOUT)
    assert published <= set(compare_recipe("imagenet")["field"])
    assert set(protocol._SETTINGS) <= set(compare_recipe("imagenet")["field"])


def test_every_field_of_ours_is_read_or_named() -> None:
    ours = Watched(RECIPES["imagenet"])
    for setting in protocol._SETTINGS.values():
        setting(ours)  # type: ignore[arg-type]
    fields = {field.name for field in dataclasses.fields(Recipe)}
    assert fields - ours.read <= set(OWN)
    assert {name: getattr(ours.recipe, name) for name in OWN} == OWN


def test_imagenet_is_the_published_recipe_but_for_what_is_named() -> None:
    frame = compare_recipe("imagenet").set_index("field")
    differing = frame[frame["same"].eq(False)]
    assert set(differing.index) == DEVIATIONS
    assert (differing["why"] != "").all()
    alike = frame[frame["same"].eq(True)]
    assert (alike["why"] == "").all()
    assert frame[frame["same"].isna()].index.tolist() == [
        field for field in frame.index if field in protocol._CIRCUMSTANCES
    ]
    for field, ours in {
        "batch_total": 2048, "effective_lr": 4e-3, "weight_decay": 0.025, "clip_mode": "agc",
        "rand_augment": "rand-m9-mstd0.5-inc1", "crop_scale": (0.08, 1.0), "drop_path": 0.0,
        "no_weight_decay": ("attention_biases", "1-d parameters"), "optimizer": "adamw",
        "eval_resize_ratio": "256/224", "schedule": "cosine", "betas": "timm default",
    }.items():  # fmt: skip
        assert alike.loc[field, "ours"] == pytest.approx(ours)


def test_the_published_numbers_agree_with_one_another() -> None:
    recipe = paper.recipe("imagenet")
    assert recipe["gpus"] * recipe["batch_per_gpu"] == recipe["batch_total"]
    assert recipe["batch_norm_images"] == recipe["batch_per_gpu"]
    assert recipe["epochs_trained"] == recipe["epochs"]


@pytest.mark.parametrize(
    ("change", "field", "ours"),
    [
        ({"lr": 2e-3}, "effective_lr", 8e-3),
        ({"repeats": 2}, "repeated_aug", False),
        ({"randaugment_ops": 3}, "rand_augment", "rand-m9-n3-mstd0.5-inc1"),
        ({"randaugment_ops": 0}, "rand_augment", None),
        ({"betas": (0.9, 0.95)}, "betas", (0.9, 0.95)),
        ({"clip": "none"}, "clip_parameters", "none"),
        ({"weight_decay": 0.0}, "weight_decay", 0.0),
        ({"distillation": "hard"}, "distillation", "hard"),
        ({"crop": "pad"}, "crop_scale", "pad"),
        ({"sync_norm": True}, "batch_norm_images", 2048),
    ],
)
def test_a_changed_recipe_is_told_apart(
    change: dict[str, Any], field: str, ours: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = dataclasses.replace(RECIPES["imagenet"], **change)
    assert protocol._SETTINGS[field](changed) == ours
    assert not protocol._same(protocol.protocol("imagenet")[field], ours)


def test_images_of_a_batch_norm_are_told_with_the_processes_they_hold_for() -> None:
    row = row_of(compare_recipe("imagenet"), "batch_norm_images")
    assert (row["ours"], row["same"]) == ("256 on 8 processes", True)
    whole = dataclasses.replace(RECIPES["imagenet"], sync_norm=True)  # however many there are
    assert protocol._GIVEN["batch_norm_images"](whole) == ""


def test_a_reason_is_of_a_setting_that_differs() -> None:
    for name, reasons in {"imagenet": protocol._WHY, "finetune": protocol._WHY_FINETUNE}.items():
        frame = compare_recipe(name)
        kept = set(frame.loc[frame["same"].eq(False), "field"])
        own = set(reasons) - set(protocol._WHY) if name == "finetune" else set(reasons)
        assert own <= kept, name


def test_detection_is_the_official_one_but_for_what_decays() -> None:
    frame = compare_recipe("detection").set_index("field")
    differing = frame[frame["same"].eq(False)]
    assert list(differing.index) == ["no_weight_decay"]
    assert differing.loc["no_weight_decay", "why"] == detection_protocol.WHY["no_weight_decay"]
    ours = frame.loc[frame["same"].eq(True), "ours"]
    for field, value in {
        "epochs": 12, "lr_steps": (8, 11), "lr": 1e-4, "warmup_iters": 500, "warmup_ratio": 1e-3,
        "img_size": (1333, 800), "neck_in_channels": (128, 256, 384), "neck_outputs": 5,
        "neck_extra_transposed_convs": 1, "strides": (8, 16, 32, 64, 128), "focal_gamma": 2,
    }.items():  # fmt: skip
        assert ours[field] == pytest.approx(value)


def test_what_the_code_does_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = RECIPES["imagenet"]
    assert protocol._clipped(dataclasses.replace(ours, clip="norm")) == "all"
    assert protocol._normalised(dataclasses.replace(ours, accumulate=4)) == 64
    assert protocol._schedule(ours) == "cosine"
    monkeypatch.setattr(Recipe, "learning_rate", lambda self, epoch, **_: self.min_lr)
    assert protocol._schedule(ours) == "other"
    halves = torch.full((16, 16), 0.5)
    monkeypatch.setattr(protocol, "mix", lambda pixels, targets, **_: (pixels, halves))
    assert protocol._mixup_mode(ours) == "batch"


def test_finetune_is_held_against_the_authors_answer() -> None:
    frame = compare_recipe("finetune")
    answer = paper.recipe("finetune")
    assert row_of(frame, "effective_lr")["paper"] == answer["lr"]
    for field in ("batch_total", "weight_decay", "optimizer", "schedule"):
        row = row_of(frame, field)
        assert row["same"] and row["paper"] == answer[field]
    epochs = row_of(frame, "epochs")
    assert (epochs["paper"], epochs["same"]) == (300, False) and "300" in epochs["why"]
    assert row_of(frame, "eval_crop")["paper"] is False  # of the official code where it fine-tunes
    assert (frame.loc[frame["same"].eq(False), "why"] != "").all()
    assert not set(frame["field"]) & set(protocol._CIRCUMSTANCES)


@pytest.mark.parametrize(
    ("name", "hint"), [("image_net", "did you mean 'imagenet'?"), ("cifar", "")]
)
def test_a_recipe_without_a_counterpart_is_refused(name: str, hint: str) -> None:
    with pytest.raises(ValueError) as raised:
        compare_recipe(name)
    message = one_line(raised)
    assert message.startswith("name: expected a recipe with a published counterpart (imagenet, ")
    assert f"got {name!r}" in message and message.endswith(hint)


def test_the_command_prints_the_table_and_why(capsys: Any, tmp_path: Any) -> None:
    file = tmp_path / "table.json"
    assert main(["recipes", "imagenet", "--json", str(file)]) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    for row in compare_recipe("imagenet").itertuples():
        (line,) = (line for line in lines if line.split(maxsplit=1)[0] == row.field)
        verdict = {True: "yes", False: "NO", None: "–"}[row.same]
        assert line.endswith(f"  {verdict}"), line
    assert "the official loop ends after `epochs`" in said
    frame = compare_recipe("imagenet")
    alike, compared = frame["same"].eq(True).sum(), frame["same"].notna().sum()
    assert lines[-1] == f"{alike} of {compared} settings are the published ones"
    saved = json.loads(file.read_text())
    assert [row["field"] for row in saved] == list(frame["field"])


def test_the_command_lists_all_recipes(capsys: Any) -> None:
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0].split() == ["field", *RECIPES]
    fields = [field.name for field in dataclasses.fields(Recipe)]
    assert [line.split()[0] for line in listed[1 : len(fields) + 1]] == fields
    assert main(["recipes", "cifar"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["field", "cifar"]


def test_the_command_names_the_recipes_for_an_unknown_one(capsys: Any) -> None:
    assert main(["recipes", "imagnet"]) == 2
    assert "NAME: expected one of smoke, cifar, finetune, imagenet" in capsys.readouterr().err

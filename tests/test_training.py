"""Recipes by hand, and laws of training: a run is a function of model, data and recipe."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import (
    RunsCode,
    Stopped,
    no_training,
    one_line,
    plain_net,
    recipe,
    shapes,
    stopped_at,
    tiny_vit,
    write_folder,
)
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from evitlab import (
    RECIPES,
    Dataset,
    Recipe,
    TrainingRecord,
    count_macs,
    count_params,
    evaluate,
    load_model,
    open_dataset,
    paper,
    train,
)
from evitlab.datasets import StreamingDataset
from evitlab.datasets.streaming import random_resized_box
from evitlab.training import classifier, task
from evitlab.training.failures import NonFiniteLoss

NAN = math.nan
# For every field: values that are refused, and values at the edge of what is accepted.
RANGES: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "epochs": ((0, -1, 1.5, NAN, "3", None, True), (1,)),
    "batch_size": ((0, 2.0, None), (1,)),
    "lr": ((0.0, -1e-3, NAN, math.inf, "1e-3", None), (1e-12, 1)),
    "lr_batch": ((0, -512, 0.5), (None, 1)),
    "min_lr": ((-1e-9, NAN, math.inf, None), (0, 0.0)),
    "warmup_lr": ((-1e-9, NAN), (0.0,)),
    "warmup_epochs": ((-0.1, NAN, math.inf), (0, 0.2)),
    "warmup_steps": ((-1, 0.5, None), (0, 500)),
    "schedule": (("linear", None), ("cosine", "steps")),
    "lr_steps": (((0,), (8, 8), (11, 8), (1.5,), [8, 11], 8), ((), (8, 11))),
    "cooldown_epochs": ((-1, 0.5), (0,)),
    "weight_decay": ((-0.1, NAN), (0.0,)),
    "betas": (((0.9,), (0.9, 1.0), (-0.1, 0.9), 0.9, [0.9, 0.999]), ((0.0, 0.0),)),
    "eps": ((0.0, -1e-8, NAN), (1e-30,)),
    "layer_decay": ((0, -0.5, 1.1, NAN, None), (1.0, 0.65, 1)),
    "freeze": (("head", None, True), ("none", "backbone")),
    "clip": (("l2", None, ""), ("none", "norm", "agc")),
    "clip_grad": ((0.0, -1.0, NAN), (1e-9,)),
    "ema_decay": ((1.0, -0.1, NAN), (0.0, 0.99996)),
    "distillation": (("both", None, True), ("none", "soft", "hard")),
    "distillation_alpha": ((-0.1, 1.1, NAN, None), (0, 0.5, 1)),
    "distillation_tau": ((0, 0.0, -1.0, NAN, math.inf), (1e-3, 4)),
    "repeats": ((0, 1.5), (1,)),
    "precision": (("float16", None), ("auto", "float32", "bfloat16")),
    "accumulate": ((0, -1, 2.0, None), (1, 8)),
    "sync_norm": ((1, "yes", None), (False, True)),
    "compile": ((1, "yes", None), (False, True)),
    "validate_every": ((0, -1, 0.5), (1,)),
    "seed": ((0.5, 2**63, -(2**63) - 1, None), (0, -1, 2**63 - 1)),
    "crop": (("center", None), ("none", "pad", "resized")),
    "crop_padding": ((-1, 1.5), (0,)),
    "crop_scale": (((0.0, 1.0), (0.5, 0.4), (0.5, 1.1), (0.5,), 0.5), ((1.0, 1.0), (1e-3, 1))),
    "flip": ((-0.1, 1.1, NAN), (0.0, 1)),
    "color_jitter": ((-0.1, NAN), (0.0, 2.0)),
    "randaugment_ops": ((-1, 0.5), (0,)),
    "randaugment_magnitude": ((-0.1, 10.1, NAN), (0, 10)),
    "randaugment_std": ((-0.1, NAN, math.inf), (0.0,)),
    "mixup_alpha": ((-0.1, NAN, math.inf), (0.0,)),
    "cutmix_alpha": ((-0.1, NAN), (0.0,)),
    "mix_prob": ((-0.1, 1.1), (0.0, 1.0)),
    "switch_prob": ((-0.1, 1.1), (0.0, 1.0)),
    "random_erasing": ((-0.1, 1.1), (0.0, 1.0)),
    "label_smoothing": ((-0.1, 1.0, NAN), (0.0, 0.999)),
}


def test_every_field_of_a_recipe_has_a_range() -> None:
    assert list(RANGES) == [field.name for field in dataclasses.fields(Recipe)]


@pytest.mark.parametrize("field", RANGES)
def test_a_value_out_of_range_is_refused_by_the_fields_name(field: str) -> None:
    refused, accepted = RANGES[field]
    for value in refused:
        with pytest.raises(ValueError) as raised:
            recipe(**{field: value})
        message = one_line(raised)
        assert message.startswith(f"{field}: expected "), value
        assert message.endswith(f", got {value!r}")
    for value in accepted:
        assert getattr(recipe(**{field: value}), field) == value


def test_learning_rate_in_steps_by_hand() -> None:
    """Four of the eight steps of the first epoch warm up; a tenth after the second and third."""
    changes: Any = dict(schedule="steps", lr_steps=(2, 3), warmup_steps=4, warmup_lr=0.0)
    rate = recipe(epochs=4, lr=1.0, **changes).learning_rate
    points = {0: 0.0, 0.25: 0.5, 0.5: 1.0, 1.99: 1.0, 2: 0.1, 2.99: 0.1, 3: 0.01, 3.9: 0.01}
    for epoch, expected in points.items():
        assert rate(epoch, steps=8) == pytest.approx(expected)


def test_learning_rate_by_hand() -> None:
    """Warm-up from 0.2 to 1 in two epochs, cosine to 0.1 at the tenth, then 0.1."""
    rate = recipe(
        epochs=10, lr=1.0, min_lr=0.1, warmup_lr=0.2, warmup_epochs=2, cooldown_epochs=3
    ).learning_rate
    assert rate(0) == 0.2
    assert rate(1) == pytest.approx(0.6, abs=1e-12)
    assert rate(2 - 1e-9) == pytest.approx(1.0, abs=1e-8)
    # The cosine has run on below the warm-up: cos 36° = (1 + √5) / 4.
    assert rate(2) == pytest.approx(0.1 + 0.9 * (5 + math.sqrt(5)) / 8, abs=1e-12)
    assert rate(5) == pytest.approx(0.55, abs=1e-12)
    assert rate(10 - 1e-9) == pytest.approx(0.1, abs=1e-8)
    assert rate(10) == rate(12.99) == 0.1


def test_without_warm_up_the_first_rate_is_the_peak() -> None:
    assert recipe(epochs=4, lr=1e-3, min_lr=0.0).learning_rate(0) == 1e-3


def test_learning_rate_is_timms_at_every_epoch() -> None:
    ours = RECIPES["imagenet"]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=ours.peak_lr)
    theirs = CosineLRScheduler(
        optimizer,
        t_initial=300,
        lr_min=1e-5,
        warmup_lr_init=1e-6,
        warmup_t=5,
    )
    assert ours.total_epochs == 310
    for epoch in range(ours.total_epochs):
        theirs.step(epoch)
        expected = optimizer.param_groups[0]["lr"]
        assert ours.learning_rate(epoch) == pytest.approx(expected, rel=1e-9), epoch


def test_peak_rate_grows_with_the_batch() -> None:
    assert RECIPES["imagenet"].peak_lr == pytest.approx(4e-3, rel=1e-12)  # 1e-3 * 2048 / 512
    assert recipe(lr=1e-3, lr_batch=512, batch_size=128).peak_lr == pytest.approx(2.5e-4)
    assert recipe(lr=1e-3, lr_batch=None, batch_size=128).peak_lr == 1e-3


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingRecord]:
    """A tiny model that learned 24 images by heart; validated every fourth epoch and at the end."""
    out = tmp_path_factory.mktemp("finished")
    record = train(tiny_vit(), shapes(24), shapes(24), BY_HEART, out_dir=out, scale="smoke")
    return out, record


BY_HEART = recipe(epochs=10, batch_size=8, lr=5e-3, validate_every=4, seed=3)


def test_training_learns(finished: tuple[Path, TrainingRecord]) -> None:
    _, record = finished
    losses = [log.train_loss for log in record.history]
    assert losses[0] > 0.7
    assert losses[-1] < 0.3 * losses[0]
    assert record.final.top1 > 90


def test_record_says_all_about_the_run(finished: tuple[Path, TrainingRecord]) -> None:
    out, record = finished
    model = tiny_vit()
    assert record.model == "efficientvit_m0_p4"
    assert (record.img_size, record.num_classes) == ((32, 32), 3)
    assert (record.dataset, record.train_images) == ("shapes", 24)
    assert (record.params, record.macs) == (count_params(model), count_macs(model))
    assert record.recipe == dataclasses.asdict(BY_HEART)
    assert [log.epoch for log in record.history] == list(range(1, 11))
    assert [log.epoch for log in record.history if log.val_top1 is not None] == [4, 8, 10]
    for log in record.history:
        last_step = log.epoch - 1 + 2 / 3  # the third of three
        assert log.learning_rate == BY_HEART.learning_rate(last_step)
        assert log.img_per_s == pytest.approx(24 / log.seconds)
    assert record.seconds == pytest.approx(sum(log.seconds for log in record.history))
    last = record.history[-1]
    assert (last.val_top1, last.val_top5) == (record.final.top1, record.final.top5)
    best = {log.epoch: log.val_top1 for log in record.history if log.val_top1 is not None}
    assert best[record.best_epoch] == max(best.values())
    card = record.environment
    assert (card.batch_size, card.seed, card.scale, card.dataset) == (8, 3, "smoke", "shapes")
    assert (card.device, card.precision) == ("cpu", "float32")
    assert TrainingRecord.load(out / "record.json") == record
    assert json.loads((out / "recipe.json").read_text())["recipe"]["lr"] == 5e-3


# Relative, of a loss. A run's kernels lie channels-last in memory, those of a file do not, so that
# the same float32 products are summed in another order.
SAME_WEIGHTS = 1e-6


def test_final_weights_give_the_recorded_accuracy(finished: tuple[Path, TrainingRecord]) -> None:
    out, record = finished
    again = evaluate(load_model(out), shapes(24))
    for name in ("top1", "top5", "n"):
        assert getattr(again, name) == getattr(record.final, name), name
    assert again.loss == pytest.approx(record.final.loss, rel=SAME_WEIGHTS)


def test_best_weights_are_those_of_the_best_epoch(finished: tuple[Path, TrainingRecord]) -> None:
    out, record = finished
    best = evaluate(load_model(out / "checkpoints" / "best.safetensors"), shapes(24))
    log = record.history[record.best_epoch - 1]
    assert best.top1 == log.val_top1
    assert best.loss == pytest.approx(log.val_loss, rel=SAME_WEIGHTS)


def test_a_finished_run_is_not_trained_again(finished: tuple[Path, TrainingRecord]) -> None:
    """Its record comes back as it was, and the model gets its weights."""
    out, record = finished
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    model = tiny_vit(seed=1)
    with no_training():
        assert train(model, shapes(24), shapes(24), BY_HEART, out_dir=out) == record
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert_state(model, load_file(out / "model.safetensors"))


def assert_state(model: nn.Module, expected: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert state.keys() == expected.keys()
    for key, value in state.items():
        assert torch.equal(value, expected[key]), key


DIFFERENT: dict[str, tuple[Callable[[], tuple[Any, Dataset, Recipe]], str]] = {
    "recipe": (
        lambda: (tiny_vit(), shapes(24), dataclasses.replace(BY_HEART, lr=1e-3, epochs=9)),
        r"\(epochs 10 there, 9 asked for; lr 0\.005 there, 0\.001 asked for\)",
    ),
    "data": (
        lambda: (tiny_vit(), shapes(24, title="drawings"), BY_HEART),
        r"\(dataset shapes there, drawings asked for\)",
    ),
    "number of images": (
        lambda: (tiny_vit(), shapes(27), BY_HEART),
        r"\(train_images 24 there, 27 asked for\)",
    ),
    "model": (
        lambda: (tiny_vit(drop_path_rate=0.5), shapes(24), BY_HEART),
        r"\(drop_path_rate 0\.0 there, 0\.5 asked for\)",
    ),
}


@pytest.mark.parametrize("files", ["finished", "stopped"])
@pytest.mark.parametrize("different", DIFFERENT)
def test_a_folder_holds_one_run(
    finished: tuple[Path, TrainingRecord], tmp_path: Path, different: str, files: str
) -> None:
    """Another one is refused, with what differs, and nothing is touched."""
    out = shutil.copytree(finished[0], tmp_path / "run")
    if files == "stopped":
        (out / "record.json").unlink()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    build, differs = DIFFERENT[different]
    model, data, other = build()
    with no_training(), pytest.raises(ValueError, match=differs) as raised:
        train(model, data, shapes(24), other, out_dir=out)
    assert "resume=False" in one_line(raised)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_starting_over_forgets_the_earlier_run(tmp_path: Path) -> None:
    """Also where the new run is stopped before its first checkpoint."""
    old, new = recipe(seed=1), recipe(seed=2, epochs=1)
    train(plain_net(), shapes(32), shapes(6), old, out_dir=tmp_path)
    with stopped_at(1, step=2):
        train(plain_net(), shapes(32), shapes(6), new, out_dir=tmp_path, resume=False)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["recipe.json"]
    record = train(plain_net(), shapes(32), shapes(6), new, out_dir=tmp_path)
    assert record.recipe == dataclasses.asdict(new)
    train(plain_net(), shapes(32), shapes(6), new, out_dir=tmp_path / "alone")
    assert_same_file(tmp_path, tmp_path / "alone", "model.safetensors")


def assert_same_file(run: Path, other: Path, name: str) -> None:
    assert (run / name).read_bytes() == (other / name).read_bytes(), f"{name} differs"


# Everything that draws random numbers or keeps a state of its own.
EVERYTHING = recipe(
    epochs=3,
    lr=3e-3,
    warmup_epochs=1,
    clip="agc",
    clip_grad=0.02,
    ema_decay=0.9,
    repeats=2,
    crop="resized",
    flip=0.5,
    randaugment_ops=2,
    mixup_alpha=0.8,
    cutmix_alpha=1.0,
    random_erasing=0.25,
    label_smoothing=0.1,
)


def test_a_stopped_run_continues_to_the_same_bits(tmp_path: Path) -> None:
    """With stochastic depth, moving averages and all augmentation on; whatever the new process
    draws before, and whatever weights its model begins with."""
    data, val = shapes(32), shapes(12, "val")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = train(tiny_vit(drop_path_rate=0.3), data, val, EVERYTHING, out_dir=whole)
    for seed, step in ((0, 2), (1, 1)):  # in the middle of the second epoch, before the third
        with stopped_at(2, step=step):
            train(tiny_vit(seed, drop_path_rate=0.3), data, val, EVERYTHING, out_dir=parts)
    torch.rand(7)
    record = train(tiny_vit(2, drop_path_rate=0.3), data, val, EVERYTHING, out_dir=parts)
    for name in ("model.safetensors", "model_ema.safetensors", "checkpoints/best.safetensors"):
        assert_same_file(whole, parts, name)
    for ours, theirs in zip(record.history, expected.history, strict=True):
        assert dataclasses.replace(ours, seconds=1, img_per_s=1) == dataclasses.replace(
            theirs, seconds=1, img_per_s=1
        )
    assert (record.final.loss, record.final.top1) == (expected.final.loss, expected.final.top1)


def test_a_run_stopped_after_its_last_epoch_is_only_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(task, "count_macs", stop)
        train(plain_net(), shapes(32), shapes(6), recipe(), out_dir=tmp_path)
    assert not (tmp_path / "record.json").exists()
    with no_training():
        record = train(plain_net(5), shapes(32), shapes(6), recipe(), out_dir=tmp_path)
    assert len(record.history) == 2
    assert record.final.loss == record.history[-1].val_loss


@pytest.mark.parametrize("change", [dict(seed=1), dict(lr=2e-2), dict(flip=0.5)])
def test_another_seed_or_recipe_gives_other_weights(tmp_path: Path, change: dict[str, Any]) -> None:
    """Else the sameness of resumed weights would say nothing."""
    weights = []
    for number, options in enumerate(({}, change)):
        out = tmp_path / str(number)
        train(plain_net(), shapes(32), shapes(6), recipe(**options), out_dir=out)
        weights.append(load_file(out / "model.safetensors")["2.weight"])
    assert not torch.equal(*weights)


def test_moving_average_follows_its_formula(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """e2 = d (d w0 + (1 - d) w1) + (1 - d) w2, with wi the weights after step i."""
    weights = []
    update = ModelEmaV3.update

    def spy(self: ModelEmaV3, model: nn.Module, *args: Any) -> None:
        weights.append({key: value.clone() for key, value in model.state_dict().items()})
        update(self, model, *args)

    monkeypatch.setattr(ModelEmaV3, "update", spy)
    model = tiny_vit()
    w0 = {key: value.clone() for key, value in model.state_dict().items()}
    once = recipe(epochs=1, ema_decay=0.75)
    train(model, shapes(32), shapes(6), once, out_dir=tmp_path)
    w1, w2 = weights
    average = load_file(tmp_path / "model_ema.safetensors")
    final = load_file(tmp_path / "model.safetensors")
    assert average.keys() == w0.keys()
    for key, value in average.items():
        assert torch.equal(final[key], w2[key]), key
        if not value.is_floating_point():
            assert torch.equal(value, w2[key]), key  # BatchNorm's count of batches
            continue
        by_hand = 0.75 * (0.75 * w0[key] + 0.25 * w1[key]) + 0.25 * w2[key]
        torch.testing.assert_close(value, by_hand, rtol=1e-5, atol=1e-6, msg=key)
    assert not torch.equal(w1["head.linear.weight"], w2["head.linear.weight"])


def test_the_record_is_of_the_weights_not_of_their_average(tmp_path: Path) -> None:
    """As in the official code."""
    averaged = recipe(ema_decay=0.99)
    record = train(tiny_vit(), shapes(32), shapes(12), averaged, out_dir=tmp_path)
    assert record.final.loss == evaluate(load_model(tmp_path), shapes(12)).loss
    ema = load_model(tmp_path / "model_ema.safetensors")
    assert record.final.loss != evaluate(ema, shapes(12)).loss


def orders_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Dataset, **changes: Any
) -> tuple[list[Tensor], list[int]]:
    """The orders in which training asks for images, one per epoch, and the steps it makes."""
    orders: list[Tensor] = []
    sizes: list[int] = []
    whole = Dataset.batches

    def spy(self: Dataset, order: Tensor, *args: Any, **options: Any) -> Iterator[Any]:
        for images, labels in whole(self, order, *args, **options):
            if options.get("train"):
                sizes.append(len(labels))
            yield images, labels
        if options.get("train"):
            orders.append(order)

    monkeypatch.setattr(Dataset, "batches", spy)
    train(plain_net(), data, data, recipe(**changes), out_dir=tmp_path)
    return orders, sizes


def test_an_epoch_is_a_new_permutation_in_whole_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders, sizes = orders_of(tmp_path, monkeypatch, shapes(39))
    assert sizes == [16, 16] * 2  # 7 images sit out
    for order in orders:
        assert len(set(order.tolist())) == 32
    assert not torch.equal(*orders)


def test_repeated_augmentation_shows_fewer_images_in_epochs_as_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders, sizes = orders_of(tmp_path, monkeypatch, shapes(32), repeats=3)
    assert sizes == [16, 16] * 2
    for order in orders:
        views = order.bincount(minlength=32)
        assert sorted(views.tolist()) == [0] * 21 + [2] + [3] * 10
    assert not torch.equal(*orders)


def test_fewer_images_than_a_batch_make_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, sizes = orders_of(tmp_path, monkeypatch, shapes(5), batch_size=64)
    assert sizes == [5, 5]


@contextmanager
def optimizer_steps(model: nn.Module) -> Iterator[list[dict[str, Tensor]]]:
    """The gradients that each step of the optimiser is given."""
    steps: list[dict[str, Tensor]] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        steps.append(
            {name: weight.grad.clone() for name, weight in model.named_parameters()}  # type: ignore[union-attr]
        )

    handle = register_optimizer_step_pre_hook(note)
    try:
        yield steps
    finally:
        handle.remove()


def first_gradients(out: Path, clip: str, clip_grad: float) -> dict[str, Tensor]:
    model = tiny_vit()
    once = recipe(epochs=1, batch_size=32, clip=clip, clip_grad=clip_grad)
    with optimizer_steps(model) as steps:
        train(model, shapes(32), shapes(6), once, out_dir=out)
    (gradients,) = steps
    return gradients


def unit_norms(x: Tensor) -> Tensor:
    """Of the weights of each output unit; of all where there is one weight per unit."""
    return x.square().sum(dim=tuple(range(min(1, x.ndim - 1), x.ndim)), keepdim=True).sqrt()


def test_adaptive_clipping_bounds_each_unit_and_leaves_the_classifier_alone(
    tmp_path: Path,
) -> None:
    """|g| <= 0.01 max(|w|, 0.001) for the weights of each output unit."""
    free = first_gradients(tmp_path / "free", "none", 0.01)
    clipped = first_gradients(tmp_path / "agc", "agc", 0.01)
    shrunk = 0
    for name, weight in tiny_vit().named_parameters():
        if name.startswith("head.linear."):
            assert torch.equal(clipped[name], free[name]), name
            continue
        limit = 0.01 * unit_norms(weight.detach()).clamp(min=1e-3)
        norm = unit_norms(free[name])
        expected = torch.where(norm > limit, free[name] * limit / norm.clamp(min=1e-30), free[name])
        torch.testing.assert_close(clipped[name], expected, rtol=1e-4, atol=1e-9, msg=name)
        shrunk += int((norm > limit).sum())
    assert shrunk > 10
    head, initial = free["head.linear.weight"], tiny_vit().head.linear.weight.detach()
    assert (unit_norms(head) > 0.01 * unit_norms(initial)).any()  # it would have been clipped


def test_norm_clipping_scales_all_gradients_alike(tmp_path: Path) -> None:
    free = first_gradients(tmp_path / "free", "none", 0.1)
    clipped = first_gradients(tmp_path / "norm", "norm", 0.1)

    def total(gradients: dict[str, Tensor]) -> Tensor:
        return torch.cat([g.flatten().double() for g in gradients.values()]).norm()

    assert total(free) > 0.2
    assert float(total(clipped)) == pytest.approx(0.1, rel=1e-4)
    for name, gradient in clipped.items():
        expected = free[name] * (0.1 / total(free))
        torch.testing.assert_close(gradient, expected.float(), rtol=1e-4, atol=1e-9, msg=name)


def test_weight_decay_spares_biases_norms_and_attention_biases(tmp_path: Path) -> None:
    model = tiny_vit()
    decays: dict[int, float] = {}

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            decays.update({id(weight): group["weight_decay"] for weight in group["params"]})

    handle = register_optimizer_step_pre_hook(note)
    try:
        once = recipe(epochs=1, batch_size=32, weight_decay=0.025)
        train(model, shapes(32), shapes(6), once, out_dir=tmp_path)
    finally:
        handle.remove()
    spared = paper.recipe("imagenet")["no_weight_decay"]
    assert spared == ["attention_biases", "1-d parameters"]
    for name, weight in model.named_parameters():
        expected = 0.0 if weight.ndim <= 1 or "attention_biases" in name else 0.025
        assert decays[id(weight)] == expected, name
    assert len(decays) == len(list(model.parameters()))


class Poisoned(classifier.Augment):
    """Turns the images of the fourth step into NaN."""

    steps = 0

    def __call__(
        self, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        self.steps += 1
        pixels, targets = super().__call__(images, labels, generator)
        return pixels * (math.nan if self.steps == 4 else 1), targets


def test_a_loss_of_nan_stops_the_run_and_names_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last checkpoint is good: once the cause is gone, the run ends as if nothing had been."""
    data, val, three = shapes(32), shapes(6), recipe(epochs=3)
    with monkeypatch.context() as patch, pytest.raises(NonFiniteLoss) as raised:
        patch.setattr(classifier, "Augment", Poisoned)
        train(plain_net(), data, val, three, out_dir=tmp_path / "run")
    message, last = one_line(raised), tmp_path / "run" / "checkpoints" / "last.pt"
    for part in ("epoch 2, step 2 of 2", f"rate {three.learning_rate(1.5):.3g};", str(last)):
        assert part in message
    train(plain_net(), data, val, three, out_dir=tmp_path / "run")
    train(plain_net(), data, val, three, out_dir=tmp_path / "whole")
    assert_same_file(tmp_path / "run", tmp_path / "whole", "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(lr=1e30, batch_size=16), r"^loss .* epoch 1, step 2 of 2, learning rate 8.54e\+29"),
        (dict(lr=1e30, batch_size=32), "^validation loss .* epoch 1, step 1 of 1"),
        (dict(lr=1e39, batch_size=32, validate_every=2), "^a weight .* epoch 1, step 1 of 1"),
    ],
    ids=["step", "validation", "weights"],
)
def test_weights_that_blew_up_reach_no_checkpoint(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(NonFiniteLoss, match=message) as raised:
        train(tiny_vit(), shapes(32), shapes(6), recipe(**changes), out_dir=tmp_path)
    assert one_line(raised).endswith("last good checkpoint: none yet")
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("*.safetensors"))


def test_a_folder_that_cannot_be_written_costs_no_epoch(tmp_path: Path) -> None:
    """Below a regular file: that stops root, too."""
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "run"
    for resume in (True, False):
        with no_training(), pytest.raises(OSError, match="cannot write here") as raised:
            train(plain_net(), shapes(32), shapes(6), recipe(), out_dir=out, resume=resume)
        assert str(out) in one_line(raised)


@pytest.mark.parametrize("keep", [0, 1, 0.5, -1], ids=["empty", "a byte", "half", "all but one"])
def test_a_truncated_checkpoint_is_named(tmp_path: Path, keep: float) -> None:
    with stopped_at(2, step=1):
        train(plain_net(), shapes(32), shapes(6), recipe(), out_dir=tmp_path)
    last = tmp_path / "checkpoints" / "last.pt"
    content = last.read_bytes()
    last.write_bytes(content[: int(len(content) * keep) if keep == 0.5 else int(keep)])
    with no_training(), pytest.raises(ValueError, match="truncated") as raised:
        train(plain_net(), shapes(32), shapes(6), recipe(), out_dir=tmp_path)
    assert one_line(raised).startswith(str(last))


def test_a_checkpoint_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    last = tmp_path / "checkpoints" / "last.pt"
    last.parent.mkdir()
    torch.save({"format": 1, "identity": RunsCode(tmp_path / "broken into")}, last)
    with no_training(), pytest.raises(ValueError, match="needs code .* refused") as raised:
        train(plain_net(), shapes(32), shapes(6), recipe(), out_dir=tmp_path)
    assert str(last) in one_line(raised)
    assert not (tmp_path / "broken into").exists()


def cut(data: Dataset, height: int, width: int) -> Dataset:
    return dataclasses.replace(data, images=data.images[..., :height, :width])


MISFITS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "one training image": (
        lambda out: train(plain_net(), shapes(1), shapes(6), recipe(), out_dir=out),
        r"^train_data, val_data: expected at least 2 and 1 images, got \(1, 6\)",
    ),
    "no validation image": (
        lambda out: train(plain_net(), shapes(6), shapes(0), recipe(), out_dir=out),
        r"^train_data, val_data: .* got \(6, 0\)",
    ),
    "other classes to validate": (
        lambda out: train(plain_net(classes=4), shapes(6), shapes(8, classes=4), recipe(),
                          out_dir=out),
        r"^val_data: expected the training data's 3 classes, got 4 \(disk, square, triangle",
    ),
    "other sizes to validate": (
        lambda out: train(plain_net(), shapes(6), cut(shapes(6), 24, 16), recipe(), out_dir=out),
        "^val_data: expected images of 32x32 pixels, the training data's, got 24x16",
    ),
    "more classes than the model's": (
        lambda out: train(tiny_vit(), shapes(8, classes=4), shapes(8, classes=4), recipe(),
                          out_dir=out),
        r"^data: expected labels of at most 3 classes \(the model's\), got 4 in shapes",
    ),
    "BatchNorm of one image": (
        lambda out: train(tiny_vit(), shapes(6), shapes(6), recipe(batch_size=1), out_dir=out),
        r"^batch_size: expected at least 2, as BatchNorm needs them, got 1",
    ),
    "no such device": (
        lambda out: train(plain_net(), shapes(6), shapes(6), recipe(), out_dir=out, device="gpu"),
        r"^device: expected one that torch can use here, such as 'cpu', got 'gpu'",
    ),
    "no such scale": (
        lambda out: train(plain_net(), shapes(6), shapes(6), recipe(), out_dir=out, scale="labs"),
        r"^scale: expected one of .* did you mean 'lab'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("misfit", MISFITS)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, misfit: str
) -> None:
    call, message = MISFITS[misfit]
    with no_training(), pytest.raises(ValueError, match=message) as raised:
        call(tmp_path / "run")
    one_line(raised)
    assert not (tmp_path / "run").exists()


def test_batches_of_one_image_are_fine_without_batchnorm(tmp_path: Path) -> None:
    record = train(plain_net(), shapes(3), shapes(3), recipe(batch_size=1), out_dir=tmp_path)
    assert len(record.history) == 2


def test_a_model_of_ones_own_trains(tmp_path: Path) -> None:
    """Without timm's attributes, it goes by its class's name and the data's number of classes."""
    record = train(plain_net(), shapes(32), shapes(6), recipe(), out_dir=tmp_path)
    assert (record.model, record.num_classes, record.params) == ("Sequential", 3, 147)
    with no_training():
        assert train(plain_net(1), shapes(32), shapes(6), recipe(), out_dir=tmp_path) == record


def test_images_that_were_cropped_while_decoding_are_not_cropped_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Recipe] = []

    def spy(recipe: Recipe, **_: Any) -> None:
        used.append(recipe)
        raise Stopped

    monkeypatch.setattr(classifier, "Augment", spy)
    cropped = recipe(crop="resized")
    for crops_on_load in (False, True):
        monkeypatch.setattr(Dataset, "crops_on_load", crops_on_load)
        with pytest.raises(Stopped):
            train(plain_net(), shapes(6), shapes(6), cropped, out_dir=tmp_path)
    assert used == [cropped, recipe(crop="none")]


def streamed(root: Path, split: str, **options: Any) -> StreamingDataset:
    data = open_dataset(root, split, img_size=32, streaming=True, **options)
    assert isinstance(data, StreamingDataset)
    return dataclasses.replace(data, num_workers=0)


def test_a_streaming_set_trains_with_the_recipes_crops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cropped while decoding, at the recipe's scale; and random numbers stay as they were."""
    scales: list[tuple[float, float]] = []

    def spy(size: tuple[int, int], scale: tuple[float, float], rng: Any) -> Any:
        scales.append(scale)
        return random_resized_box(size, scale, rng)

    monkeypatch.setattr("evitlab.datasets.streaming.random_resized_box", spy)
    root = write_folder(tmp_path / "data", {"train": shapes(9), "val": shapes(6, "val")})
    model, out = plain_net(), tmp_path / "run"
    few = recipe(epochs=2, batch_size=4, crop="resized", crop_scale=(0.5, 0.9))
    before = global_state()
    record = train(model, streamed(root, "train"), streamed(root, "val"), few, out_dir=out)
    assert global_state() == before
    assert scales == [(0.5, 0.9)] * 16  # two epochs of two whole batches; none to validate
    assert (record.train_images, record.final.n) == (9, 6)


def test_images_that_cannot_be_read_are_not_measured(tmp_path: Path) -> None:
    """A share of the rest; with no rest there is nothing to say."""
    root = write_folder(tmp_path / "data", {"val": shapes(6, "val")})
    rest = [2, 4]
    for number in {0, 1, 3, 5}:
        (file,) = root.rglob(f"{number}.png")
        file.write_bytes(b"broken")
    data = streamed(root, "val", on_error="skip")
    result = evaluate(plain_net(), data, batch_size=2)
    assert (result.n, data.skipped) == (2, 4)
    alone = shapes(6, "val")
    alone = dataclasses.replace(alone, images=alone.images[rest], labels=alone.labels[rest])
    assert result.loss == pytest.approx(evaluate(plain_net(), alone).loss, rel=0.2)
    for number in rest:
        (file,) = root.rglob(f"{number}.png")
        file.write_bytes(b"broken")
    with pytest.raises(ValueError, match="^data: expected at least one image, got none"):
        evaluate(plain_net(), streamed(root, "val", on_error="skip"))


def test_half_precision_computes_but_does_not_store(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []
    model = plain_net()
    model[2].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))  # type: ignore[index]
    half = recipe(epochs=1, precision="bfloat16")
    record = train(model, shapes(32), shapes(6), half, out_dir=tmp_path)
    assert seen[:2] == [torch.bfloat16] * 2  # steps
    assert seen[2] == torch.float32  # validation
    assert record.environment.precision == "bfloat16"
    assert load_file(tmp_path / "model.safetensors")["2.weight"].dtype == torch.float32


class Fixed(nn.Module):
    """The logits it was given, in the order of the images; one parameter for a place to be."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.bn = nn.BatchNorm2d(3)
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training and not torch.is_grad_enabled()
        self.bn(images)  # would move its statistics if it were training
        first = self.seen
        self.seen += len(images)
        if self.seen > len(self.logits):
            raise Stopped
        return self.logits[first : self.seen]


def labelled(labels: list[int], classes: int) -> Dataset:
    images = torch.zeros(len(labels), 3, 4, 4, dtype=torch.uint8)
    names = tuple(f"class {number}" for number in range(classes))
    return Dataset("toy", "toy", "val", images, torch.tensor(labels, dtype=torch.int64), names)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 256])
def test_accuracy_by_hand(batch_size: int) -> None:
    """Ranks of the label among six classes: 1st, 2nd, 5th, 6th, 1st."""
    rising = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    model = Fixed([rising] * 5)
    result = evaluate(model, labelled([5, 4, 1, 0, 5], 6), batch_size=batch_size)
    assert (result.top1, result.top5, result.n) == (40, 80, 5)
    log_sum = math.log(sum(math.exp(value) for value in rising))
    assert result.loss == pytest.approx(log_sum - (5 + 4 + 1 + 0 + 5) / 5, rel=1e-6)
    assert result.environment.batch_size == batch_size
    assert result.environment.dataset == "toy"


def test_top5_of_three_classes_is_everything() -> None:
    result = evaluate(Fixed([[1.0, 2.0, 3.0]] * 3), labelled([0, 1, 2], 3))
    assert result.top1 == pytest.approx(100 / 3)
    assert result.top5 == 100


def test_evaluation_leaves_the_model_as_it_was() -> None:
    """Each module's own mode, statistics and gradients; also when the model fails."""
    model = Fixed([[1.0, 2.0]] * 2)
    model.train()
    model.bn.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    evaluate(model, labelled([0, 1], 2))
    with pytest.raises(Stopped):
        evaluate(model, labelled([0, 1], 2))  # no logits are left
    assert (model.training, model.bn.training) == (True, False)
    assert_state(model, before)
    assert model.logits.grad is None


@pytest.mark.parametrize(
    ("labels", "classes", "options", "message"),
    [
        ([], 2, {}, "^data: expected at least one image, got none"),
        ([0, 1], 3, {}, "^data: expected labels of at most 2 classes .* got 3 in toy"),
        ([0, 1], 2, {"batch_size": 0}, "^batch_size: expected at least 1, got 0"),
        ([0, 1], 2, {"batch_size": -1}, "^batch_size: expected at least 1, got -1"),
        ([0, 1], 2, {"device": "cuda:99"}, "^device: expected one that torch can use here"),
    ],
)
def test_evaluation_refuses(
    labels: list[int], classes: int, options: dict[str, Any], message: str
) -> None:
    model = Fixed([[1.0, 2.0]] * 2)
    model.num_classes = 2  # type: ignore[assignment]
    with pytest.raises(ValueError, match=message) as raised:
        evaluate(model, labelled(labels, classes), **options)
    one_line(raised)


def test_evaluation_of_a_model_with_spare_classes_is_fine() -> None:
    assert evaluate(Fixed([[1.0, 2.0, 0.0]] * 2), labelled([0, 1], 2)).top1 == 50


def global_state() -> tuple[bytes, int, bool]:
    state = torch.get_rng_state().numpy().tobytes()
    return state, torch.get_num_threads(), torch.is_grad_enabled()


def test_global_state_is_as_before_training_and_evaluation(tmp_path: Path) -> None:
    """Random numbers, threads, grad mode; also after an error in the middle."""
    model = tiny_vit(drop_path_rate=0.3)
    data = shapes(32)
    before = global_state()
    with stopped_at(1, step=2):
        train(model, data, data, recipe(epochs=1), out_dir=tmp_path)
    assert global_state() == before
    train(model, data, data, recipe(epochs=1), out_dir=tmp_path)
    assert global_state() == before
    with torch.no_grad():
        evaluate(model, data)
        assert not torch.is_grad_enabled()
    with pytest.raises(Stopped):
        evaluate(Fixed([]), labelled([0], 2))
    assert global_state() == before

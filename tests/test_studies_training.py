"""The studies that train: what each run changes, and that it changes nothing else."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from small_runs import one_line

from evitlab import count_macs, create_model, load_weights, paper, save_weights
from evitlab.models.finer import finer_features
from evitlab.studies import ablations, family, resolution, transfer
from evitlab.studies.base import Budget, Conditions, Training, lab_budget

SMALL = "efficientvit_m0_p4"


def test_every_published_ablation_has_a_run() -> None:
    """Table 6 by its row, Fig. 7 by its value; the published model itself is row 1."""
    published = paper.load("ablations")
    config = create_model(ablations.PUBLISHED).config
    standard = {f"key-dim-{config.key_dim[0]}", f"value-ratio-{config.value_ratio}"}
    rows = {f"row-{row}" for row in published.row.dropna()}
    fig7 = published[published.table == "Fig. 7"]
    swept = {
        f"{name.replace('_', '-')}-{value if name == 'value_ratio' else int(value)}"
        for name, value in zip(fig7.variant, fig7.setting.astype(float), strict=True)
    }
    assert rows | (swept - standard) == set(ablations.VARIANTS) and standard <= swept


@pytest.mark.parametrize("variant", ["row-2", "row-8"])
def test_another_number_of_ffns_is_paid_for_by_the_width(variant: str) -> None:
    """Half as many FFNs, or FFNs twice as wide, at the cost of row 1."""
    changes = ablations.changes_of(variant, SMALL)
    base, changed = create_model(SMALL, img_size=32), create_model(SMALL, img_size=32, **changes)
    assert (changed.config.embed_dim > base.config.embed_dim) == (variant == "row-2")
    assert abs(count_macs(changed) / count_macs(base) - 1) < 0.03


@pytest.mark.parametrize("variant", [*ablations.VARIANTS[4:7], *ablations.VARIANTS[8:]])
def test_variants_change_what_they_say(variant: str) -> None:
    """Fields whose cost is near row 1's leave the width alone, and nothing else differs."""
    changes = ablations.changes_of(variant, SMALL)
    base, changed = create_model(SMALL).config, create_model(SMALL, **changes).config
    differing = {name for name, v in asdict(changed).items() if v != getattr(base, name)}
    assert differing == set(changes) and "embed_dim" not in changes


def test_row_7_widens_queries_and_keys_to_the_values() -> None:
    model = create_model(SMALL, **ablations.changes_of("row-7", SMALL))
    for stage in model.stages:
        attention = stage.blocks[0].mixer.m.attn
        assert attention.key_dim == attention.value_dim == attention.split_dim


@pytest.mark.parametrize("name", [name for name in family.PEERS if "_p" not in name])
def test_peers_keep_four_times_finer_features(name: str) -> None:
    """At 32 pixels they see what they see at 128: the same map before the pooling."""
    with torch.no_grad():
        ours: Any = finer_features(name, num_classes=10).eval()
        theirs: Any = timm.create_model(name, num_classes=10).eval()
        theirs.load_state_dict(ours.state_dict())
        shape = ours.forward_features(torch.zeros(1, 3, 32, 32)).shape
        assert shape == theirs.forward_features(torch.zeros(1, 3, 128, 128)).shape
    assert ours(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_networks_without_strided_convolutions_are_refused() -> None:
    with pytest.raises(ValueError) as raised:
        finer_features("vit_tiny_patch16_224")
    assert "more than 2 convolutions of stride 2, got 'vit_tiny_patch16_224'" in one_line(raised)
    with pytest.raises(ValueError, match="did you mean 'mobilenetv3_small_100'"):
        finer_features("mobilenetv3_smal_100")


def test_a_training_starts_from_weights_of_other_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = create_model(SMALL, img_size=32, num_classes=7)
    path = save_weights(source, tmp_path / "source.safetensors")
    model = Training(SMALL, weights=path).build(10)
    report = load_weights(create_model(SMALL, img_size=32, num_classes=10), path, strict=False)
    assert set(report.mismatched) == {"head.linear.weight", "head.linear.bias"}
    for name, value in model.state_dict().items():
        same = torch.equal(value, source.state_dict()[name])
        assert same != (name in report.mismatched), name
    with pytest.raises(ValueError, match="unexpected"):
        Training(SMALL, {"norm": "layer"}, weights=path).build(10)


def test_a_larger_image_resizes_the_bias_tables() -> None:
    todo = resolution.training(Conditions("smoke", device="cpu"))
    for size in resolution.SIZES:
        model = replace(todo, img_size=size).build(10)
        assert model.config.img_size == (size, size)
        assert model(torch.zeros(2, 3, size, size)).shape == (2, 10)


def test_the_lab_trains_longer_on_a_gpu() -> None:
    cpu, gpu = Budget(1), Budget(50)
    assert lab_budget(Conditions("lab", device="cpu"), cpu=cpu, gpu=gpu) is cpu
    assert lab_budget(Conditions("lab", device="cuda:0"), cpu=cpu, gpu=gpu) is gpu


def test_a_classifier_of_as_many_other_classes_is_left_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    names = tuple("abc")
    source = create_model(SMALL, img_size=32, num_classes=3)
    path = save_weights(source, tmp_path / "source.safetensors", class_names=names)
    todo = Training(SMALL, weights=path)
    for classes, kept in ((names, True), (("a", "b", "d"), False)):
        state = todo.build(3, classes).state_dict()
        same = {key for key, value in source.state_dict().items() if torch.equal(value, state[key])}
        others = state.keys() - {"head.linear.weight", "head.linear.bias"}
        assert others <= same and ("head.linear.weight" in same) == kept


def test_weights_of_other_classes_are_not_evaluated(tmp_path: Path) -> None:
    (run,) = (run for run in resolution.STUDY.runs("smoke") if run.name.startswith("before"))
    with pytest.raises(ValueError) as raised:
        run.carry_out(tmp_path, Conditions("smoke", data="embedded", device="cpu"))
    message = one_line(raised)
    assert message.startswith("data: expected the classes of efficientvit_m0_cifar10 (airplane, ")
    assert "got those of embedded shapes (" in message


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> dict[Path, Training]:
    """What is asked to be trained, by its folder; nothing is, but weights are left there."""
    asked: dict[Path, Training] = {}

    def note(todo: Training, folder: Path, conditions: Conditions) -> tuple[None, None]:
        asked[folder] = todo
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_text("weights")
        return None, None

    monkeypatch.setattr(Training, "run", note)
    return asked


@pytest.mark.parametrize("scale", ["smoke", "quick", "lab"])
def test_transfer_gives_both_starts_the_same(
    scale: str, tmp_path: Path, trainings: dict[Path, Training]
) -> None:
    """Fine-tuning and training from scratch come in pairs that differ in their weights alone."""
    runs = transfer.STUDY.runs(scale)
    for run in runs:
        run.carry_out(tmp_path / run.name, Conditions(scale, device="cpu"))
    by_name = {folder.name: todo for folder, todo in trainings.items()}
    assert by_name.keys() == {run.name for run in runs}
    source = tmp_path / "pretrained" / "model.safetensors"
    starts = [name.removeprefix("scratch-") for name in by_name if name.startswith("scratch-")]
    assert len(by_name) == 1 + 2 * len(starts)
    for start in starts:
        scratch, finetuned = by_name[f"scratch-{start}"], by_name[f"finetuned-{start}"]
        assert scratch.weights is None and finetuned == replace(scratch, weights=source)


def test_transfer_pretrains_again_where_the_weights_are_gone(
    tmp_path: Path, trainings: dict[Path, Training]
) -> None:
    """In a copy that has the record of `pretrained` and not its weights."""
    conditions = Conditions("smoke", device="cpu")
    runs = {run.name: run for run in transfer.STUDY.runs("smoke")}
    folder, weights = tmp_path / "finetuned-cifar10", tmp_path / "pretrained" / "model.safetensors"
    runs[folder.name].carry_out(folder, conditions)
    assert list(trainings) == [folder / "pretrained", folder]
    assert trainings[folder].weights == weights and weights.is_file()
    again = trainings.pop(folder / "pretrained")
    runs[folder.name].carry_out(folder, conditions)
    assert list(trainings) == [folder]  # now they are there
    runs["pretrained"].carry_out(weights.parent, conditions)
    assert trainings[weights.parent] == again


def test_transfer_refuses_one_data_set_for_all_of_the_labs(
    tmp_path: Path, trainings: dict[Path, Training]
) -> None:
    run = transfer.STUDY.runs("lab")[-1]
    with pytest.raises(ValueError, match="data: expected none at the scale lab, .* got 'embedded'"):
        run.carry_out(tmp_path, Conditions("lab", data="embedded", device="cpu"))
    assert not trainings

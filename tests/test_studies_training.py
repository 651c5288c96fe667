"""The studies that train: what each run changes, and that it changes nothing else."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

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
        ours = finer_features(name, num_classes=10).eval()
        theirs = timm.create_model(name, num_classes=10).eval()
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


@pytest.mark.parametrize("scale", ["smoke", "quick", "lab"])
def test_transfer_gives_both_starts_the_same(scale: str) -> None:
    """Fine-tuning and training from scratch come in pairs that differ in their weights alone."""
    names = {run.name for run in transfer.STUDY.runs(scale)} - {"pretrained"}
    finetuned = {name.removeprefix("finetuned-") for name in names if name.startswith("finetuned")}
    scratch = {name.removeprefix("scratch-") for name in names if name.startswith("scratch")}
    assert finetuned == scratch and len(names) == 2 * len(scratch)

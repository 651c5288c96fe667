"""Single channels cut: the score says which cut costs more, and the model is left as it was."""

from __future__ import annotations

import math

import pytest
import torch

from evitlab.analysis.channels import scaled_channel
from evitlab.analysis.cuts import measure_cuts
from evitlab.models.zoo import create_model


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = create_model("deit_t_p4", img_size=16, num_classes=4, embed_dim=12, depth=(2,))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)  # a fresh model hardly attends
    return model.train()


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(24, 3, 16, 16, generator=generator)
    return images, torch.randint(4, (24,), generator=generator)


def test_changes_are_those_of_the_loss(model, batch):
    record = measure_cuts(model, batch, blocks=[2], dataset="noise", scale="smoke")
    assert model.training
    model.eval()
    for cut in record.cuts:
        with torch.no_grad(), scaled_channel(model, cut.name, cut.component, cut.channel):
            after = torch.nn.functional.cross_entropy(model(batch[0]).double(), batch[1]).item()
        assert cut.loss_change == pytest.approx(after - record.loss, abs=1e-12)
        assert cut.block == 2
    model.train()
    assert [cut.component for cut in record.cuts] == ["q", "q", "v", "v", "ffn", "ffn"]
    assert (record.environment.dataset, record.environment.scale) == ("noise", "smoke")


def test_lowest_and_highest_scores_are_cut(model, batch):
    cuts = measure_cuts(model, batch).cuts
    assert len(cuts) == 2 * 3 * 2  # ends, components, blocks
    for low, high in zip(cuts[::2], cuts[1::2], strict=True):
        assert (low.rank, high.rank) == (0, 1) and low.score < high.score
    mean = [sum(abs(cut.loss_change) for cut in cuts[side::2]) for side in (0, 1)]
    assert mean[0] < mean[1]
    for cut in cuts:  # no score of a single batch predicts a change far from what happens
        assert abs(cut.loss_change) < 10 * math.sqrt(cut.score) + 1e-3


def test_pixels_are_normalised_as_for_the_scores(model):
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8, generator=generator)
    labels = torch.arange(8) % 4
    record = measure_cuts(model, (pixels, labels), blocks=[1], components=("ffn",))
    assert 0 < record.loss < 50 and record.images == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"components": ("qk",)}, "components: expected some of q, k, v, ffn, got 'qk'"),
        ({"blocks": [3]}, "blocks: expected 1 to 2, got 3"),
        ({"criterion": "taylr"}, "criterion: expected one of .*did you mean 'taylor'"),
    ],
)
def test_what_is_not_there_is_named(model, batch, options, message):
    with pytest.raises(ValueError, match=message):
        measure_cuts(model, batch, **options)

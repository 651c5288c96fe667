"""Learning from a teacher: losses by hand, what the teacher sees, and what it leads to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from small_runs import one_line, plain_net, recipe, shapes, tiny_vit
from torch import Tensor, nn

from evitlab import train
from evitlab.models.zoo import normalization
from evitlab.training.distillation import (
    Objective,
    Teacher,
    hard_distillation_loss,
    soft_distillation_loss,
    teacher_identity,
)

LN2, LN3 = math.log(2), math.log(3)
# The student thinks 1/4, 3/4, the teacher 1/2, 1/2: KL = ln 2 - (ln 3) / 2 nats.
STUDENT, TAUGHT = torch.tensor([[0.0, LN3]]), torch.tensor([[1.0, 1.0]])
KL = math.log(2) - LN3 / 2


class Says(nn.Module):
    """A teacher of fixed logits that keeps what it was shown."""

    def __init__(self, logits: Tensor, img_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.num_classes = logits.shape[-1]
        if img_size is not None:
            self.img_size = img_size
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training and not torch.is_grad_enabled()
        self.seen.append(x)
        return self.logits.expand(len(x), -1)


def two_classes(count: int = 4, split: str = "train") -> Any:
    return shapes(count, split, classes=2)


def objective(teacher: nn.Module | None, student: nn.Module | None = None, **changes: Any) -> Any:
    student = student or plain_net(classes=2)
    return Objective(student, recipe(**changes), teacher, two_classes(), "cpu")


def test_soft_loss_by_hand() -> None:
    assert soft_distillation_loss(STUDENT, TAUGHT).item() == pytest.approx(KL, abs=1e-6)
    assert soft_distillation_loss(TAUGHT, TAUGHT).item() == pytest.approx(0.0, abs=1e-7)
    # At temperature 1/2 the student thinks 1/10, 9/10; the loss has the factor 1/4.
    sharp = math.log(5 / 3) / 4
    assert soft_distillation_loss(STUDENT, TAUGHT, 0.5).item() == pytest.approx(sharp, abs=1e-6)


def test_soft_loss_is_a_mean_over_images() -> None:
    """Two images, of which the second agrees."""
    student, taught = torch.cat([STUDENT, TAUGHT]), torch.cat([TAUGHT, TAUGHT])
    assert soft_distillation_loss(student, taught).item() == pytest.approx(KL / 2, abs=1e-6)


def test_hard_loss_by_hand() -> None:
    """The teacher's top-1 is the first class, which the student gives 1/4."""
    taught = torch.tensor([[2.0, 1.0]])
    assert hard_distillation_loss(STUDENT, taught).item() == pytest.approx(2 * LN2, abs=1e-6)


@pytest.mark.parametrize(("kind", "loss"), [("soft", KL), ("hard", 2 * LN2)])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_labels_and_teacher_share_the_loss(kind: str, loss: float, alpha: float) -> None:
    """The label is the second class, with probability 3/4; the teacher's is the first, barely."""
    teacher = Says(torch.tensor([1.0 + 1e-6, 1.0]))
    total = objective(teacher, distillation=kind, distillation_alpha=alpha)
    inputs, targets = torch.zeros(1, 3, 32, 32), torch.tensor([[0.0, 1.0]])
    expected = (1 - alpha) * math.log(4 / 3) + alpha * loss
    assert total(STUDENT, inputs, targets).item() == pytest.approx(expected, abs=1e-5)
    assert not any(teacher.seen[-1].flatten()), "the very inputs"


def test_of_two_heads_the_second_listens_to_the_teacher() -> None:
    teacher = Says(torch.tensor([1.0, 1.0]))
    total = objective(teacher, distillation="soft", distillation_alpha=0.25)
    inputs, targets = torch.zeros(1, 3, 32, 32), torch.tensor([[0.0, 1.0]])
    heads = torch.zeros(1, 2, requires_grad=True), STUDENT.clone().requires_grad_()
    loss = total(heads, inputs, targets)
    assert loss.item() == pytest.approx(0.75 * LN2 + 0.25 * KL, abs=1e-6)
    loss.backward()
    torch.testing.assert_close(heads[0].grad, 0.75 * torch.tensor([[0.5, -0.5]]))
    torch.testing.assert_close(heads[1].grad, 0.25 * torch.tensor([[-0.25, 0.25]]))
    assert teacher.logits.grad is None


def test_two_heads_without_a_teacher_learn_as_their_mean() -> None:
    targets = torch.tensor([[0.0, 1.0]])
    heads = torch.tensor([[0.0, 2 * LN3]]), torch.zeros(1, 2)
    loss = objective(None)(heads, torch.zeros(1, 3, 32, 32), targets)
    assert loss.item() == pytest.approx(math.log(4 / 3), abs=1e-6)


def test_the_teacher_has_its_own_normalisation() -> None:
    """The same pixels, as (x - mean) / std of each."""
    model: Any = Says(torch.zeros(2))
    model.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.25, 0.2)}
    mean, std = normalization(nn.Identity())
    teacher = Teacher(
        model, num_classes=2, img_size=(32, 32), normalisation=(mean, std), device="cpu"
    )
    pixels = torch.rand(2, 3, 32, 32)

    def normalised(mean: Any, std: Any) -> Tensor:
        return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    teacher(normalised(mean, std))
    torch.testing.assert_close(
        model.seen[-1], normalised(**model.pretrained_cfg), atol=1e-5, rtol=1e-5
    )


def test_the_teacher_sees_its_own_resolution() -> None:
    """Resized as a whole: a black left and a white right half stay halves."""
    model = Says(torch.zeros(2), img_size=(64, 48))
    total = objective(model, distillation="soft")
    inputs = torch.zeros(1, 3, 32, 32)
    inputs[..., 16:] = 1.0
    total(STUDENT, inputs, torch.tensor([[0.0, 1.0]]))
    seen = model.seen[-1]
    assert seen.shape == (1, 3, 64, 48)
    torch.testing.assert_close(seen[..., :20], torch.zeros(1, 3, 64, 20), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[..., 28:], torch.ones(1, 3, 64, 20), atol=1e-5, rtol=0)


def test_timms_teacher_of_a_fixed_size_is_taken() -> None:
    """A ViT built for 16 pixels, which refuses the 32 of the data."""
    small: dict[str, Any] = dict(img_size=16, patch_size=8, embed_dim=6, depth=1, num_heads=1)
    teacher = timm.create_model("vit_tiny_patch16_224", num_classes=2, **small)
    total = objective(teacher, distillation="hard")
    loss = total(STUDENT, torch.randn(1, 3, 32, 32), torch.tensor([[0.0, 1.0]]))
    assert loss.isfinite() and not teacher.training


def test_timms_distilled_student_gives_two_answers() -> None:
    small: dict[str, Any] = dict(img_size=32, patch_size=8, embed_dim=6, depth=1, num_heads=1)
    student = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=2, **small)
    objective(Says(torch.zeros(2)), student, distillation="hard")
    assert isinstance(student.train()(torch.randn(2, 3, 32, 32)), tuple)


class Refuses(Says):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("Input height (32) doesn't match model (224).\nmore")


class Named(Says):
    class_names = ("cat", "dog")


@pytest.mark.parametrize(
    ("teacher", "kind", "message"),
    [
        (None, "soft", "teacher: expected a trained model, as the recipe's .* 'soft', got None"),
        (Says(torch.zeros(2)), "none", "teacher: expected None, as the recipe's .* 'none', got S"),
        (
            Says(torch.zeros(5)),
            "hard",
            r"teacher: expected the model's 2 classes \(shapes\), got 5",
        ),
        (plain_net(classes=7), "hard", r"teacher: expected logits of 2 classes .* got \(1, 7\)"),
        (Named(torch.zeros(2)), "soft", r"classes \(disk, square, …\), .* \(cat, dog, …\)"),
        (Refuses(torch.zeros(2)), "soft", r"32x32 pixels.*doesn't match model \(224\)\.\); build"),
    ],
    ids=["none", "unwanted", "classes", "logits", "class names", "resolution"],
)
def test_refused(teacher: nn.Module | None, kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        objective(teacher, distillation=kind)
    one_line(raised)


def test_no_model_teaches_itself() -> None:
    model = plain_net(classes=2)
    with pytest.raises(ValueError, match="teacher: expected another model"):
        objective(model, model, distillation="soft")


def distance(student: nn.Module, teacher: nn.Module, data: Any) -> float:
    """KL(teacher ‖ student) on the images of a set, at evaluation."""
    x = data.images.float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in normalization(student))
    with torch.no_grad():
        answers = [model.eval()((x - mean) / std) for model in (student, teacher)]
    return soft_distillation_loss(*answers).item()


def test_a_student_comes_near_to_its_teacher(tmp_path: Path) -> None:
    """Alpha 1: the labels, which the teacher has never seen, count for nothing."""
    teacher, student = plain_net(seed=1), plain_net(seed=2)
    data = shapes(48)
    before = distance(student, teacher, data)
    taught = {"distillation": "soft", "distillation_alpha": 1.0, "epochs": 30, "lr": 3e-2}
    record = train(
        student, data, shapes(6, "val"), recipe(**taught), out_dir=tmp_path, teacher=teacher
    )
    after = distance(student, teacher, data)
    assert before > 0.05 and after < before / 20, (before, after)
    assert record.history[-1].train_loss < record.history[0].train_loss / 5


class TwoHeads(nn.Module):
    """A pair in training, the mean in evaluation, as `EfficientViTConfig(distilled=True)`."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.head_dist = plain_net(seed=1, classes=2), plain_net(seed=2, classes=2)

    def forward(self, x: Tensor) -> Any:
        heads = self.head(x), self.head_dist(x)
        return heads if self.training else (heads[0] + heads[1]) / 2


def test_two_heads_learn_two_things(tmp_path: Path) -> None:
    """The teacher calls every image a square, which half of them are not."""
    data, teacher, student = two_classes(32), Says(torch.tensor([0.0, 9.0])), TwoHeads()
    hard = recipe(distillation="hard", epochs=30, lr=3e-2)
    train(student, data, two_classes(6, "val"), hard, out_dir=tmp_path, teacher=teacher)
    with torch.no_grad():
        labelled, distilled = student.train()(teacher.seen[-1])
    assert (distilled.softmax(1)[:, 1] > 0.9).all()
    assert labelled.softmax(1)[:, 1].mean() < 0.7


def test_the_teacher_belongs_to_the_run(tmp_path: Path) -> None:
    """The same command resumes; another teacher, none, or other weights are another run."""
    data, val, soft = shapes(32), shapes(6, "val"), recipe(distillation="soft")
    first = train(plain_net(), data, val, soft, out_dir=tmp_path, teacher=plain_net(seed=1))
    assert first.teacher == teacher_identity(plain_net(seed=1)) != teacher_identity(plain_net())
    again = train(plain_net(), data, val, soft, out_dir=tmp_path, teacher=plain_net(seed=1))
    assert again == first
    with pytest.raises(ValueError, match=r"different run \(teacher Sequential \w+ there, Seq"):
        train(plain_net(), data, val, soft, out_dir=tmp_path, teacher=plain_net(seed=2))
    (tmp_path / "record.json").unlink()  # as if killed after the last epoch
    with pytest.raises(ValueError, match=r"different run \(teacher Sequential \w+ there, Seq"):
        train(plain_net(), data, val, soft, out_dir=tmp_path, teacher=plain_net(seed=2))
    with pytest.raises(ValueError, match=r"different run \(.*distillation soft there, none asked"):
        train(plain_net(), data, val, recipe(), out_dir=tmp_path)


def test_identity_is_of_the_weights() -> None:
    model = tiny_vit(num_classes=2)
    name, fingerprint = str(teacher_identity(model)).split()
    assert name == "efficientvit_m0_p4" and len(fingerprint) == 12
    assert teacher_identity(tiny_vit(num_classes=2)) == f"{name} {fingerprint}"
    with torch.no_grad():
        model.head.linear.bias[0] += 1e-3
    assert teacher_identity(model) != f"{name} {fingerprint}"
    assert teacher_identity(None) is None

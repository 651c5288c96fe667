"""The loss of a training step: the labels', and where there is a teacher, the teacher's.

Shape legend: B images of a batch, H x W pixels, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evitlab.datasets import AnyDataset
from evitlab.models.zoo import model_name, normalization, stated_img_size
from evitlab.training.recipe import Recipe


def soft_distillation_loss(logits: Tensor, teacher_logits: Tensor, tau: float = 1.0) -> Tensor:
    """tau² KL(teacher ‖ student) at temperature tau, mean over the images.

    Args:
        logits: the student's, [B, K].
        teacher_logits: [B, K].
        tau: both are divided by it; its square keeps the gradient's size.

    Pitfall: the official code divides by B K instead of B, so that its soft loss, and the share
    that its alpha stands for, is K times smaller.
    """
    student, teacher = (F.log_softmax(x.float() / tau, 1) for x in (logits, teacher_logits))
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * tau**2


def hard_distillation_loss(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy with the teacher's top-1 as the label, mean over the images; both [B, K]."""
    return F.cross_entropy(logits.float(), teacher_logits.argmax(1))


class Objective:
    """What a training step minimises, as a function of the model's outputs.

    Without distillation the cross-entropy with the targets. With it (1 - alpha) of that and alpha
    of the teacher's loss: a model with two heads learns from the labels with the first and from
    the teacher with the second, one with a single head learns both with it. Two heads without a
    teacher learn from the labels as what they are in evaluation, their mean.

    Args:
        model: the student; its normalisation is that of the inputs.
        recipe: its distillation fields are read.
        teacher: see `Teacher`; None without distillation.
        data: what is trained on; its size and classes are the student's.
        device: where the student trains.

    Raises:
        ValueError: distillation without a teacher or the reverse, or a teacher that does not fit
            the data.

    Paper: Table 7 (alpha 0.5, tau 1, two heads), with DeiT's losses.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        teacher: nn.Module | None,
        data: AnyDataset,
        device: str | torch.device,
    ) -> None:
        check_teacher(model, recipe, teacher, data)
        self.kind: Literal["none", "soft", "hard"] = recipe.distillation
        self.alpha, self.tau = recipe.distillation_alpha, recipe.distillation_tau
        self.teacher: Teacher | None = None
        if teacher is not None:
            self.teacher = Teacher(
                teacher,
                num_classes=getattr(model, "num_classes", data.num_classes),
                img_size=data.img_size,
                normalisation=normalization(model),
                device=device,
            )
            if hasattr(model, "set_distilled_training"):  # timm's, which else gives the mean
                model.set_distilled_training(True)  # type: ignore[operator]

    def __call__(
        self, outputs: Tensor | tuple[Tensor, Tensor], inputs: Tensor, targets: Tensor
    ) -> Tensor:
        """The loss of a batch.

        Args:
            outputs: logits [B, K], or those of two heads.
            inputs: what the model saw, [B, 3, H, W], normalised for it.
            targets: shares [B, K] whose rows sum to 1.

        Returns:
            Mean over the images, a scalar.
        """
        if self.teacher is None:
            logits = outputs if isinstance(outputs, Tensor) else (outputs[0] + outputs[1]) / 2
            return F.cross_entropy(logits, targets)
        logits, distilled = (outputs, outputs) if isinstance(outputs, Tensor) else outputs
        taught = self.teacher(inputs)
        if self.kind == "soft":
            loss = soft_distillation_loss(distilled, taught, self.tau)
        else:
            loss = hard_distillation_loss(distilled, taught)
        return (1 - self.alpha) * F.cross_entropy(logits, targets) + self.alpha * loss


class Teacher:
    """A trained classifier that judges the student's inputs: evaluation mode, no gradients.

    It gets the very images that the student sees, augmented and mixed, but normalised as it
    expects, and resized where it says that it was built for another resolution.

    Args:
        model: its classes are the student's; moved to `device`, put in evaluation mode.
        num_classes: K, the student's.
        img_size: (height, width) of the student's inputs.
        normalisation: theirs, per channel mean and standard deviation.
        device: where it runs.

    Raises:
        ValueError: it does not take images of its size, or gives another number of logits.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        num_classes: int,
        img_size: tuple[int, int],
        normalisation: tuple[Sequence[float], Sequence[float]],
        device: str | torch.device,
    ) -> None:
        self.model = model.to(device).to(memory_format=torch.channels_last).eval()
        self.img_size = stated_img_size(model) or img_size
        mean, std = (torch.tensor(values) for values in normalisation)
        own_mean, own_std = (torch.tensor(values) for values in normalization(model))
        # (x std + mean - own mean) / own std, as one product and one sum
        self._scale = (std / own_std)[:, None, None].to(device)
        self._shift = ((mean - own_mean) / own_std)[:, None, None].to(device)
        self._renormalise = not (torch.equal(mean, own_mean) and torch.equal(std, own_std))
        self._probe(torch.zeros(1, 3, *img_size, device=device), num_classes)

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits [B, K] of inputs [B, 3, H, W] that are normalised for the student."""
        if self._renormalise:
            inputs = torch.addcmul(self._shift, inputs, self._scale)
        if inputs.shape[2:] != self.img_size:
            inputs = F.interpolate(inputs, size=self.img_size, mode="bicubic", antialias=True)
        logits: Tensor = self.model(inputs.contiguous(memory_format=torch.channels_last))
        return logits

    def _probe(self, image: Tensor, num_classes: int) -> None:
        """Judge one grey image: what does not fit is said before the first step."""
        name, (height, width) = model_name(self.model), self.img_size
        try:
            logits: Any = self(image)
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"teacher: expected {name} to take images of {height}x{width} pixels, the size "
                f"it was built for or else the data's, got an error ({reason}); build it with "
                "img_size=N, or train the student at the teacher's size (--img-size)"
            ) from error
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if found != (1, num_classes):
            raise ValueError(
                f"teacher: expected logits of {num_classes} classes from {name}, got {found} for "
                "one image; train the teacher on these classes first"
            )


def check_teacher(
    model: nn.Module, recipe: Recipe, teacher: nn.Module | None, data: AnyDataset
) -> None:
    """Raise a ValueError where teacher, recipe and data do not belong together."""
    if (recipe.distillation == "none") != (teacher is None):
        expected = "None" if teacher is not None else "a trained model"
        got = "None" if teacher is None else model_name(teacher)
        raise ValueError(
            f"teacher: expected {expected}, as the recipe's distillation is "
            f"{recipe.distillation!r}, got {got}"
        )
    if teacher is None:
        return
    if teacher is model:
        raise ValueError("teacher: expected another model than the one that is trained")
    classes = getattr(model, "num_classes", data.num_classes)
    count = getattr(teacher, "num_classes", classes)
    if count != classes:
        raise ValueError(
            f"teacher: expected the model's {classes} classes ({data.title}), got {count} of "
            f"{model_name(teacher)}; train the teacher on these classes first"
        )
    names = tuple(getattr(teacher, "class_names", ()))
    if names and names != data.class_names:
        raise ValueError(
            f"teacher: expected the data's classes ({', '.join(data.class_names[:3])}, …), got "
            f"those of {model_name(teacher)} ({', '.join(names[:3])}, …)"
        )


def teacher_identity(teacher: nn.Module | None) -> str | None:
    """Name and a fingerprint of the weights: another teacher makes another run."""
    if teacher is None:
        return None
    digest = hashlib.sha256()
    for key, value in teacher.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return f"{model_name(teacher)} {digest.hexdigest()[:12]}"

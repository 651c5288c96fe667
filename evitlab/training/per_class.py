"""What a classifier gets right and wrong, class by class.

Shape legend: N images, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evitlab.datasets import AnyDataset
from evitlab.models.zoo import model_name
from evitlab.records import ClassificationReport, ClassResult, ConfusedPair
from evitlab.training.evaluation import Predictions, accuracy_of, predict

_MOST_PAIRS = 20


def classification_report(
    model: nn.Module,
    data: AnyDataset,
    *,
    batch_size: int = 256,
    device: str | torch.device | None = None,
) -> ClassificationReport:
    """Confusion matrix and accuracy of each class.

    Args:
        model: of exactly the data's classes; run in evaluation mode, its own mode comes back.
        data: labelled images.
        batch_size: images per forward pass.
        device: None runs where the model's parameters are.

    Raises:
        ValueError: see `evaluate`; or the model has other classes than the data, by number, or by
            name where it carries names.
    """
    check_classes(model, data)
    predictions = predict(model, data, batch_size=batch_size, device=device)
    return report_of(predictions, model=model_name(model), split=data.split)


def report_of(predictions: Predictions, *, model: str, split: str) -> ClassificationReport:
    """The report that predictions come to; nothing is run.

    Args:
        predictions: of labelled images, by a model of as many classes as they name.
        model: its name.
        split: what the images are of their set.

    Raises:
        ValueError: the images have no labels, or a predicted class has no name.
    """
    accuracy = accuracy_of(predictions)
    assert predictions.labels is not None, "accuracy_of has refused these"
    names = predictions.class_names
    matrix = confusion_matrix(predictions.labels, predictions.ranked[:, 0], len(names))
    right, images, taken = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    return ClassificationReport(
        model=model,
        dataset=predictions.environment.dataset or "",
        split=split,
        n=len(predictions),
        accuracy=accuracy,
        classes=tuple(
            ClassResult(
                name=name,
                n=int(images[k]),
                predicted=int(taken[k]),
                accuracy=_percent(right[k], images[k]),
                precision=_percent(right[k], taken[k]),
            )
            for k, name in enumerate(names)
        ),
        confused=_confused(matrix, names),
        confusion=tuple(tuple(row) for row in matrix.tolist()),
        environment=predictions.environment,
    )


def confusion_matrix(labels: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """int64 [K, K]: images by true class (rows) and predicted class (columns).

    Args:
        labels: int64 [N], the true classes.
        predicted: int64 [N], the model's.
        num_classes: K.

    Raises:
        ValueError: a class outside 0..K - 1, which would count in another's cell.
    """
    for name, classes in (("labels", labels), ("predicted", predicted)):
        least, most = (int(bound) for bound in classes.aminmax())
        if least < 0 or most >= num_classes:
            wrong = least if least < 0 else most
            raise ValueError(
                f"{name}: expected classes 0..{num_classes - 1}, as many as have names, got {wrong}"
            )
    cells = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return cells.view(num_classes, num_classes)


def check_classes(model: nn.Module, data: AnyDataset) -> None:
    """Raise a ValueError where a model and data do not have the same classes, in the same order."""
    named = tuple(getattr(model, "class_names", None) or ())
    count = getattr(model, "num_classes", len(named) or data.num_classes)
    if count == data.num_classes and named in ((), tuple(data.class_names)):
        return
    got = f"{data.num_classes} ({', '.join(data.class_names[:3])}, …)"
    if not named:
        raise ValueError(
            f"data: expected the {count} classes of the model, which carries no names, got {got}"
        )
    raise ValueError(
        f"data: expected the model's {count} classes ({', '.join(named[:3])}, …), got {got}; "
        "match_classes brings data to a model's classes"
    )


def _confused(matrix: Tensor, names: tuple[str, ...]) -> tuple[ConfusedPair, ...]:
    """The commonest mistakes, most images first; of as many, the rarer class's first."""
    wrong = [
        (-count, int(matrix[i].sum()), i, j)
        for i, j in torch.nonzero(matrix).tolist()
        if i != j
        for count in (int(matrix[i, j]),)
    ]
    return tuple(
        ConfusedPair(true=names[i], predicted=names[j], count=-less, share=-100 * less / images)
        for less, images, i, j in sorted(wrong)[:_MOST_PAIRS]
    )


def _percent(part: Tensor, whole: Tensor) -> float | None:
    return 100 * int(part) / int(whole) if int(whole) else None

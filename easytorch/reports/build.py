"""The report that belongs to a loss."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from easytorch._utils.integers import positive_int
from easytorch._utils.pytree import describe
from easytorch.data.batch import from_numpy
from easytorch.data.class_names import ClassNames, is_text, names_of
from easytorch.losses import keras
from easytorch.losses.criterion import Criterion
from easytorch.losses.module_loss import ModuleLoss
from easytorch.losses.multi_output_loss import MultiOutputLoss
from easytorch.losses.resolve import resolve_loss
from easytorch.losses.single_loss import SingleLoss
from easytorch.reports.finite import check_finite
from easytorch.reports.inference import infer_loss

if TYPE_CHECKING:
    from easytorch.reports.base import Array, Report

# Losses whose outputs are estimates of the targets.
NUMBER_LOSSES = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)
VALUES = 4_000_000  # outputs whose losses are computed at a time
ROUNDING = 0.05  # how far from 1 a sum of probabilities may be, for those of 16 bits


def make_report(
    outputs: Any,
    y: Any,
    loss: Any = "cross_entropy",
    *,
    class_names: Any = None,
    output: str | None = None,
    threshold: float | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Report:
    """Return the report on ``outputs``, which ``predict`` returned, for the targets ``y``.

    Args:
        outputs: Outputs of the module, not probabilities: ``[N, classes]`` or ``[N, ...]``; also an array of a file. For a class
            of each position, such as a pixel or a token, ``[N, classes, ...]``.
        y: The targets, as the loss takes them; or the name of each class as text, with ``class_names``.
        loss: The loss, as in ``compile``. It decides the kind of the report.
        class_names: The name of each class, label or output.
        output: The output to report on, if there are several losses.
        threshold: For binary labels, the probability above which a label is 1; None for 0.5.
        bootstrap: Repeats of the bootstrap, which gives intervals of what is no share; 0 for none.
        seed: Seed of the bootstrap.

    Raises:
        ImportError: If scikit-learn is not installed.
        ValueError: If there is no report for this loss or these shapes.

    Examples:
        >>> outputs = model.predict(x, to="outputs.npy")
        >>> print(easytorch.reports.make_report(outputs, y, "cross_entropy", class_names=["cat", "dog", "bird"]))
    """
    try:
        from easytorch.reports.intervals import Bootstrap
    except ImportError as error:
        raise ImportError("A report needs scikit-learn: pip install scikit-learn") from error
    criterion = loss if isinstance(loss, Criterion) else resolve_loss(loss)
    if is_text(y):
        y = _encode_text(y, class_names, output)
    if isinstance(criterion, MultiOutputLoss):
        criterion, outputs, y, class_names = _select(criterion, outputs, y, class_names, output)
    if isinstance(criterion, ModuleLoss):
        criterion, outputs, y = infer_loss(criterion, outputs, y)
    if not isinstance(criterion, SingleLoss) or (criterion.kind is None and not _compares_numbers(criterion)):
        raise ValueError(
            f"There is no report for the loss {criterion!r}. Reports are for classes, labels and numbers: 'cross_entropy', "
            "'bce_with_logits', 'mse'."
        )
    criterion = copy.deepcopy(criterion)
    criterion.to(torch.device("cpu"))
    if isinstance(outputs, Mapping):  # the logits of transformers, or the only entry
        found = criterion.compared_prediction({key: _to_tensor(value) for key, value in outputs.items()}, None)
        outputs = found if isinstance(found, Tensor) else outputs
    repeats = positive_int("bootstrap", bootstrap) if bootstrap else 0
    prediction, targets = _as_tensors(criterion, outputs, y)
    if criterion.kind == "multiclass":
        _check_labels(criterion, prediction, targets)
    _check_values(criterion, prediction, targets)
    losses = sample_losses(criterion, prediction, targets)
    options: dict[str, Any] = {"losses": losses, "bootstrap": Bootstrap(repeats, seed)}
    return _build(criterion, prediction, targets, names_of(class_names, None), threshold, options)


def _build(
    loss: SingleLoss,
    y_pred: Tensor,
    y: Tensor,
    names: list[str] | None,
    threshold: float | None,
    options: dict[str, Any],
) -> Report:
    """Return the report for the kind of ``loss``."""
    if loss.kind is None:
        from easytorch.reports.regression import RegressionReport

        if threshold is not None:
            raise ValueError(f"threshold has no effect on the loss, {loss!r}. Leave it out.")
        check_finite("outputs", y_pred.isfinite())
        return RegressionReport(y.double().numpy(), y_pred.double().numpy(), names=names, **options)
    if threshold is not None:
        loss.classes(y_pred[:1], threshold)  # raises the error of predict_classes
    if y_pred.ndim > 2 and y_pred[0].numel() > 1:
        return _report_on_positions(loss, y_pred, y, names, threshold, options)
    probabilities = loss.probabilities(y_pred.double()).numpy()
    if loss.kind == "multiclass":
        return _report_on_classes(probabilities, y, loss.ignore_index, names, options)
    return _report_on_labels(probabilities, y, names, 0.5 if threshold is None else threshold, options)


def _report_on_classes(
    probabilities: Array, y: Tensor, ignore_index: int, names: list[str] | None, options: dict[str, Any]
) -> Report:
    """Return the report on all samples whose label counts."""
    from easytorch.reports.classification import ClassificationReport

    labels = y.argmax(1) if y.is_floating_point() else y
    counted = (labels != ignore_index).numpy()
    if not counted.any():
        raise ValueError(
            f"A report needs at least one label, but all {len(labels)} labels are {ignore_index}, which the loss ignores. "
            "Pass samples with labels of classes."
        )
    check_finite("outputs", torch.from_numpy(~np.isnan(probabilities)) | ~torch.from_numpy(counted)[:, None])
    _check_names(names, probabilities.shape[1], "class")
    options |= {"losses": options["losses"][counted], "indices": np.flatnonzero(counted)}
    report = ClassificationReport(labels.numpy()[counted], probabilities[counted], names=names, **options)
    report.count = len(labels)
    return report


def _report_on_positions(
    loss: SingleLoss,
    y_pred: Tensor,
    y: Tensor,
    names: list[str] | None,
    threshold: float | None,
    options: dict[str, Any],
) -> Report:
    """Return the report on one class for each position of a sample."""
    from easytorch.reports.positions import PositionReport, read_positions

    is_binary = loss.kind == "binary"
    ignore_index = None if is_binary else loss.ignore_index
    if is_binary:
        if y_pred.shape[1] != 1:
            shape = list(y_pred.shape)
            raise ValueError(
                f"A report on labels needs outputs [samples, labels], or [samples, 1, ...] with one label for each position; "
                f"received {shape}. Pass one label at a time to easytorch.reports.make_report: outputs[:, i:i + 1] and "
                "y[:, i:i + 1]; or outputs[:, None] and y[:, None] if there is no dimension of labels."
            )
        _check_two_classes(y)
        y, threshold = y[:, 0].long(), 0.5 if threshold is None else threshold
    y = y.argmax(1) if y.is_floating_point() else y
    classes = 2 if is_binary else y_pred.shape[1]
    _check_names(names, classes, "class")
    positions = read_positions(
        y, y_pred, probabilities=loss.probabilities, ignore_index=ignore_index, threshold=threshold
    )
    if options["losses"] is not None:
        options |= {"losses": options["losses"][np.unique(positions.sample)]}
    report = PositionReport(
        positions, shape=tuple(y.shape[1:]), classes=classes, names=names, threshold=threshold, **options
    )
    report.count = len(y)
    return report


def _check_two_classes(y: Tensor) -> None:
    if not bool(((y == 0) | (y == 1)).all()):
        raise ValueError(
            f"A report on two classes needs targets of 0 and 1, received {y.min().item():.4g} to {y.max().item():.4g}. Convert "
            "the targets, for example y = (y > 0).float()."
        )


def _report_on_labels(
    probabilities: Array, y: Tensor, names: list[str] | None, threshold: float, options: dict[str, Any]
) -> Report:
    """Return the report on two classes for one output, otherwise on independent labels."""
    from easytorch.reports.classification import ClassificationReport, MultilabelReport

    check_finite("outputs", torch.from_numpy(~np.isnan(probabilities)))
    if probabilities.size == len(probabilities):
        both = np.stack([1 - probabilities.ravel(), probabilities.ravel()], axis=1)
        labels = y.reshape(-1)
        _check_two_classes(labels)
        _check_names(names, 2, "class")
        return ClassificationReport(labels.long().numpy(), both, names=names, threshold=threshold, **options)
    _check_names(names, probabilities.shape[1], "label")
    return MultilabelReport(y.numpy(), probabilities, names=names, threshold=threshold, **options)


def _compares_numbers(loss: SingleLoss) -> bool:
    """Return whether outputs and targets are the same quantity; those of a Poisson or a hinge loss are not."""
    if loss.is_keras:
        return loss.function not in (keras.kl_divergence, keras.hinge, keras.squared_hinge)
    return loss.family in NUMBER_LOSSES


def _check_values(loss: SingleLoss, y_pred: Tensor, y: Tensor) -> None:
    """Raise a ``ValueError`` for targets that are not finite, and for outputs that are no probabilities."""
    if y.is_floating_point():
        check_finite("targets", y.isfinite())
    if loss.family is nn.BCELoss:
        check_finite("outputs", y_pred.isfinite())
        if float(y_pred.min()) < 0 or float(y_pred.max()) > 1:
            raise ValueError(
                f"The loss, {loss!r}, expects probabilities from 0 to 1, but the outputs go from {float(y_pred.min()):.3g} to "
                f"{float(y_pred.max()):.3g}. For logits, pass 'bce_with_logits'."
            )
    if loss.family is nn.NLLLoss:
        _check_log_probabilities(loss, y_pred)


def _check_log_probabilities(loss: SingleLoss, y_pred: Tensor) -> None:
    step = max(1, VALUES // max(1, y_pred[0].numel()))
    for start in range(0, len(y_pred), step):
        sums = y_pred[start : start + step].float().exp().sum(1)
        wrong = ((sums - 1).abs() > ROUNDING).nonzero()  # NaN is another error
        if len(wrong):
            raise ValueError(
                f"The loss, {loss!r}, expects logarithms of probabilities, but the probabilities of the sample with index "
                f"{start + int(wrong[0, 0])} sum to {float(sums[tuple(wrong[0])]):.3g}. For logits, pass 'cross_entropy'."
            )


def _check_names(names: list[str] | None, count: int, what: str) -> None:
    """Raise a ``ValueError`` unless there is one name for each class or label."""
    if names is not None and len(names) != count:
        raise ValueError(
            f"class_names expects {count} names, one for each {what}, received {len(names)}: {names}. Pass them in the order of "
            "the outputs."
        )


def _encode_text(y: Any, class_names: Any, output: str | None) -> Any:
    """Return the class number of each label."""
    if class_names is None:
        raise ValueError(
            "The labels are text. Pass class_names=[...], with the name of each class in the order of the outputs."
        )
    return ClassNames(names_of(class_names, output)).encode(None, y)[1]


def _as_tensors(loss: SingleLoss, outputs: Any, y: Any) -> tuple[Tensor, Tensor]:
    prediction = loss.compared_prediction(_to_tensor(outputs), None)
    targets = _to_tensor(y)
    if not isinstance(prediction, Tensor) or not isinstance(targets, Tensor):
        raise ValueError(
            f"A report compares one array of outputs with one of targets, received {describe(prediction)} and "
            f"{describe(targets)}. With several losses, pass output='name'."
        )
    if not len(targets):
        raise ValueError("A report needs at least one sample, received none. Pass data that is not empty.")
    if len(prediction) != len(targets):
        raise ValueError(
            f"Expected one target for each of {len(prediction)} outputs, received {len(targets)}. Pass outputs and targets of "
            "the same samples."
        )
    return prediction, loss.convert_targets(prediction, targets)


def _check_labels(loss: SingleLoss, y_pred: Tensor, y: Tensor) -> None:
    """Raise a ``ValueError`` unless ``y`` has one label of a class for each sample."""
    labels = y.argmax(1) if y.is_floating_point() else y
    if y_pred.ndim < 2 or labels.shape != (len(y_pred), *y_pred.shape[2:]):
        raise ValueError(
            f"A report needs outputs [samples, classes, ...] and labels [samples, ...], received outputs {list(y_pred.shape)} "
            f"and targets {list(y.shape)}. Select the parts of the outputs to report on, and pass them to "
            "easytorch.reports.make_report."
        )
    counted, classes = labels[labels != loss.ignore_index], y_pred.shape[1]
    if len(counted) and not 0 <= int(counted.min()) <= int(counted.max()) < classes:
        raise ValueError(
            f"The labels are {int(counted.min())} to {int(counted.max())}, but there are {classes} classes. Expected labels from "
            f"0 to {classes - 1}: number the classes from 0, or give the module more outputs."
        )


def _to_tensor(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    is_array = isinstance(value, np.ndarray) or hasattr(value, "__array__") or _is_nested_numbers(value)
    return from_numpy(np.asarray(value)) if is_array else value


def _is_nested_numbers(value: Any) -> bool:
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return isinstance(value, (int, float, np.number))


def sample_losses(loss: SingleLoss, y_pred: Tensor, y: Tensor) -> np.ndarray[Any, Any] | None:
    """Return the loss of each sample, the mean over its values or its labels that count."""
    parts, step = [], max(1, VALUES // max(1, y_pred[0].numel()))
    with torch.no_grad():
        for start in range(0, len(y), step):
            labels = y[start : start + step]
            values = loss.unreduced(y_pred[start : start + step], labels)
            values = values.reshape(len(values), -1)
            counted = torch.ones_like(values)
            if loss.kind == "multiclass" and not labels.is_floating_point():
                counted = (labels != loss.ignore_index).reshape(values.shape).to(values.dtype)
            parts.append((values * counted).sum(1) / counted.sum(1).clamp(min=1))
    return torch.cat(parts).double().numpy() if parts else np.zeros(0)


def _select(
    loss: MultiOutputLoss, outputs: Any, y: Any, class_names: Any, output: str | None
) -> tuple[Any, Any, Any, Any]:
    if output not in loss.losses:
        names: Sequence[str] = list(loss.losses)
        raise ValueError(f"There are several losses. Pass output=, one of {names}, received {output!r}.")
    name = str(output)
    return (
        loss.losses[name],
        loss.by_output(outputs, "outputs")[name],
        loss.by_output(y, "targets")[name],
        names_of(class_names, name),
    )

"""Checks of a model and its data before training, which leave no trace."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from easytorch._utils.registry import did_you_mean, quote_list
from easytorch._utils.warnings import collected_warnings

# The import of a module registers its checks. This is the order of the findings: causes come before their effects.
# isort: off
from easytorch.checks import inputs, labels, order, layers, outputs, gradients, learning, cost

# isort: on
from easytorch.checks.base import CHECKS, Check, Finding, error, info, warning
from easytorch.checks.panels import make_panels
from easytorch.checks.probe import Probe, run_model
from easytorch.checks.report import CheckReport
from easytorch.checks.samples import Samples, read_samples
from easytorch.data.arrays import column_names, keep_column_order
from easytorch.data.batch import is_single_pass
from easytorch.data.class_names import ClassNames
from easytorch.data.data_sets import as_data_sets, by_name
from easytorch.data.loader import as_loader, make_fit_data
from easytorch.training.evaluation import TARGET_METHODS, known_targets
from easytorch.training.trial import single_pass_message, trial

if TYPE_CHECKING:
    from easytorch.model import Model

MODULES = (inputs, labels, order, layers, outputs, gradients, learning, cost)

__all__ = ["CheckReport", "Finding", "Probe", "Samples", "error", "info", "warning"]

# Seconds for the measurement of the time that data takes.
DATA_SECONDS = 0.4


def __dir__() -> list[str]:
    return __all__


def check_model(
    model: Model,
    x: Any,
    y: Any,
    *,
    validation_data: Any,
    ignore: Collection[str],
    checks: Iterable[Check],
    **arguments: Any,
) -> CheckReport:
    """Return the report of ``Model.check``; ``arguments`` are further arguments of ``fit``."""
    model.require_optimizer("check")
    _refuse_ranks(model)
    functions = _select([*CHECKS, *checks], ignore)
    names = ClassNames(model.class_names)
    x, y = names.learn(keep_column_order(x, model.columns), y)
    validation_data = names.encode_validation(
        as_data_sets(validation_data, "validation_data", model.signature.names, x)
    )
    model.loss.check_text_labels(names.found)
    if is_single_pass(x):
        raise ValueError(single_pass_message("check()", "x", "fit()"))
    with trial(model, x, *by_name(validation_data).values(), purpose="check()"), collected_warnings() as messages:
        model.class_names, model.columns = names.names, column_names(x)
        probe = _measure(model, x, y, validation_data, names.number_keys(arguments.pop("class_weight")), **arguments)
        probe.messages = messages
    findings = [finding for function in functions for finding in _run(function, probe)]
    count = f"{probe.samples:,} samples" if probe.samples else "a batch"
    return CheckReport(findings, f"Check of {type(model.module).__name__} on {count}", make_panels(probe))


def _measure(
    model: Model,
    x: Any,
    y: Any,
    validation_data: Any,
    class_weight: Any,
    *,
    batch_size: int | None,
    sample_weight: Any,
    **arguments: Any,
) -> Probe:
    """Return everything that the checks look at; of data that ``fit`` refuses, for values that are not finite, samples alone."""
    read = functools.partial(_read, model)
    try:
        train_data, val_data = make_fit_data(
            x, y, batch_size=batch_size, sample_weight=sample_weight, class_weight=class_weight,
            validation_data=validation_data, validation_steps=None, epochs=1, window_size=model.gradient_accumulation_steps,
            group=model.strategy.group, unpack=model.unpack, count_samples=model.batch_size,
            ignore_index=model.loss.ignore_index, **arguments,
        )  # fmt: skip
    except ValueError:
        probe = Probe(model, read(as_loader(x, y, sample_weight, batch_size=batch_size), column_names(x)), {})
        probe.validation = {name: read(as_loader(data)) for name, data in by_name(validation_data).items()}
        if not any(inputs.non_finite_data(probe)):
            raise
        return probe
    try:
        train = read(train_data.loader, column_names(x))
        train.is_weighted |= class_weight is not None
        validation = {name: read(loader) for name, loader in by_name(val_data).items()}
        probe = Probe(model, train, validation, samples=train.count)
        model.loss.prepare(known_targets(model, train_data.loader), model.class_names)
        run_model(probe, train_data, DATA_SECONDS)
    finally:
        train_data.close()
    return probe


def _read(model: Model, loader: Any, columns: list[Any] | None = None) -> Samples:
    """Return samples of ``loader``; none if only a custom step can read its batches."""
    knows_targets = not any(map(model.overrides, TARGET_METHODS))
    try:
        return read_samples(loader, model.unpack, columns, knows_targets)
    except Exception:  # the training step reads the same batches, and its error is a finding
        return Samples({}, {}, {})


def _select(functions: list[Check], ignore: Collection[str]) -> list[Check]:
    """Return the checks that are not in ``ignore``.

    Raises:
        ValueError: If a name is unknown.
        TypeError: If a check is no function.
    """
    other = next((check for check in functions if not callable(check) or not hasattr(check, "__name__")), None)
    if other is not None:
        raise TypeError(
            f"checks expects functions of a Probe that return a list of findings, received {other!r}. To leave out a check of "
            "easytorch, pass its name: check(x, y, ignore=['name'])."
        )
    ignore = [ignore] if isinstance(ignore, str) else list(ignore)
    known = {function.__name__: function for function in functions}
    for name in ignore:
        if name not in known:
            fix = did_you_mean(name, known) or f" Pass names of {quote_list(known)}."
            raise ValueError(f"ignore names no check: {name!r}.{fix}")
    return [function for name, function in known.items() if name not in ignore]


def _run(function: Check, probe: Probe) -> list[Finding]:
    """Return the findings of a check, with its name; an error in it, as one of odd data, must not hide the others."""
    name = function.__name__
    try:
        return [dataclasses.replace(finding, name=name) for finding in function(probe)]
    except Exception as caught:
        text = f"The check {name!r} could not run: {type(caught).__name__}: {caught}"
        return [dataclasses.replace(info(text), name=name)]


def _refuse_ranks(model: Model) -> None:
    """Raise a ``RuntimeError`` if several processes train together."""
    if model.strategy.group.world_size > 1:
        raise RuntimeError(
            "check() runs in one process, and this model trains in several. Call it before launch(), or in a script without "
            "torchrun, on a model with strategy='one'."
        )

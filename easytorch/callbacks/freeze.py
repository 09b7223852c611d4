"""Freezing of layers for fine-tuning."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from easytorch._utils.integers import optional_positive_int
from easytorch._utils.patterns import matches
from easytorch._utils.registry import did_you_mean
from easytorch.callbacks.base import Callback
from easytorch.optimizer_group import first_group


class Freeze(Callback):
    """Freeze layers by name, and train them from an epoch on.

    Frozen parameters get no gradient and do not change. Frozen layers with running statistics, such as BatchNorm, are in eval
    mode, since they would update the statistics in train mode. At the end of ``fit`` everything is as it was before: without the
    callback, the next ``fit`` trains all layers.

    Parameters that the optimizer lacks, because they were frozen when it was created, are added to its first group. If each
    part of the module has an optimizer, the one that ``compile`` named for the parameter gets it.

    Args:
        *patterns: Names of layers or parameters, as in ``module.named_modules()`` and ``module.named_parameters()``. ``*``,
            ``?`` and ``[...]`` match as in file names. The name of a layer stands for all that is inside.
        until: Epoch, counted from 0 and over all fits, from which the layers are trained; None (default) freezes them in the
            whole fit. ``until=3`` freezes them for the first three epochs.

    Raises:
        ValueError: If no pattern is passed, or ``until`` is not a positive integer. In ``fit``: if a pattern matches nothing,
            if two callbacks freeze the same parameter, if nothing remains to be trained, or if LBFGS has trained already and
            lacks parameters.

    Examples:
        >>> model.fit(loader, 10, callbacks=[Freeze("backbone", until=3)])  # the new head alone, then all

        Gradual unfreezing from the top, as in ULMFiT (Howard and Ruder, 2018):

        >>> stages = [Freeze("layer4", until=1), Freeze("layer3", until=2), Freeze("conv1", "bn1", "layer[12]", until=3)]
        >>> model.fit(loader, 10, callbacks=stages)  # doctest: +SKIP
    """

    def __init__(self, *patterns: str, until: int | None = None) -> None:
        if not patterns or not all(isinstance(pattern, str) and pattern for pattern in patterns):
            raise ValueError(f"Freeze() needs names of layers, received {patterns!r}. Use Freeze('backbone').")
        self.patterns = patterns
        self.until = optional_positive_int("until", until)
        # What was trained before the fit. By name, since a strategy may replace the parameters.
        self._required_grad = dict[str, bool]()
        self._was_training = dict[str, bool]()

    def __repr__(self) -> str:
        until = "" if self.until is None else f", until={self.until}"
        return f"Freeze({', '.join(map(repr, self.patterns))}{until})"

    def on_train_begin(self, logs: Any = None) -> None:
        """Find the layers, and freeze them."""
        self._check_patterns()
        self._required_grad = {name: parameter.requires_grad for name, parameter in self._parameters().items()}
        self._was_training = {name: layer.training for name, layer in self._layers_with_statistics().items()}
        self._add_to_optimizer()
        self.on_epoch_begin(self.model.state.epoch)
        if not any(parameter.requires_grad for parameter in self.model.module.parameters()):
            raise ValueError(
                f"{self!r} leaves nothing to train: all parameters of the module are frozen. Freeze fewer layers."
            )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Freeze the layers before epoch ``until``, and train them from then on."""
        is_frozen = self.until is None or epoch < self.until
        for parameter in self._parameters().values():
            parameter.requires_grad_(not is_frozen)
        for name, layer in self._layers_with_statistics().items():
            layer.train(self._was_training[name] and not is_frozen)

    def on_train_end(self, logs: Any = None) -> None:
        """Restore what was trained before the fit."""
        parameters, layers = self._parameters(), self._layers_with_statistics()
        for name, required_grad in self._required_grad.items():
            parameters[name].requires_grad_(required_grad)
        for name, was_training in self._was_training.items():
            layers[name].train(was_training)

    def _parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters to freeze, by name."""
        named = self.model.module.named_parameters(remove_duplicate=False)
        return {name: parameter for name, parameter in named if self._matches(name)}

    def _layers_with_statistics(self) -> dict[str, nn.Module]:
        """Return the layers to freeze that update running statistics in train mode, by name."""
        named = self.model.module.named_modules()
        return {name: layer for name, layer in named if _has_statistics(layer) and self._matches(name)}

    def _matches(self, name: str) -> bool:
        return any(matches(name, pattern) for pattern in self.patterns)

    def _check_patterns(self) -> None:
        """Raise a ``ValueError`` if a pattern matches nothing, or the same parameter as another callback."""
        names = [name for name, _ in self.model.module.named_parameters(remove_duplicate=False)]
        for pattern in self.patterns:
            if not any(matches(name, pattern) for name in names):
                layers = [name for name, _ in self.model.module.named_modules() if name]
                raise ValueError(
                    f"Freeze({pattern!r}) matches no parameter of the module.{did_you_mean(pattern, [*layers, *names])} Layers "
                    f"of the module: {', '.join(map(repr, layers[:10])) or 'none'}{', ...' if len(layers) > 10 else ''}."
                )
        for other in self.model.callbacks.callbacks:
            shared = [
                name for name in names if isinstance(other, Freeze) and self._matches(name) and other._matches(name)
            ]
            if other is not self and shared:
                raise ValueError(f"{self!r} and {other!r} both freeze {shared[0]!r}. Name each layer in one of them.")

    def _add_to_optimizer(self) -> None:
        """Add the parameters to train that the optimizer lacks to its first group."""
        if self.until is None:
            return
        optimizer = self.model.require_optimizer("fit")
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        missing = {id(value): (name, value) for name, value in self._parameters().items() if id(value) not in known}
        if missing and isinstance(optimizer, torch.optim.LBFGS) and optimizer.state:
            name = next(iter(missing.values()))[0]
            raise ValueError(
                f"{self!r} would add {name!r} to LBFGS, whose history of gradients belongs to the parameters of the fits before. "
                "Call compile() again before this fit, with an optimizer of all parameters: model.compile('lbfgs', ...)."
            )
        # Schedules know the number of groups, so that a new group would have none.
        for name, parameter in missing.values():
            first_group(optimizer, name)["params"].append(parameter)


def _has_statistics(layer: nn.Module) -> bool:
    return getattr(layer, "running_mean", None) is not None
